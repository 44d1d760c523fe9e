"""What the scheduler says that drafters are worth, against simulated cells with more and with fewer of them."""

from __future__ import annotations

from functools import cache, partial
from random import Random

import pytest

from scheduler.core import Core, CoreConfig
from scheduler.events import Emit, Finish
from scheduler.policy.worth import Lack, Worth
from scheduler.simulation.cell import Cell
from scheduler.simulation.load import Load
from scheduler.simulation.performance import cell_model
from scheduler.simulation.strategies import strategy
from tests.simulation.small_scenario import small_scenario

ONE_BY_ONE = {"table": [[1, 0, 5.0], [64, 0, 320.0]]}  # 5 ms of a drafter for each row: the more rows, the longer
ALL_AT_ONCE = {"table": [[1, 0, 5.0], [64, 0, 5.0]]}
WARM_UP_S, DURATION_S = 1.0, 3.0
# The model has one way to run a round where the policy changes between three from pass to pass, and it takes each row's
# nodes for the mean ones. What it says of a further drafter was between 0.5 and 0.9 of what simulation says.
WITHIN = 2.5


@cache
def measured(
    num_drafters: int, is_one_by_one: bool, acceptance: float = 0.8, disturbance: float = 0.0
) -> tuple[float, Worth | Lack]:
    """Tokens a second of eight users, and what the scheduler says at the end."""
    scenario = small_scenario(
        load={"concurrency": 8, "warm_up_s": WARM_UP_S, "duration_s": DURATION_S},
        drafter={
            "cost": ONE_BY_ONE if is_one_by_one else ALL_AT_ONCE,
            "acceptance": [acceptance],
            "workers": num_drafters,
        },
        target={"disturbance": disturbance},
    )
    outrider = strategy("outrider", scenario)

    def make_core(config: CoreConfig) -> Core:
        return Core(config, outrider.make_policy())

    cell = Cell(cell_model(scenario, outrider), Random(1), make_core)
    load = Load(scenario.load, cell, outrider.max_nodes, seed=1)
    emitted: list[int] = []
    cell.on_delivery = partial(_note, cell, emitted)
    cell.start()
    load.start()
    ends_s = WARM_UP_S + DURATION_S
    while cell.agenda.next_s is not None and cell.agenda.next_s <= ends_s:
        cell.agenda.step()
    assert cell.scheduler is not None
    return sum(emitted) / DURATION_S, cell.scheduler.core.worth({"d": num_drafters}, 0, ends_s)["d"]


def _note(cell: Cell, emitted: list[int], command: Emit | Finish) -> None:
    if isinstance(command, Emit) and cell.agenda.now_s > WARM_UP_S:
        emitted.append(len(command.tokens))


def test_a_drafter_of_several_that_share_the_rows_is_worth_about_what_simulation_says() -> None:
    fewer, (present, worth), more = measured(3, True)[0], measured(4, True), measured(5, True)[0]
    assert isinstance(worth, Worth)
    assert worth.goodput == pytest.approx(present, rel=0.25)
    for said, simulated in ((worth.of_the_last, present - fewer), (worth.of_one_more, more - present)):
        assert simulated > 0
        assert simulated / WITHIN < said < simulated * WITHIN


def test_the_only_drafter_is_worth_about_what_simulation_says() -> None:
    plain, (present, worth) = measured(8, True, 0.0)[0], measured(1, False)
    assert isinstance(worth, Worth)
    assert worth.goodput == pytest.approx(present, rel=0.25)
    assert (present - plain) / WITHIN < worth.of_the_last < (present - plain) * WITHIN


def test_drafters_that_are_never_right_are_worth_nothing() -> None:
    present, worth = measured(8, True, 0.0)
    assert isinstance(worth, Worth)
    assert abs(worth.of_the_last) + abs(worth.of_one_more) < 0.01 * present


def test_drafters_that_slow_their_target_down_are_worth_nothing_however_right_they_are() -> None:
    worth = measured(1, False, disturbance=3.0)[1]
    assert isinstance(worth, Worth)
    assert worth.goodput > 0
    assert worth.of_the_last == worth.of_one_more == 0


def test_a_drafter_that_is_overtaken_by_every_verdict_is_known_to_be_late() -> None:
    assert measured(1, True)[1] is Lack.NEVER_IN_TIME
