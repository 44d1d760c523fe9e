"""Exact laws: a random procedure is run once for each way in which its decisions can fall."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from fractions import Fraction
from typing import Any, TypeVar

Outcome = TypeVar("Outcome", bound=Hashable)


class Branching:
    """Decisions that follow a script as far as it goes, and take the first possible option from there on."""

    def __init__(self, script: list[int]) -> None:
        self.script = script
        self.taken: list[int] = []  # which option, of each decision
        self.options: list[list[tuple[Any, Fraction]]] = []
        self.probability = Fraction(1)

    def accepts(self, probability: Any) -> bool:
        accepted: bool = self._decide([(True, Fraction(probability)), (False, 1 - Fraction(probability))])
        return accepted

    def pick(self, weights: Any) -> int:
        total = sum(weights)
        index: int = self._decide([(i, Fraction(weight) / total) for i, weight in enumerate(weights)])
        return index

    def _decide(self, options: list[tuple[Any, Fraction]]) -> Any:
        assert all(probability >= 0 for _, probability in options)
        possible = [option for option in options if option[1] > 0]
        at = len(self.taken)
        choice = self.script[at] if at < len(self.script) else 0
        self.taken.append(choice)
        self.options.append(possible)
        value, probability = possible[choice]
        self.probability *= probability
        return value


def law_of(procedure: Callable[[Branching], Outcome]) -> dict[Outcome, Fraction]:
    """The probability of each outcome. The procedure decides by its argument alone."""
    law: dict[Outcome, Fraction] = defaultdict(Fraction)
    scripts: list[list[int]] = [[]]
    while scripts:
        script = scripts.pop()
        branch = Branching(script)
        law[procedure(branch)] += branch.probability
        for at in range(len(script), len(branch.taken)):
            scripts += [[*branch.taken[:at], other] for other in range(1, len(branch.options[at]))]
    assert sum(law.values()) == 1
    return dict(law)
