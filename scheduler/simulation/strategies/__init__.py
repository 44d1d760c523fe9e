"""Known ways to speculate, each as a policy, a shape of drafts, and how far drafters may run ahead.

plain        no drafter
sequential   draft a chain, then verify it
groups       two groups in turn: one drafts a chain while the other is verified (MineDraft)
run-ahead    trees of a fixed size, drafted also below what is being verified; nobody waits (SSD)
outrider     the price
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from scheduler.policy.policy import Policy
from scheduler.policy.price import Price
from scheduler.simulation.scenario import Scenario
from scheduler.simulation.strategies.fixed import Fixed

NAMES = ("plain", "sequential", "groups", "run-ahead", "outrider")
BEST_FIXED = "best-fixed"  # stands for all of `fixed_shapes`, and then for the best of them

_SHAPES = (1, 2, 3, 5, 8, 16)  # nodes of a row in a pass
_PACES = (  # waits, groups, run-ahead
    (True, 1, 3),
    (True, 2, 1),
    (True, 2, 3),
    (False, 1, 3),
    (False, 2, 3),
)


@dataclass(frozen=True, slots=True)
class Strategy:
    name: str
    max_nodes: int  # of a row in a pass; 0: nothing is drafted
    run_ahead: int = 1  # times max_nodes, that drafters may have standing
    is_priced: bool = False
    max_width: int | None = None  # children of a node; None: as many as the drafter has
    waits: bool = False
    num_groups: int = 1

    def make_policy(self) -> Policy:
        return Price() if self.is_priced else Fixed(self.max_nodes, waits=self.waits, num_groups=self.num_groups)


def strategy(name: str, scenario: Scenario) -> Strategy:
    """Raises KeyError for a name that is none."""
    length, ahead = scenario.strategies.draft_length, scenario.strategies.ahead_nodes
    core = scenario.core
    known = {
        "plain": Strategy(name, 0, is_priced=True),
        "sequential": Strategy(name, length, max_width=1, waits=True),
        "groups": Strategy(name, length, max_width=1, waits=True, num_groups=2),
        "run-ahead": Strategy(name, ahead, run_ahead=core.run_ahead),
        "outrider": Strategy(name, core.max_nodes, run_ahead=core.run_ahead, is_priced=True),
    }
    return known[name]


def fixed_shapes() -> Iterator[Strategy]:
    """All that somebody who sets draft lengths by hand may try: sizes, chains or trees, who waits, and whose turn."""
    for num_nodes, width, (waits, num_groups, run_ahead) in product(_SHAPES, (1, None), _PACES):
        shape = "a chain" if width == 1 else "a tree"
        how = f"{'waits' if waits else 'goes'}, {num_groups} in turn, ahead {run_ahead}"
        yield Strategy(
            f"{shape} of {num_nodes}, {how}",
            num_nodes,
            run_ahead=run_ahead,
            max_width=width,
            waits=waits,
            num_groups=num_groups,
        )
