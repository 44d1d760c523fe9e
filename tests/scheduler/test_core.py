"""The core against a world where the true answer of every request is known."""

from __future__ import annotations

import random

import pytest

from outrider.errors import DeadlineExceeded, InternalError, NoTokenLeft, Overloaded, ServerUnavailable
from outrider.types import TokenLogprobs
from outrider.v1.inference_pb2 import SamplingParams
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.core import Core, CoreConfig
from scheduler.events import (
    Cancelled,
    DrafterDown,
    DrafterUp,
    Emit,
    Finish,
    Grown,
    Growth,
    PassDone,
    ReleaseDrafter,
    ReleaseTarget,
    ResetTarget,
    RowOutcome,
    SendOrder,
    SendPass,
    Stopped,
    Submitted,
    TargetDown,
    TargetUp,
    Tick,
)
from tests.scheduler.world import FACTS, World, new_request, true_answer


def check_complete(world: World) -> None:
    """Every request ended with exactly its true answer, and nothing is left anywhere."""
    for number, new in world.requests.items():
        stream = world.streams[number]
        assert stream.finish is not None, f"request {number} never ended"
        assert stream.finish.error is None, stream.finish.error
        assert stream.tokens == true_answer(new)
    assert world.core.num_running == 0
    assert world.core.num_queued == 0
    assert not world.target, "the target still holds requests"
    assert not any(world.drafters.values()), "a drafter still holds requests"


@pytest.mark.parametrize("seed", range(20))
def test_every_request_gets_its_true_answer_with_any_draft(seed: int) -> None:
    world = World(seed)
    world.start_target()
    world.start_drafter("a")
    world.start_drafter("b")
    for number in range(1, 9):
        world.submit(new_request(number, world.rng))
    world.run()
    check_complete(world)


def test_drafts_save_passes() -> None:
    passes = {True: 0, False: 0}
    for speculates in passes:
        for seed in range(10):
            world = World(seed, draft_delays_s=[0.01], draft_wait_s=1.0)
            world.start_target()
            if speculates:
                world.start_drafter("a")
            rng = random.Random(seed)
            for number in range(1, 5):
                world.submit(new_request(number, rng))
            world.run()
            check_complete(world)
            passes[speculates] += sum(s.finish.stats.num_passes for s in world.streams.values() if s.finish)
    assert passes[True] < 0.8 * passes[False]


@pytest.mark.parametrize("draft_wait_s", [None, 1.0])
@pytest.mark.parametrize("seed", range(100))
def test_no_token_is_lost_or_repeated_whatever_dies_and_whenever(seed: int, draft_wait_s: float | None) -> None:
    world = World(seed, draft_wait_s=draft_wait_s)
    faults = [
        world.kill_target,
        world.start_target,
        world.hang_target,
        lambda: world.kill_drafter("a"),
        lambda: world.start_drafter("a"),
        lambda: world.kill_drafter("b"),
        lambda: world.start_drafter("b"),
        world.replay_old_growth,
    ]
    world.start_target()
    world.start_drafter("a")
    number = 0
    for _ in range(120):
        if world.rng.random() < 0.1 and number < 10:
            number += 1
            world.submit(new_request(number, world.rng))
        if world.rng.random() < 0.1:
            world.rng.choice(faults)()
        if world.rng.random() < 0.02 and number:
            victim = world.rng.randint(1, number)
            if victim in world.requests and world.streams[victim].finish is None:
                world.cancel(victim)
        world.step()
    world.start_target()
    world.run()
    check_complete(world)


def submitted(core: Core, now_s: float = 0.0, **changes: object) -> list[object]:
    new = new_request(1, random.Random(0))
    values = {name: getattr(new, name) for name in new.__dataclass_fields__} | {"speculates": True, **changes}
    return list(core.handle(Submitted(type(new)(**values)), now_s))


def pass_of(commands: list[object]) -> SendPass:
    return next(command for command in commands if isinstance(command, SendPass))


def answer(sent: SendPass, tokens: list[int], **changes: object) -> PassDone:
    row = sent.rows[0]
    outcome = {"request": row.request, "epoch": row.epoch, "committed_len": row.committed_len, "status": "ok"}
    outcome |= {"tokens": tokens, "known_len": row.committed_len + len(tokens), **changes}
    return PassDone(sent.pass_id, [RowOutcome(**outcome)], FACTS.num_kv_blocks)  # type: ignore[arg-type]


@pytest.fixture
def core() -> Core:
    core = Core(CoreConfig(draft_wait_s=1.0, pass_timeout_s=10.0))
    core.handle(TargetUp(FACTS), 0.0)
    return core


