"""One pass at a time with all rows in it, or two groups of rows that take turns at the target.

Two passes under way hide the round trip, and the drafting, behind the other group's pass: the target never waits
(MineDraft's alternating batches). But two half passes may take longer than a whole one, so it depends on the profile:

    together      V(all) + gap              of one round of all rows
    in turn       max(V(one) + V(other), V(the longer one) + gap)

`gap` is what the target idles between a pass and the next one with the same rows: the round trip and the scheduler's
own work, measured while one pass at a time ran, and what rows wait for their drafts.
"""

from __future__ import annotations

from collections.abc import Callable

MIN_ADVANTAGE = 1.03  # of a change of pace: both sides are guesses
_SMOOTHING = 0.1
_MARGIN = 0.15  # of a pass: the next one is sent so much before it must, since times are guesses


class Pace:
    def __init__(self) -> None:
        self.turnaround_s = 0.0  # between a pass and the next at the target, when nothing is waited for
        self.draft_wait_s = 0.0  # what a round of rows waits for drafts, or loses for not waiting
        self._is_in_turn = False
        self._is_measured = False

    def note_turnaround(self, seconds: float) -> None:
        """Measured between two passes of which the second was sent when the first was back."""
        weight = _SMOOTHING if self._is_measured else 1.0
        self.turnaround_s += weight * (max(seconds, 0.0) - self.turnaround_s)
        self._is_measured = True

    def note_draft_wait(self, seconds: float) -> None:
        self.draft_wait_s += _SMOOTHING * (seconds - self.draft_wait_s)

    def takes_turns(self, one: int, other: int, pass_s: Callable[[int], float]) -> bool:
        """Whether two passes of so many tokens are better than one of all of them; `pass_s` is V."""
        gap = self.turnaround_s + self.draft_wait_s
        together = pass_s(one + other) + gap
        first, second = pass_s(one), pass_s(other)
        in_turn = max(first + second, max(first, second) + gap)
        if self._is_in_turn:
            self._is_in_turn = together * MIN_ADVANTAGE >= in_turn
        else:
            self._is_in_turn = in_turn * MIN_ADVANTAGE < together
        return self._is_in_turn

    def send_at_s(self, expected_s: float, pass_s: float) -> float:
        """When the next pass has to be sent, if the answer to one that takes pass_s is expected at expected_s."""
        return expected_s - self.turnaround_s - _MARGIN * pass_s
