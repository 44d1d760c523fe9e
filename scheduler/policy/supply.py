"""What the scheduler has learned of the drafters of each name, for worth.py: how good their nodes are, how fast they
come, and how many rows want them.

Of the verdicts of a pass one is looked at, each time another row's: it costs next to nothing, and the means are those
of all rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from math import exp

import numpy as np
from numpy.typing import NDArray

from scheduler.policy.worth import DraftPace, Drafts, Lack, Load, Pool, Worth, worth_of
from scheduler.request import DrafterView, Request

LOAD_MEMORY_S = 5.0  # over which the number of rows is averaged
LEAST_ROWS = 0.05  # that may use a pool, in the mean; with fewer nothing runs, and nothing is worth anything
FORGOTTEN_AFTER_S = 900.0  # without a drafter, what is known of a pool: it is tried again
_MEMORY = 1 / 128  # of a row, or a report, among those before it
_SLOW_MEMORY = 1 / 16384  # of a report among those with other numbers of rows
_NUM_BINS = 12  # of numbers of rows, that double
_MIN_REPORTS = 8  # of a drafter, before its pace is known
_EXACT = 1e-6  # of the squares: an error that is none
_SIMPLER = 1.02  # a pace with another part must explain the reports by so much better


class Supply:
    def __init__(self) -> None:
        self._pools: defaultdict[str, _Learned] = defaultdict(_Learned)
        self._rows = _Mean()
        self._num_verdicts = 0

    # ── what is measured ────────────────────────────────────────────────────────────────────────────

    def note_rows(self, num_rows: int, now_s: float) -> None:
        """So many rows run from now on."""
        self._rows.note(num_rows, now_s)

    def note_verdict(self, request: Request) -> None:
        """The target has chosen below this request's root: what had been drafted there, in time for the pass or not."""
        self._num_verdicts += 1
        if self._num_verdicts % max(self._rows.number, 1):
            return
        for name in request.drafters:
            self._pools[name].note_drafts(name, request)
        for name, pool in self._pools.items():
            pool.share += _MEMORY * (request.new.may_use(name) - pool.share)

    def note_report(self, view: DrafterView, num_nodes: int, seconds: float) -> None:
        """So many nodes had come so long after their order, which may be out of date by now: a drafter with too many
        rows is always late, and that is to be known too."""
        self._pools[view.drafter].pace.learn(num_nodes, view.health.num_requests, seconds)

    # ── what it comes to ────────────────────────────────────────────────────────────────────────────

    def worth(
        self,
        num_drafters: Mapping[str, int],
        seconds: NDArray[np.float64],
        gap_s: float,
        now_s: float,
        most: int,
        num_groups: int = 1,
    ) -> dict[str, Worth | Lack]:
        """Of the drafters of each name, if there were so many, and with up to `most`; or why that is not known.

        `seconds` and `gap_s` are those of each of `num_groups` target groups."""
        num_rows = self._rows.at(now_s)
        result: dict[str, Worth | Lack] = {}
        for name, count in num_drafters.items():
            learned = self._known(name, count, now_s)
            load = Load(seconds, gap_s, num_rows, num_rows * learned.share, num_groups)
            if load.num_drafted < LEAST_ROWS:
                result[name] = Worth(count, (0.0,) * (max(most, count + 1) + 1))
                continue
            pool = self._pool(name, learned, num_drafters, load.num_drafted)
            result[name] = worth_of(pool, count, load, most) if isinstance(pool, Pool) else pool
        return result

    def _known(self, name: str, count: int, now_s: float) -> _Learned:
        """What is known of a pool, unless it has had no drafter for so long that its texts may be others by now."""
        learned = self._pools[name]
        if count:
            learned.seen_s = now_s
        elif now_s - learned.seen_s > FORGOTTEN_AFTER_S:
            learned = self._pools[name] = _Learned()
            learned.seen_s = now_s
        return learned

    def _pool(self, name: str, learned: _Learned, counts: Mapping[str, int], num_drafted: float) -> Pool | Lack:
        pace, survivals = learned.pace.fitted(), learned.survivals.extended()
        if pace is None:
            return Lack.NO_DRAFTS
        if survivals is None:
            return Lack.NEVER_IN_TIME
        without = learned.without.extended()
        ready_s = [
            theirs.ready_s(np.arange(len(survivals)), num_drafted / count)
            for other, count in counts.items()
            if other != name and count and (theirs := self._pools[other].pace.fitted()) is not None
        ]
        if without is None or not ready_s:
            return Pool(survivals, pace)
        return Pool(survivals, pace, Drafts(without, np.min(ready_s, axis=0)))


class _Learned:
    """Of the drafters of one name."""

    def __init__(self) -> None:
        self.pace = PaceLearning()
        self.survivals = _Ranks()  # of a row's nodes, its own among them
        self.without = _Ranks()  # of those that others have proposed
        self.share = 1.0  # of the rows that may use it
        self.seen_s = 0.0  # when it last had drafters

    def note_drafts(self, name: str, request: Request) -> None:
        candidates = request.candidates()
        max_nodes = request.new.max_nodes
        if not any(name in node.votes for node in candidates.nodes):
            return
        self.survivals.learn(candidates.survivals, max_nodes)
        both = zip(candidates.nodes, candidates.survivals.tolist(), strict=True)
        others = [survival for node, survival in both if node.votes.keys() != {name}]
        self.without.learn(others, max_nodes)