def test_a_long_prompt_comes_in_chunks_that_fill_the_pass(core: Core) -> None:
    sent = pass_of(submitted(core, prompt=[1] * 60, max_tokens=4))
    sizes = [len(sent.rows[0].tokens)]
    while sent.rows[0].tokens_start + len(sent.rows[0].tokens) < 60:
        known_len = sent.rows[0].tokens_start + len(sent.rows[0].tokens)
        sent = pass_of(core.handle(answer(sent, [], known_len=known_len), 0.0))
        sizes.append(len(sent.rows[0].tokens))
    assert sizes == [24, 24, 12]


def test_what_chunks_found_in_the_prefix_cache_adds_up_and_is_counted_anew_in_a_new_epoch(core: Core) -> None:
    sent = pass_of(submitted(core, prompt=[1] * 30, max_tokens=1, speculates=False))
    sent = pass_of(core.handle(answer(sent, [], known_len=24, num_cached_tokens=16), 0.0))
    sent = pass_of(core.handle(answer(sent, [], status="prefix_missing", known_len=0), 0.0))
    sent = pass_of(core.handle(answer(sent, [], known_len=24, num_cached_tokens=8), 0.0))
    commands = core.handle(answer(sent, [5], num_cached_tokens=4), 0.0)
    (finish,) = [command for command in commands if isinstance(command, Finish)]
    assert finish.stats.num_cached_prompt_tokens == 12


def test_tokens_behind_an_end_token_are_dropped(core: Core) -> None:
    sent = pass_of(submitted(core, prompt=[1], max_tokens=10))
    commands = core.handle(answer(sent, [2, 6, 3]), 0.1)
    emit = next(c for c in commands if isinstance(c, Emit))
    finish = next(c for c in commands if isinstance(c, Finish))
    assert (emit.tokens, emit.sources) == ([2, 6], ["draft", "draft"])
    assert (finish.reason, finish.end_token_id) == ("end", 6)


def test_a_row_waits_for_its_draft_and_goes_alone_when_it_is_late(core: Core) -> None:
    core.handle(DrafterUp("d", ["guess"]), 0.0)
    sent = pass_of(submitted(core, prompt=[1], max_tokens=10))
    commands = core.handle(answer(sent, [2]), 1.0)
    assert any(isinstance(c, SendOrder) for c in commands)
    assert not any(isinstance(c, SendPass) for c in commands)
    assert core.next_wakeup_s() == 2.0
    row = pass_of(core.handle(Tick(), 2.0)).rows[0]
    assert row.node_tokens == []
    assert core.health("d", "guess").is_late


def test_nobody_waits_for_a_late_drafter_until_it_answers_in_time(core: Core) -> None:
    core.handle(DrafterUp("d", ["guess"]), 0.0)
    sent = pass_of(submitted(core, prompt=[1], max_tokens=10))
    order = next(c for c in core.handle(answer(sent, [2]), 1.0) if isinstance(c, SendOrder))
    sent = pass_of(core.handle(Tick(), 2.0))
    commands = core.handle(answer(sent, [3]), 2.1)
    assert not any(isinstance(c, SendOrder) for c in commands), "it still works on the old order"
    sent = pass_of(commands)
    stale = Grown([Growth("d", "guess", 1, order.epoch, order.committed_len, 1, [4], [0], [0.0], True, False)])
    order = next(c for c in core.handle(stale, 2.2) if isinstance(c, SendOrder))
    assert order.committed_len == 3, "it is told the newest state only"
    fresh = Grown([Growth("d", "guess", 1, order.epoch, order.committed_len, 1, [4], [0], [0.0], True, False)])
    core.handle(fresh, 2.3)
    assert not core.health("d", "guess").is_late


def test_stale_nodes_are_refused_and_the_pass_still_commits_one_token(core: Core) -> None:
    core.handle(DrafterUp("d", ["guess"]), 0.0)
    sent = pass_of(submitted(core, prompt=[1], max_tokens=10))
    order = next(c for c in core.handle(answer(sent, [2]), 1.0) if isinstance(c, SendOrder))
    for epoch, committed_len in [(order.epoch + 7, 2), (order.epoch, 1)]:
        core.handle(Grown([Growth("d", "guess", 1, epoch, committed_len, 1, [4], [0], [0.0], True, False)]), 1.1)
    row = pass_of(core.handle(Tick(), 2.0)).rows[0]
    assert row.node_tokens == []


