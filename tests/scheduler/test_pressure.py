"""What the core says of its target groups' room: who waits for it, for how long, and what all would fill."""

from __future__ import annotations

import math
from dataclasses import replace

from scheduler.events import Cancelled, Tick
from scheduler.pressure import Pressure
from tests.scheduler.classes import BATCH, INTERACTIVE, asked
from tests.scheduler.test_target_groups import Groups
from tests.scheduler.world import FACTS


def pressure(groups: Groups) -> Pressure:
    return groups.core.pressure(groups.now_s)


def test_a_cell_without_requests_or_groups_is_asked_for_nothing() -> None:
    assert pressure(Groups()) == Pressure(0, 4, 0, 0, 0, 0, 0.0, math.inf)
    assert pressure(Groups("a", "b")) == Pressure(2, 4, 64, 0, 0, 0, 0.0, math.inf)


def test_demand_is_what_runs_and_what_waits() -> None:
    groups = Groups("a", num_places=2, num_kv_blocks=16)
    for number in (1, 2, 3):
        groups.ask(asked(number, prompt=4, max_tokens=4))  # three blocks each, the one that a walk may split among them
    told = pressure(groups)
    assert (told.num_running, told.num_waiting, told.num_blocks_needed) == (2, 1, 9)
    assert told.demand == 1.5
    groups.ask(asked(4, prompt=100, max_tokens=4))
    assert pressure(groups).demand == (9 + 27) / 16


def test_it_waits_from_when_there_was_no_room_until_all_run() -> None:
    groups = Groups("a", num_places=1)
    groups.ask(asked(1))
    groups.now_s = 5.0
    groups.ask(asked(2))
    groups.ask(asked(3))
    groups.now_s = 7.0
    groups.post(Cancelled(2))
    assert (pressure(groups).num_waiting, pressure(groups).waited_s) == (1, 2.0)
    groups.up("b")
    assert (pressure(groups).num_waiting, pressure(groups).waited_s) == (0, 0.0)
    groups.now_s = 9.0
    groups.ask(asked(4))
    groups.now_s = 9.5
    assert pressure(groups).waited_s == 0.5


def test_who_waits_for_its_leader_waits_for_no_room() -> None:
    groups = Groups("a")
    groups.ask(asked(1))
    groups.ask(asked(2, leader=1))
    assert (groups.core.num_queued, pressure(groups).num_waiting, pressure(groups).waited_s) == (1, 0, 0.0)


def test_when_one_last_gave_way_is_told() -> None:
    groups = Groups("a", num_places=1)
    groups.ask(asked(1, BATCH))
    groups.now_s = 2.0
    groups.ask(asked(2, INTERACTIVE))
    groups.now_s = 5.0
    groups.post(Tick())
    told = pressure(groups)
    assert (told.num_running, told.num_waiting, told.waited_s, told.preempted_s) == (1, 1, 3.0, 3.0)


def test_what_runs_on_a_group_that_is_left_needs_room_elsewhere() -> None:
    groups = Groups("a", num_places=2)
    groups.facts = replace(FACTS, num_kv_blocks=100)
    groups.up("b")
    for number in range(1, 5):
        groups.ask(asked(number))
    groups.leave("a")
    told = pressure(groups)
    assert (told.num_groups, told.num_blocks, told.demand) == (1, 100, 2.0)
