"""What a drafter is worth: the tokens a second that the cell gains by one more of a pool, or loses by one fewer.

It is the price's own model (selection.py), asked for drafters that are not there. With k drafters each serves
R = rows/k requests, so a row has m nodes below a new root after

    D(m) = round trip + m · (seconds a node + seconds a node and row · R)

which is what more drafters shorten. N rows run, n of them with drafts; S(i) is the survival of a row's i-th likeliest
node, P(m) the sum of the first m, and gap what the target idles between two passes with the same rows. A round brings

    waiting    (N + n · P(m))     by   V(N + n·m) + gap + D(m)              draft, then verify
    in turn    (N + n · P(m))     by   max(2 · V(half), V(half) + gap + D(m))        two groups
    ahead      (N + n · H · P(m)) by   max(V(N + n·H·m) + gap, D(m))        drafted while the pass runs

tokens by seconds, where H is the share of rows whose tree outlives the verdict: a row without nodes finds some if its
next token was the first guess, S(1); one with m nodes, if the walk ends before a node that is there, S(m + 1):

    H = S(1) / (1 + S(1) - S(m + 1))

Goodput with k drafters is the best of these over all m, m = 0 being plain decoding. Above 1, m need not be whole: some
rows have a node more than others. Below it must: a drafter steps for all of its rows at once, so one with too many has
none for anybody in time. The figure is there to tell whether a drafter pays, not to predict a benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

_PARTS = 8  # of a node that are told apart


@dataclass(frozen=True, slots=True)
class DraftPace:
    """How fast one drafter drafts."""

    round_trip_s: float  # from an order to its first nodes, but for drafting them
    node_s: float  # of each node of a row, however many rows it drafts for
    node_row_s: float  # of each node of a row, for each row that it drafts for

    def ready_s(self, num_nodes: NDArray[np.int64], num_rows: float) -> NDArray[np.float64]:
        """Seconds from an order until so many nodes are there, with so many rows on the drafter; 0 for none."""
        seconds = self.round_trip_s + num_nodes * (self.node_s + self.node_row_s * max(num_rows, 1.0))
        return np.where(num_nodes > 0, seconds, 0.0)


@dataclass(frozen=True, slots=True)
class Drafts:
    """What a row gets."""

    survivals: NDArray[np.float64]  # [max_nodes + 1], never rising; the last one only follows, it is not verified
    ready_s: NDArray[np.float64]  # [max_nodes + 1]: from an order until 0, 1, … max_nodes are there


@dataclass(frozen=True, slots=True)
class Load:
    """The target groups, one like the other, and their rows, in the mean of late."""

    seconds: NDArray[np.float64]  # V(n) for n = 0 … the most that a pass may have
    gap_s: float
    num_rows: float  # of all groups
    num_drafted: float  # rows that may use the pool
    num_groups: int = 1


@dataclass(frozen=True, slots=True)
class Pool:
    """What was learned of the drafters of one name."""

    survivals: NDArray[np.float64]  # of a row's nodes while it drafts, as in Drafts
    pace: DraftPace
    without: Drafts | None = None  # what rows get from other pools; None: nothing


@dataclass(frozen=True, slots=True)
class Worth:
    """Tokens a second of the whole cell by the number of a pool's drafters."""

    num_drafters: int  # that there are
    goodputs: tuple[float, ...]  # with 0, 1, 2, … of them, and with at least one more than there are

    @property
    def goodput(self) -> float:
        return self.goodputs[self.num_drafters]

    @property
    def of_one_more(self) -> float:
        return self.goodputs[self.num_drafters + 1] - self.goodput

    @property
    def of_the_last(self) -> float:
        """What one fewer would lose; 0 where there is none."""
        return self.goodput - self.goodputs[max(self.num_drafters - 1, 0)]

    def of_nothing(self) -> Worth:
        """Where it has been seen that decoding without drafts is faster, whatever was expected of them."""
        return Worth(self.num_drafters, self.goodputs[:1] * len(self.goodputs))


class Lack(Enum):
    """Why nothing can be said of a pool's worth."""

    NO_DRAFTS = "nothing has been drafted yet"
    NEVER_IN_TIME = "its drafts have never come in time for a pass"
    NO_PRICE = "the scheduler waits for drafts by a fixed time, and prices nothing"

    def of_nothing(self) -> Lack:
        return self


def worth_of(pool: Pool, num_drafters: int, load: Load, most: int = 0) -> Worth:
    """`most`: the largest number of drafters to look at, if it is more than one above what there are."""
    numbers = range(max(most, num_drafters + 1) + 1)
    return Worth(num_drafters, tuple(goodput(pool, number, load) for number in numbers))


def goodput(pool: Pool, num_drafters: int, load: Load) -> float:
    """Tokens a second with so many drafters of the pool. 0 where nothing runs."""
    if load.num_rows <= 0:
        return 0.0
    without = best_rate(pool.without or _NOTHING, load)
    if num_drafters == 0:
        return without
    numbers = np.arange(len(pool.survivals))
    ready_s = pool.pace.ready_s(numbers, load.num_drafted / num_drafters)
    return max(without, best_rate(Drafts(pool.survivals, ready_s), load))


def best_rate(drafts: Drafts, load: Load) -> float:
    """Tokens a second in the best way to run a round, with the best number of nodes."""
    rows, drafted, gap_s = load.num_rows / load.num_groups, load.num_drafted / load.num_groups, load.gap_s
    whole_numbers = np.arange(len(drafts.survivals))
    nodes = np.concatenate([[0.0], np.arange(_PARTS, whole_numbers[-1] * _PARTS + 1) / _PARTS])
    gains = np.interp(nodes, whole_numbers, np.concatenate([[0.0], np.cumsum(drafts.survivals[:-1])]))
    ready_s = np.interp(nodes, whole_numbers, drafts.ready_s)
    first = drafts.survivals[0]
    hits = first / (1 + first - np.interp(nodes, whole_numbers, drafts.survivals))
    whole = _pass_s(rows + drafted * nodes, load)
    half = _pass_s((rows + drafted * nodes) / 2, load) if rows >= 2 else np.full(len(nodes), np.inf)
    waiting = (rows + drafted * gains) / (whole + gap_s + ready_s)
    in_turn = (rows + drafted * gains) / np.maximum(2 * half, half + gap_s + ready_s)
    ahead_s = np.maximum(_pass_s(rows + drafted * hits * nodes, load) + gap_s, ready_s)
    ahead = (rows + drafted * hits * gains) / ahead_s
    return load.num_groups * float(max(waiting.max(), in_turn.max(), ahead.max()))


def _pass_s(num_tokens: NDArray[np.float64], load: Load) -> NDArray[np.float64]:
    """V, also between whole numbers; infinite for more than a pass may have."""
    most = len(load.seconds) - 1
    seconds: NDArray[np.float64] = np.interp(num_tokens, np.arange(most + 1), load.seconds)
    return np.where(num_tokens > most, np.inf, seconds)


_NOTHING = Drafts(np.zeros(1), np.zeros(1))