def test_a_cancelled_request_is_released_everywhere_while_its_pass_runs(core: Core) -> None:
    core.handle(DrafterUp("d", ["guess"]), 0.0)
    sent = pass_of(submitted(core))
    commands = core.handle(Cancelled(1), 0.1)
    assert {type(c) for c in commands} == {ReleaseTarget, ReleaseDrafter}
    assert core.handle(answer(sent, [2]), 0.2) == []
    assert core.num_running == 0


def test_a_deadline_ends_a_queued_and_a_running_request(core: Core) -> None:
    submitted(core, deadline_s=5.0)
    assert core.next_wakeup_s() == 5.0
    finish = next(c for c in core.handle(Tick(), 5.0) if isinstance(c, Finish))
    assert isinstance(finish.error, DeadlineExceeded)
    core.handle(TargetDown(), 5.0)
    submitted(core, now_s=6.0, deadline_s=7.0)
    finish = next(c for c in core.handle(Tick(), 7.0) if isinstance(c, Finish))
    assert isinstance(finish.error, DeadlineExceeded)
    assert core.num_queued == 0


def test_requests_start_only_when_their_kv_blocks_are_free(core: Core) -> None:
    size = {"prompt": [1] * 60, "max_tokens": 60, "max_nodes": 4}  # 32 of 64 blocks each
    new = new_request(1, random.Random(0))
    values = {name: getattr(new, name) for name in new.__dataclass_fields__} | size
    for number in (1, 2, 3):
        core.handle(Submitted(type(new)(**{**values, "number": number})), 0.0)
    assert (core.num_running, core.num_queued) == (2, 1)
    core.handle(Cancelled(1), 0.0)
    assert (core.num_running, core.num_queued) == (2, 0)


def test_a_request_that_no_cache_could_hold_fails_and_blocks_nobody(core: Core) -> None:
    commands = submitted(core, prompt=[1] * 300)
    assert isinstance(next(c for c in commands if isinstance(c, Finish)).error, Overloaded)
    assert core.num_queued == 0


def test_a_row_that_the_target_calls_invalid_fails_that_request_alone(core: Core) -> None:
    sent = pass_of(submitted(core))
    commands = core.handle(answer(sent, [], status="invalid", detail="because"), 0.1)
    error = next(c for c in commands if isinstance(c, Finish)).error
    assert isinstance(error, InternalError)
    assert "because" in error.message


def test_a_stop_string_ends_a_request_with_its_statistics(core: Core) -> None:
    sent = pass_of(submitted(core, prompt=[1], max_tokens=10))
    core.handle(answer(sent, [2]), 0.1)
    finish = next(c for c in core.handle(Stopped(1), 0.2) if isinstance(c, Finish))
    assert (finish.reason, finish.stats.num_passes) == ("stop", 1)


def test_a_lost_drafters_requests_move_to_another_worker(core: Core) -> None:
    core.handle(DrafterUp("d", ["guess"]), 0.0)
    core.handle(DrafterUp("e", ["guess"]), 0.0)
    first = next(c for c in submitted(core) if isinstance(c, SendOrder))
    commands = core.handle(DrafterDown(first.worker), 0.1)
    moved = next(c for c in commands if isinstance(c, SendOrder))
    assert moved.worker == ({"d", "e"} - {first.worker}).pop()
    assert (moved.tokens_start, moved.opening is not None) == (0, True)


def drafted(core: Core, now_s: float, order: SendOrder, tokens: list[int], parents: list[int]) -> list[object]:
    scores = [0.0] * len(tokens)
    grown = Grown([Growth("d", "guess", 1, order.epoch, order.committed_len, 1, tokens, parents, scores, True, False)])
    return list(core.handle(grown, now_s))


@pytest.mark.parametrize("stale", [{"epoch": 999}, {"committed_len": 7}])
def test_a_stale_outcome_commits_nothing_and_the_row_goes_again(core: Core, stale: dict[str, int]) -> None:
    sent = pass_of(submitted(core, prompt=[1], max_tokens=10))
    commands = core.handle(answer(sent, [2], **stale), 0.1)
    assert not any(isinstance(c, Emit) for c in commands)
    assert pass_of(commands).rows[0].committed_len == 1


def test_the_answer_to_another_pass_is_dropped(core: Core) -> None:
    sent = pass_of(submitted(core, prompt=[1], max_tokens=10))
    other = SendPass(sent.pass_id + 1, sent.rows)
    assert core.handle(answer(other, [2]), 0.1) == []
    assert any(isinstance(c, Emit) for c in core.handle(answer(sent, [2]), 0.2))


