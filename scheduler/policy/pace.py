"""One pass at a time with all rows in it, or two groups of rows that take turns at the target.

Two passes under way hide the round trip, and the drafting, behind the other group's pass: the target never waits
(MineDraft's alternating batches). But two half passes may take longer than a whole one, so it depends on the profile:

    together      T + f min(d, l T)              T = V(all) + gap
    in turn       U + f min(d - hidden, l U)     U = max(V(one) + V(other), V(the longer one) + gap)

`gap` is what the target idles between a pass and the next one with the same rows: the round trip and the scheduler's
own work, measured while one pass at a time ran. In a share f of the rounds there are rows under whose root nothing has
been drafted. Their drafts take d from the verdict on; a round that does not wait for them loses the share l of its
tokens, verifying them paid for. What a turn hides of d is the other group's pass, less the gap: a drafter that is
slower than that gains nothing by it.
"""

from __future__ import annotations

from collections.abc import Callable

MIN_ADVANTAGE = 1.03  # of a change of pace: both sides are guesses
_SMOOTHING = 0.1
_MARGIN = 0.15  # of a pass: the next one is sent so much before it must, since times are guesses


class Pace:
    def __init__(self) -> None:
        self.turnaround_s = 0.0  # between a pass and the next at the target, when nothing is waited for
        self._empty_share = 0.0  # of the rounds: some row had no draft
        self._draft_s = 0.0  # how long that would have taken
        self._lost_share = 0.0  # of the round's tokens, for not waiting
        self._is_in_turn = False
        self._is_measured = False

    def note_turnaround(self, seconds: float) -> None:
        """Measured between two passes of which the second was sent when the first was back."""
        weight = _SMOOTHING if self._is_measured else 1.0
        self.turnaround_s += weight * (max(seconds, 0.0) - self.turnaround_s)
        self._is_measured = True

    def note_drafts(self) -> None:
        """A round in which every row had its draft."""
        self._empty_share -= _SMOOTHING * self._empty_share

    def note_missing_drafts(self, after_s: float, lost_share: float) -> None:
        """A round with rows whose drafts come `after_s` behind the verdict, and are that share of what it commits."""
        weight = _SMOOTHING if self._draft_s else 1.0
        self._draft_s += weight * (after_s - self._draft_s)
        self._lost_share += weight * (lost_share - self._lost_share)
        self._empty_share += _SMOOTHING * (1 - self._empty_share)

    def takes_turns(self, one: int, other: int, pass_s: Callable[[int], float]) -> bool:
        """Whether two passes of so many tokens are better than one of all of them; `pass_s` is V."""
        whole, first, second = pass_s(one + other), pass_s(one), pass_s(other)
        hidden_s = max(min(first, second) - self.turnaround_s, 0.0)
        together = whole + self.turnaround_s
        together += self._missing_s(together, 0.0)
        in_turn = self.in_turn_s(one, other, pass_s)
        in_turn += self._missing_s(in_turn, hidden_s)
        if self._is_in_turn:
            self._is_in_turn = together * MIN_ADVANTAGE >= in_turn
        else:
            self._is_in_turn = in_turn * MIN_ADVANTAGE < together
        return self._is_in_turn

    def in_turn_s(self, one: int, other: int, pass_s: Callable[[int], float]) -> float:
        """Of a round of both, with all drafts."""
        first, second = pass_s(one), pass_s(other)
        return max(first + second, max(first, second) + self.turnaround_s)

    def _missing_s(self, round_s: float, hidden_s: float) -> float:
        """What missing drafts cost a round: they are waited for, or lost."""
        return self._empty_share * min(max(self._draft_s - hidden_s, 0.0), self._lost_share * round_s)

    def send_at_s(self, expected_s: float, pass_s: float) -> float:
        """When the next pass has to be sent, if the answer to one that takes pass_s is expected at expected_s."""
        return expected_s - self.turnaround_s - _MARGIN * pass_s
