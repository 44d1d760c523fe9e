"""A scenario under a strategy, in virtual time, and what is measured of it.

The same seed means the same questions at the same times, and drafters that are right in the same places, whatever the
strategy.
"""

from __future__ import annotations

from functools import partial
from random import Random

from scheduler.core import Core, CoreConfig
from scheduler.events import Emit, Finish, TargetFacts
from scheduler.simulation.cell import Cell, CellModel
from scheduler.simulation.costs import profile_of
from scheduler.simulation.drafter import DrafterModel
from scheduler.simulation.guessing import GuessModel
from scheduler.simulation.law import Law
from scheduler.simulation.link import Wire
from scheduler.simulation.load import Load
from scheduler.simulation.measuring import Report, Snapshot, measured
from scheduler.simulation.scenario import DrafterSection, Scenario
from scheduler.simulation.strategies import Strategy
from scheduler.simulation.target import TargetModel

_PROFILED_CONTEXTS = (256, 4096)  # that targets measure themselves behind


def run(scenario: Scenario, strategy: Strategy) -> Report:
    """Raises AssertionError where an answer is not the true one: a strategy may change how fast tokens come, and not
    which."""
    cell = Cell(cell_model(scenario, strategy), Random(scenario.seed), partial(_core, strategy))
    load = Load(scenario.load, cell, strategy.max_nodes, scenario.seed)
    emitted: list[tuple[float, int]] = []
    _watch(cell, emitted)
    cell.start()
    load.start()
    starts_s, ends_s = scenario.load.warm_up_s, scenario.load.warm_up_s + scenario.load.duration_s
    _run_until(cell, starts_s)
    before = Snapshot.of(cell)
    _run_until(cell, ends_s)
    after = Snapshot.of(cell)
    _check(cell)
    return measured(scenario, strategy.name, before, after, emitted, cell.clients)


def _core(strategy: Strategy, config: CoreConfig) -> Core:
    return Core(config, strategy.make_policy())


def _watch(cell: Cell, emitted: list[tuple[float, int]]) -> None:
    def note(command: Emit | Finish) -> None:
        if isinstance(command, Emit):
            emitted.append((cell.agenda.now_s, len(command.tokens)))

    cell.on_delivery = note


def _run_until(cell: Cell, time_s: float) -> None:
    while cell.agenda.next_s is not None and cell.agenda.next_s <= time_s:
        cell.agenda.step()


def _check(cell: Cell) -> None:
    for client in cell.clients:
        assert client.error is None, client.error
        question = client.question
        true = cell.model.law.answer(question.seed, question.prompt, len(client.tokens), question.end_token_ids)
        assert client.tokens == true, "a strategy changed an answer"


def cell_model(scenario: Scenario, strategy: Strategy) -> CellModel:
    target, network = scenario.target, scenario.network
    law = Law(target.vocab_size)
    cost = target.cost.cost()
    facts = TargetFacts(
        vocab_size=target.vocab_size,
        block_size=target.block_size,
        num_kv_blocks=target.num_kv_blocks,
        max_pass_tokens=target.max_pass_tokens,
        pass_costs=profile_of(cost, target.max_pass_tokens, _PROFILED_CONTEXTS),
    )
    workers = {
        f"{section.name}-{i}": [_drafter(section, salt, strategy)]
        for salt, section in enumerate(scenario.drafters, 1)
        for i in range(section.workers if strategy.max_nodes else 0)
    }
    return CellModel(
        law=law,
        target=TargetModel(facts, cost.seconds, target.spread, target.disturbance),
        workers=workers,
        core=CoreConfig(max_running_requests=scenario.core.max_running_requests, run_ahead=strategy.run_ahead),
        target_wire=_wire(network.target_rtt_ms, network.jitter_ms),
        drafter_wire=_wire(network.drafter_rtt_ms, network.jitter_ms),
        num_target_groups=target.groups,
    )


def _drafter(section: DrafterSection, salt: int, strategy: Strategy) -> DrafterModel:
    cost = section.cost.cost()
    guess = GuessModel(
        section.acceptance[: strategy.max_width],
        by_depth=section.by_depth,
        sharpness=section.sharpness,
        salt=salt,
    )
    return DrafterModel(
        section.name,
        guess,
        step_s=lambda num_tokens: cost.seconds(1, num_tokens, 0),
        max_step_leaves=1 if strategy.max_width == 1 else section.max_step_leaves,
        spread=section.spread,
    )


def _wire(rtt_ms: float, jitter_ms: float) -> Wire:
    return Wire(rtt_ms / 2000, jitter_ms / 1000)
