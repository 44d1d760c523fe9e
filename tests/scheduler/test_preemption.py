"""Who gives way, against trying what is less; and in a whole core, where every answer must be the undisturbed one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core import Core, CoreConfig
from scheduler.events import (
    Cancelled,
    DrafterUp,
    Emit,
    Finish,
    NewRequest,
    PassDone,
    ReleaseDrafter,
    ReleaseTarget,
    RowOutcome,
    SendOrder,
    SendPass,
    Submitted,
    TargetUp,
)
from scheduler.preemption import Capacity, who_gives_way
from scheduler.request import Request
from tests.scheduler.classes import BATCH, INTERACTIVE, STANDARD, asked
from tests.scheduler.world import FACTS, World, new_request, true_answer

CLASSES = [INTERACTIVE, STANDARD, BATCH]
BLOCK_SIZE = 4

sized = st.tuples(st.sampled_from(CLASSES), st.integers(1, 30), st.booleans())


def request_of(number: int, service_class: int, size: int, is_paid_for: bool) -> Request:
    request = Request(asked(number, service_class, prompt=size, max_tokens=size), 0.0)  # type: ignore[arg-type]
    request.is_paid_for = is_paid_for
    return request


@settings(derandomize=True, deadline=None, max_examples=300)
@given(sized, st.lists(sized, max_size=6), st.integers(0, 2), st.integers(0, 20))
def test_who_gives_way_is_below_was_needed_and_is_nobody_only_if_nothing_would_do(
    asking: tuple[int, int, bool], holding: list[tuple[int, int, bool]], free_places: int, free_blocks: int
) -> None:
    request = request_of(0, *asking)
    running = [request_of(number, *each) for number, each in enumerate(holding, 1)]
    held = sum(each.blocks_reserved(BLOCK_SIZE) for each in running)
    capacity = Capacity(len(running) + free_places, held + free_blocks, BLOCK_SIZE)

    def is_enough(given: list[Request]) -> bool:
        blocks = free_blocks + sum(each.blocks_reserved(BLOCK_SIZE) for each in given)
        return free_places + len(given) >= 1 and blocks >= request.blocks_reserved(BLOCK_SIZE)

    below = [each for each in running if each.new.service_class > request.new.service_class and not each.is_paid_for]
    given = who_gives_way(request, running, capacity)
    if given is None:
        assert not is_enough(below)
        return
    assert set(given) <= set(below)
    assert is_enough(given)
    assert not any(is_enough([each for each in given if each is not spared]) for spared in given)


def test_the_least_urgent_gives_way_and_of_those_the_last_to_start() -> None:
    classes = [BATCH, STANDARD, BATCH, STANDARD]
    running = [request_of(number, each, 4, False) for number, each in enumerate(classes, 1)]
    request, capacity = request_of(9, INTERACTIVE, 4, False), Capacity(4, 1000, BLOCK_SIZE)
    order = []
    while given := who_gives_way(request, running, capacity):
        order += [each.number for each in given]
        running = [each for each in running if each not in given]
        running.append(request_of(9, INTERACTIVE, 4, False))
    assert order == [3, 1, 4, 2]


# ── in the core ─────────────────────────────────────────────────────────────────────────────────────


def core_of(num_places: int, num_kv_blocks: int = 64) -> Core:
    core = Core(CoreConfig(max_running_requests=num_places))
    core.handle(TargetUp(replace(FACTS, num_kv_blocks=num_kv_blocks)), 0.0)
    return core


def running(core: Core) -> list[int]:
    return list(core._running)


def test_a_preempted_request_is_released_everywhere_and_its_pass_is_of_no_use_any_more() -> None:
    core = core_of(1)
    core.handle(DrafterUp("w", ["a"]), 0.0)
    commands = core.handle(Submitted(replace(asked(1, BATCH), speculates=True)), 0.0)
    sent = next(c for c in commands if isinstance(c, SendPass))
    order = next(c for c in commands if isinstance(c, SendOrder))
    commands = core.handle(Submitted(asked(2, INTERACTIVE)), 0.1)
    assert ReleaseTarget(1, sent.rows[0].epoch) in commands
    assert ReleaseDrafter("w", "a", 1, order.epoch) in commands
    assert (running(core), core.num_queued) == ([2], 1)
    row = sent.rows[0]
    late = RowOutcome(1, row.epoch, row.committed_len, "ok", [3], row.committed_len + 1)
    commands = core.handle(PassDone(sent.pass_id, [late], 64), 0.2)
    assert not any(isinstance(c, Emit) for c in commands)


def test_what_was_committed_is_kept_and_sent_again_in_a_new_epoch() -> None:
    core = core_of(1)
    sent = next(c for c in core.handle(Submitted(asked(1, BATCH)), 0.0) if isinstance(c, SendPass))
    row = sent.rows[0]
    commands = core.handle(PassDone(sent.pass_id, [RowOutcome(1, row.epoch, 4, "ok", [2], 5)], 64), 0.1)
    in_flight = next(c for c in commands if isinstance(c, SendPass))
    core.handle(Submitted(asked(2, INTERACTIVE)), 0.2)
    core.handle(Cancelled(2), 0.3)
    late = RowOutcome(1, in_flight.rows[0].epoch, 5, "ok", [3], 6)
    commands = core.handle(PassDone(in_flight.pass_id, [late], 64), 0.4)
    again = next(c for c in commands if isinstance(c, SendPass)).rows[0]
    assert (again.request, again.tokens_start, list(again.tokens)) == (1, 0, [1, 1, 1, 1, 2])
    assert again.epoch > row.epoch
    assert again.opening is not None


def test_nobody_preempts_its_own_class_or_a_more_urgent_one() -> None:
    core = core_of(2)
    for number, service_class in enumerate([STANDARD, INTERACTIVE, STANDARD, BATCH], 1):
        core.handle(Submitted(asked(number, service_class)), 0.0)
    assert (running(core), core.totals_now().num_preemptions) == ([1, 2], 0)


def test_nothing_gives_way_where_all_of_it_would_not_be_enough() -> None:
    core = core_of(8, num_kv_blocks=20)
    core.handle(Submitted(asked(1, BATCH, prompt=8, max_tokens=8)), 0.0)
    core.handle(Submitted(asked(2, INTERACTIVE, prompt=20, max_tokens=20)), 0.0)
    core.handle(Submitted(asked(3, INTERACTIVE, prompt=30, max_tokens=30)), 0.0)
    assert (running(core), core.num_queued) == ([1, 2], 1)
    core.handle(Cancelled(2), 0.1)
    assert (running(core), core.num_queued) == ([3], 1), "and where it is enough, it does"


def test_a_preempted_request_starts_again_before_the_others_of_its_class() -> None:
    core = core_of(2)
    for number in (1, 2, 3):
        core.handle(Submitted(asked(number, BATCH)), 0.0)
    core.handle(Submitted(asked(4, INTERACTIVE)), 0.1)
    core.handle(Submitted(asked(5, INTERACTIVE)), 0.1)
    assert running(core) == [4, 5]
    core.handle(Cancelled(4), 0.2)
    core.handle(Cancelled(5), 0.2)
    assert running(core) == [1, 2]


def test_a_follower_of_a_preempted_leader_waits_for_it() -> None:
    core = core_of(1)
    core.handle(Submitted(asked(1, BATCH)), 0.0)
    core.handle(Submitted(asked(2, BATCH, leader=1)), 0.0)
    core.handle(Submitted(asked(3, INTERACTIVE)), 0.0)
    core.handle(Cancelled(3), 0.1)
    assert running(core) == [1]


def classed(new: NewRequest, rng: random.Random) -> NewRequest:
    return replace(new, service_class=rng.choice(CLASSES), tenant=rng.choice(["", "a", "b"]))


@pytest.mark.parametrize("seed", range(30))
def test_every_answer_is_the_true_one_however_often_its_request_was_preempted(seed: int) -> None:
    world = World(seed)
    world.core = Core(CoreConfig(max_running_requests=2))
    world.start_target()
    world.start_drafter("a")
    number = 0
    for _ in range(300):
        if world.rng.random() < 0.1 and number < 20:
            number += 1
            world.submit(classed(new_request(number, world.rng), world.rng))
        world.step()
    world.run()
    for each, new in world.requests.items():
        finish = world.streams[each].finish
        assert isinstance(finish, Finish)
        assert finish.error is None
        assert world.streams[each].tokens == true_answer(new)
        assert finish.stats.num_cached_prompt_tokens <= len(new.prompt)
    counted = sum(stream.finish.stats.num_preemptions for stream in world.streams.values() if stream.finish)
    assert counted == world.core.totals_now().num_preemptions > 0
    assert (world.core.num_running, world.core.num_queued, world.target) == (0, 0, {})


def test_batch_ends_under_endless_interactive_load() -> None:
    """One place, and an interactive request always waiting: each batch request comes to run, and to its end."""
    world = World(1)
    world.core = Core(CoreConfig(max_running_requests=1))
    world.start_target()
    for number in (1, 2):
        world.submit(asked(number, BATCH, prompt=4, max_tokens=8))
    for number in range(3, 400):
        if world.core.num_queued < 4:
            world.submit(asked(number, INTERACTIVE))
        for _ in range(4):
            world.step()
        if world.streams[2].finish is not None:
            break
    assert world.streams[1].tokens == true_answer(world.requests[1])
    assert world.streams[2].tokens == true_answer(world.requests[2])
    assert world.core.num_queued > 1, "the load is still there"
