"""What the core counts, against what the world around it saw: in any weather, and for requests however they end."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache

import pytest

from scheduler.core import LATE_AFTER_S
from scheduler.drafting import MIN_VERDICTS, TRIED_EVERY
from scheduler.events import Grown, Tick
from scheduler.totals import Totals
from tests.scheduler.test_growing_tree import Running
from tests.scheduler.test_starving import WRONG, OneRow
from tests.scheduler.world import World, new_request

NUM_REQUESTS = 12
SEEDS = range(8)


@dataclass
class Storm:
    """A world that has come to rest after faults and cancels. `said`: what the core counted, after each step."""

    world: World
    prompt_lens: dict[int, int]
    said: list[Totals]


@cache
def storm(seed: int) -> Storm:
    world, rng = World(seed), random.Random(seed)
    requests = [new_request(number, rng) for number in range(1, NUM_REQUESTS + 1)]
    faults = [
        world.kill_target,
        world.hang_target,
        world.replay_old_growth,
        lambda: world.kill_drafter("w"),
        lambda: world.cancel(rng.randint(1, NUM_REQUESTS)),
    ]
    said = []
    for new in requests:
        world.submit(new)
    for _ in range(400):
        world.start_target()
        world.start_drafter("w")
        if rng.random() < 0.05:
            rng.choice(faults)()
        world.step()
        said.append(world.core.totals_now())
    world.start_target()
    world.run()
    return Storm(world, {new.number: len(new.prompt) for new in requests}, [*said, world.core.totals_now()])


@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_are_counted_once_whatever_fails_and_however_a_request_ends(seed: int) -> None:
    over = storm(seed)
    streams = over.world.streams
    totals = over.said[-1]
    assert totals.num_generated_tokens == sum(len(stream.tokens) for stream in streams.values()) > 0
    started = [number for number, stream in streams.items() if stream.tokens]
    assert totals.num_prompt_tokens == sum(over.prompt_lens[number] for number in started)
    assert totals == over.world.core.totals, "nothing goes on any more"


@pytest.mark.parametrize("seed", SEEDS)
def test_no_count_ever_falls(seed: int) -> None:
    said = storm(seed).said
    for name in set(Totals.__dataclass_fields__) - {"num_accepted", "drafters"}:
        values = [getattr(totals, name) for totals in said]
        assert values == sorted(values), name
    for name in {name for totals in said for name in totals.drafters}:
        nodes = [totals.drafters[name].num_drafted_nodes for totals in said if name in totals.drafters]
        assert nodes == sorted(nodes)
        assert nodes[-1] > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_accepted_tokens_rows_and_drafts_fit_together(seed: int) -> None:
    for totals in storm(seed).said:
        assert totals.num_accepted_tokens == sum(length * count for length, count in totals.num_accepted.items())
        assert totals.num_accepted.total() <= totals.num_drafts <= totals.num_rows
        assert totals.num_accepted_tokens <= totals.num_verified_nodes
        assert totals.num_rows <= totals.num_generated_tokens <= totals.num_accepted_tokens + totals.num_rows


def test_a_starved_drafters_orders_count_where_they_are_sent_and_where_they_are_not() -> None:
    row = OneRow()
    row.guess = WRONG
    row.commit(MIN_VERDICTS + 200)
    health = row.core.health("w", "a")
    sent, skipped = health.num_orders, health.num_orders_skipped
    assert sent == row.num_orders
    row.commit(10 * TRIED_EVERY)
    assert (health.num_orders - sent, health.num_orders_skipped - skipped) == (10, 10 * (TRIED_EVERY - 1))
    assert health.num_answers == health.num_orders
    assert health.answer_s == pytest.approx(0.02 * health.num_answers), "OneRow's clock goes on by so much an event"


def test_a_drafter_becomes_late_once_however_many_orders_it_leaves_unanswered() -> None:
    running = Running("a")
    health = running.core.health("worker of a", "a")
    for _ in range(3):
        running.now_s += 2 * LATE_AFTER_S
        running.handle(Tick())
        running.answer([1])
    assert (health.is_late, health.num_times_late, health.num_answers) == (True, 1, 0)


def test_reports_for_what_is_over_and_nodes_without_a_place_are_counted_apart() -> None:
    running = Running("a")
    health = running.core.health("worker of a", "a")
    running.grow([2, 3], [0, 1], is_done=False)
    assert (health.num_stale_reports, health.num_dropped_nodes) == (0, 0)
    running.grow([4], [99], first=3, is_done=False)
    assert (health.num_stale_reports, health.num_dropped_nodes) == (0, 1)
    running.handle(Grown([replace(running.growth([2], [0], first=4), epoch=10**6)]))
    assert (health.num_stale_reports, health.num_dropped_nodes) == (1, 1)


def test_a_report_under_a_name_that_nobody_has_is_dropped_and_leaves_nothing() -> None:
    running = Running("a")
    for number in range(100):
        running.handle(Grown([replace(running.growth([2], [0]), drafter=f"x{number}")]))
    assert running.core.health("worker of a", "x1").num_stale_reports == 0
