"""Which nodes are worth their pass time: one price for all rows (DSpark, arXiv 2607.05147, and vLLM's PR 47808 choose
chains like this; here it is trees).

Of N rows that commit a token each, and nodes with survivals S, take those that maximise

    (N + sum of w · S) / V(tokens without nodes + number of nodes)

where w is what a token of the node's row is worth, 1 in the mean: rows may be of several service classes. For any
number of nodes the best ones are those of the highest w · S, and that never rises along a path, so they are connected:
sort once, and look at every number.

Of a row that is sent ahead of a verdict, a node is computed only where the verdict leaves it: with that chance it takes
its time, and those come first that bring most tokens for it.

Where a prompt is in the pass the best ratio is low, and nodes would look cheap: but the time that they add is worth
what passes without prompts bring, and there they can be verified as well. Then it is the nodes that maximise

    N + sum of w · S - price · V(tokens without nodes + number of nodes)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STEP = 4  # nodes over which the slope of V is taken: the profile has corners


@dataclass(frozen=True, slots=True)
class Selection:
    num_nodes: NDArray[np.int64]  # [num_rows]: so many of each row's nodes, the likeliest
    gains: NDArray[np.float64]  # [num_rows]: tokens that these are expected to bring, not weighted
    num_expected: NDArray[np.float64]  # [num_rows]: of these, how many should be computed
    price: float  # weighted tokens a second: what the pass is expected to bring
    min_survival: float  # of a node that would be worth its time, in a row of weight 1
    gain: float  # weighted tokens that the nodes are expected to bring
    pass_s: float


def select(
    survivals: Sequence[NDArray[np.float64]],  # of each row's nodes; by its share never rising
    num_choosing: int,  # rows that commit a token in any case
    num_tokens: int,  # of all rows, without nodes
    seconds: NDArray[np.float64],  # V(n) for n = 0 … the most that a pass may have
    weights: NDArray[np.float64] | None = None,  # [num_rows], of each row's tokens; their mean is 1. None: all are 1
    *,
    shares: Sequence[NDArray[np.float64]] | None = None,  # of each row's nodes: the chance that it is computed
    min_price: float = 0.0,  # weighted tokens a second: what time is worth in any case, however few this pass brings
) -> Selection:
    lengths = np.array([len(row) for row in survivals], dtype=np.int64)
    values = chances = np.concatenate([*survivals, np.empty(0)])
    if weights is not None:
        values = chances * np.repeat(weights, lengths)
    costs = None if shares is None else np.concatenate([*shares, np.empty(0)])
    # Whichever comes first of equals: a row's nodes are taken in the row's own order.
    order = np.argsort(-values if costs is None else -values / costs)[: max(len(seconds) - 1 - num_tokens, 0)]
    gains = np.concatenate([[0.0], np.cumsum(values[order])])
    if costs is None:
        sizes = np.arange(num_tokens, num_tokens + len(gains), dtype=np.float64)
        times = seconds[num_tokens : num_tokens + len(gains)]
    else:
        sizes = num_tokens + np.concatenate([[0.0], np.cumsum(costs[order])])
        times = np.interp(sizes, np.arange(len(seconds)), seconds)
    rates = (num_choosing + gains) / times
    best = int(np.argmax(rates)) if num_choosing else 0
    price = max(float(rates[best]), min_price)
    if num_choosing and price > rates[best]:
        best = int(np.argmax(gains - price * times))
    taken = order[:best]
    owners = np.repeat(np.arange(len(survivals)), lengths)[taken]
    above = min(int(sizes[best]) + _STEP, len(seconds) - 1)
    slope = (seconds[above] - times[best]) / max(above - sizes[best], 1)
    return Selection(
        num_nodes=np.bincount(owners, minlength=len(survivals)),
        gains=_sums(owners, chances[taken], len(survivals)),
        num_expected=_sums(owners, np.ones(best) if costs is None else costs[taken], len(survivals)),
        price=float(rates[best]),
        min_survival=float(min(price * slope, 1.0)),
        gain=float(gains[best]),
        pass_s=float(times[best]),
    )


def _sums(owners: NDArray[np.int64], values: NDArray[np.float64], num_owners: int) -> NDArray[np.float64]:
    return np.bincount(owners, values, num_owners).astype(np.float64)
