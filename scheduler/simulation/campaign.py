"""Many schedules, and what they found together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from scheduler.core import Core
from scheduler.simulation.cell import MakeCore
from scheduler.simulation.schedule import run_schedule

MAX_FAILURES = 20  # that are kept with what was found


@dataclass(slots=True)
class Tally:
    schedules: int = 0
    lost: int = 0
    repeated: int = 0
    wrong: int = 0
    leaked: int = 0
    unended: int = 0
    broken: int = 0
    answers: int = 0  # requests that ended without an error
    failed: int = 0  # requests that ended with one, for a reason
    events: int = 0
    preemptions: int = 0
    failures: list[tuple[int, list[str]]] = field(default_factory=list)  # seeds, with what was found

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.repeated or self.wrong or self.leaked or self.unended or self.broken)

    def add(self, other: Tally) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        self.failures = sorted(self.failures)[:MAX_FAILURES]


def run_seeds(seeds: Iterable[int], make_core: MakeCore = Core) -> Tally:
    """In this process."""
    tally = Tally()
    for seed in seeds:
        verdict = run_schedule(seed, make_core)
        found = verdict.findings
        of_one = Tally(
            schedules=1,
            lost=found.lost,
            repeated=found.repeated,
            wrong=found.wrong,
            leaked=found.leaked,
            unended=found.unended,
            broken=found.broken,
            answers=verdict.num_answers,
            failed=verdict.num_failed,
            events=verdict.num_events,
            preemptions=verdict.num_preemptions,
            failures=[(seed, found.what)] if found.num else [],
        )
        tally.add(of_one)
    return tally
