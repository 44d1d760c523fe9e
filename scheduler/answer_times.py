"""How answers come and end, as their clients see it: noted where the driver delivers, told at `/metrics`."""

from __future__ import annotations

from collections import Counter

from outrider.errors import Cancelled, OutriderError, status_of
from scheduler.distribution import Distribution
from scheduler.events import Finish

# vLLM's, so that one dashboard shows both; with finer ones below, where a drafted token can come sooner than any pass.
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0)
_LONG_WAITS_S = (40.0, 80.0, 160.0, 640.0, 2560.0)
_BETWEEN_TOKENS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
_LONG_GAPS_S = (2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_OF_REQUESTS_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
_LONG_REQUESTS_S = (120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
_SHORT_S = (0.01, 0.03, 0.1)
_TOKENS = tuple(float(mantissa * 10**power) for power in range(6) for mantissa in (1, 2, 5))


class Pace:
    """Of one answer: when something came of it last."""

    __slots__ = ("_is_started", "_since_s")

    def __init__(self, submitted_s: float = 0.0) -> None:
        self._since_s = submitted_s
        self._is_started = False

    def note(self, num_tokens: int, now_s: float, times: AnswerTimes) -> None:
        """So many tokens came at once: after the first ones, each took its share of the time since those before."""
        waited_s, self._since_s = now_s - self._since_s, now_s
        if self._is_started:
            times.between_tokens_s.add(waited_s / num_tokens, num_tokens)
        else:
            self._is_started = True
            times.first_token_s.add(waited_s)


class AnswerTimes:
    """Latencies, in seconds, and ends of all answers since the scheduler was started.

    What a whole answer took counts where it came to its end; failures have their own counts.
    """

    def __init__(self) -> None:
        self.first_token_s = Distribution((*_FIRST_TOKEN_S, *_LONG_WAITS_S))
        self.between_tokens_s = Distribution((*_BETWEEN_TOKENS_S, *_LONG_GAPS_S))
        self.whole_s, self.queued_s, self.prefill_s, self.decode_s = (
            Distribution((*_SHORT_S, *_OF_REQUESTS_S, *_LONG_REQUESTS_S)) for _ in range(4)
        )
        self.num_prompt_tokens, self.num_generated_tokens = Distribution(_TOKENS), Distribution(_TOKENS)
        self.num_finished: Counter[str] = Counter({"end": 0, "stop": 0, "length": 0})
        self.num_failed: Counter[str] = Counter()  # by the status that their clients got
        self.num_refused: Counter[str] = Counter()

    def note_finish(self, finish: Finish) -> None:
        if finish.error is not None:
            self.note_failure(finish.error)
            return
        assert finish.reason is not None
        self.num_finished[finish.reason] += 1
        stats = finish.stats
        self.num_prompt_tokens.add(stats.num_prompt_tokens)
        self.num_generated_tokens.add(stats.num_generated_tokens)
        if stats.started_s is not None and stats.first_token_s is not None and stats.finished_s is not None:
            self.whole_s.add(stats.finished_s - stats.submitted_s)
            self.queued_s.add(stats.started_s - stats.submitted_s)
            self.prefill_s.add(stats.first_token_s - stats.started_s)
            self.decode_s.add(stats.finished_s - stats.first_token_s)

    def note_failure(self, error: OutriderError) -> None:
        """A request that was admitted ends with an error."""
        self.num_failed[status_name(error)] += 1

    def note_abandoned(self) -> None:
        """Its client is gone, or has what it wanted."""
        self.num_failed[status_name(Cancelled(""))] += 1

    def note_refusal(self, error: OutriderError) -> None:
        """A request was refused before any work was done."""
        self.num_refused[status_name(error)] += 1


def status_name(error: OutriderError) -> str:
    """ "resource_exhausted" and the like."""
    return status_of(error).name.lower()