def test_what_was_drafted_while_a_pass_ran_is_the_next_draft(core: Core) -> None:
    core.handle(DrafterUp("d", ["guess"]), 0.0)
    commands = submitted(core, prompt=[1], max_tokens=10)
    sent = pass_of(commands)
    order = next(c for c in commands if isinstance(c, SendOrder))
    drafted(core, 0.1, order, [2, 3, 4], [0, 1, 2])
    core.handle(answer(sent, [2]), 0.2)
    row = pass_of(core.handle(Tick(), 1.3)).rows[0]
    assert (row.node_tokens, row.node_parents) == ([3, 4], [-1, 0])


def test_nodes_for_a_root_of_the_past_are_dropped(core: Core) -> None:
    core.handle(DrafterUp("d", ["guess"]), 0.0)
    sent = pass_of(submitted(core, prompt=[1], max_tokens=10))
    order = next(c for c in core.handle(answer(sent, [2]), 1.0) if isinstance(c, SendOrder))
    sent = pass_of(core.handle(Tick(), 2.0))  # the drafter is late
    sent = pass_of(core.handle(answer(sent, [3]), 2.1))
    newer = next(c for c in drafted(core, 2.2, order, [4, 5], [0, 1]) if isinstance(c, SendOrder))
    sent = pass_of(core.handle(answer(sent, [4]), 2.3))
    assert newer.committed_len == 3
    assert sent.rows[0].node_tokens == []


def test_no_node_is_verified_that_could_never_be_committed(core: Core) -> None:
    core.handle(DrafterUp("d", ["guess"]), 0.0)
    sent = pass_of(submitted(core, prompt=[1], max_tokens=3, max_nodes=4))
    order = next(c for c in core.handle(answer(sent, [2]), 1.0) if isinstance(c, SendOrder))
    row = pass_of(drafted(core, 1.1, order, [3, 4, 5], [0, 1, 2])).rows[0]
    assert row.node_tokens == [3], "two tokens are left, and the second one is the target's own"


def test_a_row_that_always_hangs_the_target_fails_and_frees_it(core: Core) -> None:
    submitted(core, prompt=[1], max_tokens=10)
    now_s, finish = 0.0, None
    for attempt in range(3):
        assert finish is None, f"given up after {attempt} passes"
        now_s += 10.0
        commands = core.handle(Tick(), now_s)
        assert any(isinstance(c, ResetTarget) for c in commands)
        finish = next((c for c in commands if isinstance(c, Finish)), None)
        core.handle(TargetUp(FACTS), now_s)
    assert finish is not None
    assert isinstance(finish.error, ServerUnavailable)
    assert core.num_running == 0


def test_an_answer_forgives_the_unanswered_passes_before_it(core: Core) -> None:
    submitted(core, prompt=[1], max_tokens=10)
    for now_s in (10.0, 20.0):
        core.handle(Tick(), now_s)
        sent = pass_of(core.handle(TargetUp(FACTS), now_s))
    core.handle(answer(sent, [2]), 21.0)
    for now_s in (31.0, 41.0):
        core.handle(Tick(), now_s)
        core.handle(TargetUp(FACTS), now_s)
    assert core.num_running == 1


def test_a_row_without_free_blocks_is_tried_again_for_a_while(core: Core) -> None:
    sent = pass_of(submitted(core, prompt=[1], max_tokens=10))
    assert not core.handle(answer(sent, [], status="no_capacity"), 0.1)
    wakeup_s = core.next_wakeup_s()
    assert wakeup_s == pytest.approx(0.6)
    sent = pass_of(core.handle(Tick(), 0.6))
    assert any(isinstance(c, Emit) for c in core.handle(answer(sent, [2]), 0.7))


def test_a_row_that_never_gets_blocks_fails_in_the_end(core: Core) -> None:
    sent = pass_of(submitted(core, now_s=1.0, prompt=[1], max_tokens=10))
    core.handle(answer(sent, [], status="no_capacity"), 1.0)
    sent = pass_of(core.handle(Tick(), 5.0))
    core.handle(answer(sent, [], status="no_capacity"), 6.0)
    sent = pass_of(core.handle(Tick(), 10.9))
    finish = next(c for c in core.handle(answer(sent, [], status="no_capacity"), 11.0) if isinstance(c, Finish))
    assert isinstance(finish.error, Overloaded)


