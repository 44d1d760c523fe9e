"""Whether drafting pays at all: measured, by leaving it for a while.

The price knows what it takes to verify nodes. It does not know what else drafts cost a target: the memory bandwidth,
the cache and the cores that drafters on the same machine take from it, and the scheduler's own work for them. So how
fast the target group is with drafts is compared with how fast it is where no drafter works, of late:

    speed = seconds that plain decoding would take for what passes bring / seconds that they take, and those between

Plain decoding is taken at its best, by the profile; loads whose number of rows doubles are apart. What nodes bring is
what was expected of them, by how often that came true over a long time: what a few passes really bring is chance.

Drafting is left, on trial, only where plain decoding might be faster. And it is tried again where it has been left. The
more often a trial changes nothing, the rarer they are.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from scheduler.policy.policy import Expected

MIN_ADVANTAGE = 1.02  # of a change: both sides are guesses
CLEAR = 1.25  # times as fast as plain decoding can be by its profile, which may be this wrong: nothing is left to try
NOT_URGENT = 512  # passes with drafts: so long, what looks better than plain decoding needs no trial
NUM_TRIED, NUM_CERTAIN = 16, 4  # passes that are measured in a trial; and where it is clearly worse
SETTLING, SETTLING_AT_MOST = 6, 128  # passes behind a change that aren't: until drafts have come, or are used up
TRIED_AFTER, TRIED_AFTER_AT_MOST = 32, 4096  # passes
_OVERLAP = 1.5  # of loads
_MEMORY = 1 / 32  # of a pass among those before it, with drafts or without
_TRUTH_MEMORY = 1 / 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """A pass of rows that drafters may draft for."""

    expected: Expected
    num_chosen: int
    num_running: int  # rows of the target group, in this pass or not
    seconds: float  # of the pass, and between the one before and it, while rows wanted one
    alone_s: float  # that the pass would take without nodes
    token_s: float  # that plain decoding takes for a token


class Payoff:
    def __init__(self) -> None:
        self._loads: defaultdict[int, _AtLoad] = defaultdict(_AtLoad)  # by the number of rows, in doublings
        self._doubling = 0  # of the load now
        self._expected = self._came = 0.0  # tokens of nodes, in the mean of a pass

    @property
    def drafts_pay(self) -> bool:
        """Whether drafters are to be asked now."""
        return self._loads[self._doubling].is_drafting

    @property
    def is_left(self) -> bool:
        """Whether drafting has been found not to pay: not only on trial."""
        load = self._loads[self._doubling]
        return load.is_drafting == load.is_trial

    def note_pass(self, measured: Measured) -> None:
        if not self._is_still(measured.num_running):
            self._doubling = measured.num_running.bit_length() - 1
            self._loads[self._doubling].settle()
        expected = measured.expected
        self._expected += _TRUTH_MEMORY * (expected.gain - self._expected)
        self._came += _TRUTH_MEMORY * (measured.num_chosen - expected.num_choosing - self._came)
        truth = max(self._came / self._expected, 0.0) if self._expected > 0 else 1.0  # rows may fail: below none come
        worth_s = measured.alone_s + truth * expected.gain * measured.token_s
        self._loads[self._doubling].note_pass(worth_s, measured)

    def _is_still(self, num_running: int) -> bool:
        """A load that is at a border is on one side of it."""
        least = 1 << self._doubling
        return least / _OVERLAP <= num_running < 2 * least * _OVERLAP


@dataclass(slots=True)
class _Speed:
    worth_s: float = 0.0  # of a pass: what plain decoding takes for the same
    seconds: float = 0.0
    num: int = 0

    def note(self, worth_s: float, seconds: float) -> None:
        self.num += 1
        weight = max(_MEMORY, 1 / self.num)
        self.worth_s += weight * (worth_s - self.worth_s)
        self.seconds += weight * (seconds - self.seconds)

    @property
    def value(self) -> float:
        return self.worth_s / max(self.seconds, 1e-9)


@dataclass(slots=True)
class _AtLoad:
    is_drafting: bool = True
    is_trial: bool = False
    num_settling: int = 0  # passes since the change
    is_settled: bool = False
    num_left: int = TRIED_AFTER  # passes until the next change
    tried_after: int = TRIED_AFTER
    speeds: dict[bool, _Speed] = field(default_factory=lambda: {False: _Speed(), True: _Speed()})

    def settle(self) -> None:
        """What is under way now, or drafted, is of a time before."""
        self.num_settling, self.is_settled = 0, False

    def note_pass(self, worth_s: float, measured: Measured) -> None:
        if not self._has_settled(has_drafts=measured.expected.has_drafts):
            return
        speed = self.speeds[self.is_drafting]
        speed.note(worth_s, measured.seconds)
        self.num_left -= 1
        is_hopeless = self.is_trial and self._advantage < 1 / CLEAR and self.num_left <= NUM_TRIED - NUM_CERTAIN
        if self.num_left > 0 and not is_hopeless:
            return
        if self.is_trial:
            self._judge()
        elif self.is_drafting and speed.value >= (CLEAR if speed.num >= NOT_URGENT else MIN_ADVANTAGE):
            self.num_left = self.tried_after
        else:
            self._change(is_trial=True, num_left=NUM_TRIED)

    def _has_settled(self, *, has_drafts: bool) -> bool:
        if not self.is_settled:
            self.num_settling += 1
            lacks_drafts = self.is_drafting and not has_drafts and self.num_settling < SETTLING_AT_MOST
            self.is_settled = self.num_settling > SETTLING and not lacks_drafts
        return self.is_settled

    def _judge(self) -> None:
        """A trial is over: it goes on like that, or back."""
        rarer = 2 if 1 / CLEAR < self._advantage < CLEAR else 8
        if self._advantage >= MIN_ADVANTAGE:
            self.tried_after = TRIED_AFTER * rarer // 2
            self.is_trial, self.num_left = False, self.tried_after
        else:
            self.tried_after = min(rarer * self.tried_after, TRIED_AFTER_AT_MOST)
            self._change(is_trial=False, num_left=self.tried_after)

    @property
    def _advantage(self) -> float:
        """Of drafting as it does now, over not doing so."""
        return self.speeds[self.is_drafting].value / self.speeds[not self.is_drafting].value

    def _change(self, *, is_trial: bool, num_left: int) -> None:
        self.is_drafting = not self.is_drafting
        self.is_trial, self.num_left = is_trial, num_left
        self.settle()
