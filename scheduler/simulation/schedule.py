"""One seeded schedule: a small cell, a few requests, and what goes wrong with them, from beginning to rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from random import Random

from scheduler.core import Core, CoreConfig
from scheduler.events import PassCost, TargetFacts
from scheduler.service_class import BY_URGENCY
from scheduler.simulation.cell import Cell, CellModel, MakeCore
from scheduler.simulation.client import Client, Question
from scheduler.simulation.drafter import DrafterModel
from scheduler.simulation.guessing import GuessModel
from scheduler.simulation.law import Law
from scheduler.simulation.link import Wire
from scheduler.simulation.mischief import Mischief
from scheduler.simulation.oracle import Findings, excuse_unanswered, judge
from scheduler.simulation.target import TargetModel
from scheduler.simulation.trace import Trace

MAX_EVENTS = 20_000  # of the core; a schedule of this size takes some hundreds
PASS_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a schedule."""

    seed: int
    findings: Findings
    num_events: int
    num_answers: int  # of requests that ended without an error
    num_failed: int  # of requests that ended with an error, for a reason
    num_preemptions: int  # of those that came to an end in the scheduler's core


def run_schedule(seed: int, make_core: MakeCore = Core, trace: Trace | None = None) -> Verdict:
    """The same for the same seed, in every process. What the core raises is a finding."""
    rng = Random(seed)
    model, findings = draw_cell(rng), Findings()
    cell = Cell(model, rng, make_core, trace)
    cell.start()
    mischief = Mischief(cell, rng, model.core.pass_timeout_s)
    mischief.arm()
    horizon_s = rng.choice([0.5, 2.0, 8.0])
    for _ in range(rng.randint(1, 6)):
        question, at_s = draw_question(rng, model), rng.uniform(0, 0.7 * horizon_s)
        leader = cell.expect(question, at_s, partial(_note_end, cell))
        if rng.random() < 0.1:
            cell.expect(replace(question, seed=question.seed + 1), at_s, partial(_note_end, cell), leader)
    mischief.plan(horizon_s, rng.choice([0.05, 0.2, 1.0]))
    num_events = _run(cell, findings)
    judge(cell, findings)
    errors = [client for client in cell.clients if client.error is not None]
    num_answers = sum(client.is_over and client.error is None and not client.has_vanished for client in cell.clients)
    num_preemptions = sum(each.finish.stats.num_preemptions for each in cell.clients if each.finish is not None)
    return Verdict(seed, findings, num_events, num_answers, len(errors), num_preemptions)


def _note_end(cell: Cell, client: Client) -> None:
    if cell.scheduler is not None:
        excuse_unanswered(client, cell.scheduler.num_resets)


def _run(cell: Cell, findings: Findings) -> int:
    """Until nothing will happen any more, or too much has."""
    num_steps = 0
    try:
        while cell.agenda.step():
            num_steps += 1
            if num_steps >= MAX_EVENTS:
                findings.note("broken", f"no rest after {MAX_EVENTS} events")
                break
    except Exception as error:  # noqa: BLE001 - whatever a core raises is what is looked for
        findings.note("broken", f"{type(error).__name__}: {error}")
    return num_steps


# ── what a schedule is about ────────────────────────────────────────────────────────────────────────


def draw_cell(rng: Random) -> CellModel:
    law = Law(vocab_size=rng.choice([3, 7, 50]), end_every=rng.choice([0, 8, 40]))
    facts = TargetFacts(
        vocab_size=law.vocab_size,
        block_size=rng.choice([1, 4, 16]),
        num_kv_blocks=rng.choice([24, 64, 400]),
        max_pass_tokens=rng.choice([4, 12, 40]),
        pass_costs=rng.choice([(), (PassCost(1, 0, 0.02), PassCost(40, 0, rng.choice([0.021, 0.2])))]),
    )
    slope_s = rng.choice([0.0, 0.0, 0.001, 0.02])
    names = [f"d{i}" for i in range(rng.randint(1, 2))]
    workers = {
        f"w{i}": [_draw_drafter(rng, name, law) for name in rng.sample(names, rng.randint(1, len(names)))]
        for i in range(rng.choice([0, 1, 2, 2, 3]))
    }
    core = CoreConfig(
        max_running_requests=rng.choice([1, 3, 8]),
        pass_timeout_s=PASS_TIMEOUT_S,
        draft_wait_s=rng.choice([None, None, 0.05, 0.5]),  # those that wait have drafts in most passes
        run_ahead=rng.choice([1, 3]),
    )
    return CellModel(
        law=law,
        target=TargetModel(
            facts, lambda _, num_tokens, *__: 0.02 + slope_s * num_tokens, spread=rng.choice([0.0, 0.5])
        ),
        workers=workers,
        core=core,
        target_wire=_draw_wire(rng),
        drafter_wire=_draw_wire(rng),
        max_queued_requests=rng.choice([2, 100]),
        num_target_groups=rng.choice([1, 1, 2, 2, 3]),
    )


def draw_question(rng: Random, model: CellModel) -> Question:
    """At times one that no cache could hold, none that the admission would refuse."""
    speculates = rng.random() < 0.85
    return Question(
        seed=rng.randrange(1 << 32),
        prompt=[rng.randrange(model.law.vocab_size) for _ in range(rng.choice([1, 3, 10, 30]))],
        max_tokens=rng.randint(1, 24),
        end_token_ids=frozenset({model.law.end_token} if rng.random() < 0.8 else ()),
        max_nodes=rng.randint(1, 8),
        speculates=speculates,
        is_drawn_for=rng.random() < 0.1,
        wants_logprobs=rng.random() < 0.1,
        deadline_s=rng.choice([0.2, 1.0, 5.0]) if rng.random() < 0.15 else None,
        vanishes_s=rng.choice([0.0, 0.1, 1.0]) * rng.random() if rng.random() < 0.15 else None,
        stops_after=rng.randint(1, 8) if rng.random() < 0.1 else None,
        service_class=rng.choice(BY_URGENCY),
        tenant=rng.choice(["", "a", "b"]),
    )


def _draw_drafter(rng: Random, name: str, law: Law) -> DrafterModel:
    first = rng.choice([0.0, 0.8, 1.0, 1.0])
    step_s = rng.choice([0.001, 0.001, 0.02, 0.3])
    others = [0.5 * (1 - first), 0.2 * (1 - first)][: min(rng.randint(0, 2), law.vocab_size - 2)]
    guess = GuessModel([first, *others], by_depth=rng.choice([1.0, 0.8]), salt=rng.randint(1, 9))
    draws = rng.random() < 0.5
    return DrafterModel(name, guess, lambda num_tokens: step_s + 0.0002 * num_tokens, draws=draws, spread=0.3)


def _draw_wire(rng: Random) -> Wire:
    return Wire(rng.choice([0.0001, 0.005, 0.05]), jitter_s=rng.choice([0.0, 0.01, 0.2]))