class PaceLearning:
    """Seconds from an order to so many of its nodes, by the rows that the drafter serves meanwhile: least squares,
    in which old reports fade. Those with other numbers of rows fade slowly, since they are what tells time for each row
    from time for all.
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[int, list[float]]] = {}  # by bin of rows: when it was last added to, and its sums
        self._num_reports = 0

    def learn(self, num_nodes: int, num_rows: int, seconds: float) -> None:
        """Some microseconds: a busy cell has thousands of reports a second."""
        rows = max(num_rows, 1)
        where = min(rows.bit_length() - 1, _NUM_BINS - 1)
        self._num_reports += 1
        nodes, of_rows = float(num_nodes), float(num_nodes * rows)
        new = [1.0, nodes, of_rows, seconds]
        new += [
            nodes * nodes,
            nodes * of_rows,
            nodes * seconds,
            of_rows * of_rows,
            of_rows * seconds,
            seconds * seconds,
        ]
        before = self._sums.get(where)
        if before is not None:
            fading = (1 - _MEMORY) * (1 - _SLOW_MEMORY) ** (self._num_reports - before[0])
            new = [fading * old + each for old, each in zip(before[1], new, strict=True)]
        self._sums[where] = self._num_reports, new

    def _faded(self) -> NDArray[np.float64]:
        """Sums over all reports of the products of (1, nodes, nodes · rows, seconds) with each other: [4, 4]."""
        total = sum(
            (1 - _SLOW_MEMORY) ** (self._num_reports - last) * np.array(sums) for last, sums in self._sums.values()
        )
        products = np.zeros((4, 4))
        products[np.triu_indices(4)] = total
        return np.maximum(products, products.T)  # none is negative

    def fitted(self) -> DraftPace | None:
        """The pace that explains the reports best, all its parts being at least 0.

        While the number of rows has been the same, nothing tells time for each row from time for all: it is put down
        to the rows. A drafter too many is then seen to bring little and goes; one that is missing would not be seen.
        """
        if self._num_reports < _MIN_REPORTS:
            return None
        sums = self._faded()
        products, with_seconds, squares = sums[:3, :3], sums[:3, 3], float(sums[3, 3])
        best, best_error = np.zeros(3), squares
        for size in (1, 2, 3):
            for parts in sorted(combinations((2, 0, 1), size), key=lambda parts: 1 in parts):
                chosen, solution = list(parts), np.zeros(3)
                inner = products[np.ix_(chosen, chosen)]
                solution[chosen] = np.linalg.lstsq(inner, with_seconds[chosen], rcond=None)[0]
                error = max(
                    float(squares - 2 * solution @ with_seconds + solution @ products @ solution), _EXACT * squares
                )
                if (solution >= 0).all() and error * _SIMPLER < best_error:
                    best, best_error = solution, error
        return DraftPace(*(float(part) for part in best))


class _Ranks:
    """Mean survivals of rows' nodes, by rank; of each rank over the rows that had it."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._nums: list[int] = []
        self._max_nodes = 0

    def learn(self, survivals: Iterable[float], max_nodes: int) -> None:
        self._max_nodes = max(self._max_nodes, max_nodes)
        for rank, survival in enumerate(survivals):
            if rank == len(self._means):
                self._means.append(0.0)
                self._nums.append(0)
            self._nums[rank] += 1
            weight = max(_MEMORY, 1 / self._nums[rank])
            self._means[rank] += weight * (float(survival) - self._means[rank])

    def extended(self) -> NDArray[np.float64] | None:
        """[max_nodes + 1], never rising; beyond those that were seen each falls as the last of them did. None: none
        was seen."""
        if not self._means or not self._max_nodes:
            return None
        known = np.minimum.accumulate(np.clip(self._means, 0.0, 1.0))
        above = known[-2] if len(known) > 1 else 1.0
        fall = known[-1] / above if above > 0 else 0.0
        missing = np.arange(1, max(self._max_nodes + 1 - len(known), 0) + 1)
        return np.concatenate([known, known[-1] * fall**missing])[: self._max_nodes + 1]


class _Mean:
    """Of a number that changes at known times, with an exponential memory of LOAD_MEMORY_S, from the first one on."""

    def __init__(self) -> None:
        self._sum, self._weight = 0.0, 0.0  # of numbers by time
        self.number, self._since_s = 0, 0.0

    def note(self, number: int, now_s: float) -> None:
        if self._weight or self.number:
            self._sum, self._weight = self._until(now_s)
        self.number, self._since_s = number, now_s

    def at(self, now_s: float) -> float:
        total, weight = self._until(now_s)
        return total / weight if weight else float(self.number)

    def _until(self, now_s: float) -> tuple[float, float]:
        old = exp(-max(now_s - self._since_s, 0.0) / LOAD_MEMORY_S)
        return old * self._sum + (1 - old) * self.number, old * self._weight + 1 - old
