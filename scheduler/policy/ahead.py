"""Whether the next pass is sent before the verdict on the one that runs, with the same rows in it.

The target then goes on at once, and commits at least a token a row; what it would idle between two passes, the round
trip and the scheduler's own work, is saved, and so is waiting for drafts. But nobody knows yet where the rows will come
out: only what has been drafted below the place where one does is verified (`Request.candidates_ahead`), and what would
come until the verdict is here, or is waited for, is not. So it is

    ahead     N + G            tokens in  V(with the nodes that are expected to be left)
    usual     N + G + more N'  tokens in  V(with those and the others) + gap + wait,  or two groups in turn (pace.py)

for N rows of which N' are in the pass that runs. How much more it is, and the wait, are as they were of late where
verdicts were waited for; the gap is as pace.py measures it. Time is worth the tokens that it usually brings, so the
pass goes ahead where fewer tokens are lost than the time saved would bring.

Now and then verdicts are waited for all the same, some in a row, since drafters are busy at other times then: at first
after 32 passes, and the rarer the more often that has changed nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_ADVANTAGE = 1.03  # of the saved time: both sides are guesses
TRIED_AFTER, TRIED_AFTER_AT_MOST = 32, 1024  # passes ahead
NUM_TRIED = 6  # passes in a row
_MEMORY = 64  # passes, of one request or of many: what a single one gains is nothing or much


@dataclass(frozen=True, slots=True)
class Draft:
    """What goes with a row, in the mean of a pass."""

    gain: float = 0.0  # tokens that the nodes bring
    num_nodes: float = 0.0

    def towards(self, other: Draft, weight: float) -> Draft:
        gain = self.gain + weight * (other.gain - self.gain)
        return Draft(gain, self.num_nodes + weight * (other.num_nodes - self.num_nodes))

    def less(self, other: Draft) -> Draft:
        return Draft(self.gain - other.gain, self.num_nodes - other.num_nodes)


class Ahead:
    def __init__(self) -> None:
        self.usual = Draft()  # of passes that had waited for their verdicts
        self.more = Draft()  # of these, than the same rows would have had ahead
        self.wait_s = 0.0  # of these, for drafts
        self._num_usual = self._num_compared = 0
        self._ahead: Draft | None = None  # what the rows would have had that are waiting for their verdicts now
        self._tried_after = TRIED_AFTER
        self._num_ahead = 0  # passes since verdicts were waited for
        self._num_to_try = NUM_TRIED  # passes that wait for their verdicts, whatever it costs

    @property
    def may_pay(self) -> bool:
        return self._num_compared > 0 and not self._num_to_try

    def note_ahead(self) -> None:
        self._num_ahead += 1
        if self._num_ahead == self._tried_after:
            self._num_ahead, self._num_to_try = 0, NUM_TRIED
            self._tried_after = min(2 * self._tried_after, TRIED_AFTER_AT_MOST)

    def note_left(self, draft: Draft) -> None:
        """The verdict is waited for; the pass would have had this, had it gone ahead."""
        self._ahead = draft
        if self._num_to_try:
            self._num_to_try -= 1
        else:
            self._tried_after = TRIED_AFTER

    def forget_left(self) -> None:
        self._ahead = None

    def note_usual(self, draft: Draft, wait_s: float) -> None:
        """A pass that had waited for its verdicts, and so long for drafts."""
        self._num_usual = min(self._num_usual + 1, _MEMORY)
        self.usual = self.usual.towards(draft, 1 / self._num_usual)
        self.wait_s += (wait_s - self.wait_s) / self._num_usual
        if self._ahead is not None:
            self._num_compared = min(self._num_compared + 1, _MEMORY)
            self.more = self.more.towards(draft.less(self._ahead), 1 / self._num_compared)
        self._ahead = None

    def pays(self, num_choosing: int, num_running: int, saved_s: float, usual_s: float) -> bool:
        """`num_running`: of the rows that choose, those in the pass that runs. `saved_s`: of a pass with all rows;
        `usual_s`: the usual round of the rows that choose, alone."""
        worth = num_choosing * (1 + self.usual.gain) / usual_s
        return num_running * self.more.gain <= worth * saved_s / MIN_ADVANTAGE