def test_all_of_a_report_counts_before_the_next_pass(core: Core) -> None:
    core.handle(DrafterUp("d", ["guess"]), 0.0)
    core.handle(TargetDown(), 0.0)
    new = new_request(1, random.Random(0))
    values = {name: getattr(new, name) for name in new.__dataclass_fields__}
    values |= {"speculates": True, "prompt": [1], "max_tokens": 10, "max_nodes": 2}
    for number in (1, 2, 3):
        core.handle(Submitted(type(new)(**{**values, "number": number})), 0.0)
    sent = pass_of(core.handle(TargetUp(FACTS), 0.0))
    outcomes = [RowOutcome(row.request, row.epoch, 1, "ok", [2], 2) for row in sent.rows]
    commands = core.handle(PassDone(sent.pass_id, outcomes, 60), 0.1)
    orders = [c for c in commands if isinstance(c, SendOrder)]
    growths = [Growth("d", "guess", o.request, o.epoch, 2, 1, [3], [0], [0.0], True, False) for o in orders]
    assert len(pass_of(core.handle(Grown(growths), 0.2)).rows) == 3


def test_a_row_without_a_token_left_fails_that_request_alone_and_says_why(core: Core) -> None:
    sent = pass_of(submitted(core))
    error = next(
        c for c in core.handle(answer(sent, [], status="no_token", detail="because"), 0.1) if isinstance(c, Finish)
    ).error
    assert isinstance(error, NoTokenLeft)
    assert "after 0 tokens: because" in error.message


def with_logprobs() -> OpenRequest:
    return OpenRequest(sampling=SamplingParams(seed=1, logprobs=1))


def test_log_probabilities_are_those_of_the_tokens_that_are_committed(core: Core) -> None:
    entries = [TokenLogprobs(-float(token), (token,), (0.0,)) for token in (2, 6, 3)]
    sent = pass_of(submitted(core, prompt=[1], max_tokens=10, opening=with_logprobs()))
    emit = next(c for c in core.handle(answer(sent, [2, 6, 3], logprobs=entries), 0.1) if isinstance(c, Emit))
    assert (emit.tokens, emit.logprobs) == ([2, 6], entries[:2])


@pytest.mark.parametrize("wants", [True, False])
def test_a_wrong_number_of_log_probabilities_fails_the_request(core: Core, wants: bool) -> None:
    sent = pass_of(submitted(core, prompt=[1], **({"opening": with_logprobs()} if wants else {})))
    entries = [TokenLogprobs(0.0, (), ())]
    error = next(c for c in core.handle(answer(sent, [2, 3], logprobs=entries), 0.1) if isinstance(c, Finish)).error
    assert isinstance(error, InternalError)
    assert "1 log-probabilities for 2 tokens" in error.message


@pytest.mark.parametrize("foreign", [-1, FACTS.vocab_size, 2**31 - 1])
def test_a_token_outside_the_vocabulary_fails_the_request_and_reaches_nobody(core: Core, foreign: int) -> None:
    sent = pass_of(submitted(core, prompt=[1], max_tokens=10))
    commands = core.handle(answer(sent, [2, foreign]), 0.1)
    assert not any(isinstance(c, Emit) for c in commands)
    error = next(c for c in commands if isinstance(c, Finish)).error
    assert isinstance(error, InternalError)
    assert f"token {foreign}" in error.message


@pytest.mark.parametrize("how", ["token", "cancelled"])
def test_a_request_with_a_leader_starts_when_that_has_its_first_token_or_is_gone(core: Core, how: str) -> None:
    leader = new_request(1, random.Random(0))
    values = {name: getattr(leader, name) for name in leader.__dataclass_fields__} | {"max_tokens": 9}
    sent = pass_of(core.handle(Submitted(type(leader)(**values)), 0.0))
    core.handle(Submitted(type(leader)(**values | {"number": 2, "leader": 1})), 0.0)
    core.handle(Submitted(type(leader)(**values | {"number": 3})), 0.0)
    assert (core.num_running, core.num_queued) == (2, 1), "the third waits for nobody"
    core.handle(answer(sent, [2]) if how == "token" else Cancelled(1), 0.1)
    assert core.num_queued == 0


def test_nodes_that_come_at_a_deadline_let_the_next_request_start() -> None:
    """The clock may have passed the deadline before its Tick: whatever event comes first has to do all of it."""
    core = Core(CoreConfig(max_running_requests=1))
    core.handle(TargetUp(FACTS), 0.0)
    core.handle(DrafterUp("w", ["a"]), 0.0)
    core.handle(Submitted(new_request(1, random.Random(0), deadline_s=1.0)), 0.0)
    core.handle(Submitted(new_request(2, random.Random(0))), 0.0)
    assert (core.num_running, core.num_queued) == (1, 1)
    commands = core.handle(Grown([]), 1.5)
    assert any(isinstance(command, Finish) and command.request == 1 for command in commands)
    assert (core.num_running, core.num_queued) == (1, 0)
