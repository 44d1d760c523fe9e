"""Going on with a stream that broke: whether, when, and what to ask for. No I/O.

With its seed and the tokens that are here an answer goes on as it would have: the same tokens, texts and end. So a
connection that is lost, or a server that is restarted or drained, costs the caller time and nothing else.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

from outrider.errors import DeadlineExceeded, OutriderError, Overloaded, ServerUnavailable
from outrider.fold import Folds
from outrider.types import Started
from outrider.v1 import inference_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resuming:
    """How often, and for how long, a broken stream is tried again. Both count from the last token that came."""

    max_tries: int = 40
    max_wait_s: float = 60.0
    first_backoff_s: float = 0.1  # doubles with every try
    max_backoff_s: float = 2.0


class Patience:
    """With the one or more calls that bring one generation. Times are seconds on a monotonic clock."""

    def __init__(self, resuming: Resuming | None, timeout_s: float | None, now_s: float) -> None:
        self._resuming = resuming
        self._timeout_s = timeout_s
        self._deadline_s = None if timeout_s is None else now_s + timeout_s
        self._num_tokens = 0
        self._num_tries = 0
        self._progress_s = now_s

    def note_progress(self, num_tokens: int, now_s: float) -> None:
        """Tokens have come."""
        self._num_tokens += num_tokens
        self._num_tries, self._progress_s = 0, now_s

    def time_left_s(self, now_s: float) -> float | None:
        """For the next call; None: no limit. Raises DeadlineExceeded when there is none."""
        if self._deadline_s is None:
            return None
        if now_s >= self._deadline_s:
            raise self._time_is_up()
        return self._deadline_s - now_s

    def delay_s(self, error: OutriderError, now_s: float) -> float:
        """How long to wait before the next try; counts it. Raises the error itself where there is to be none."""
        resuming = self._resuming
        if resuming is None or not _may_pass(error) or self._num_tries >= resuming.max_tries:
            raise self.named(error, now_s)
        backoff_s = min(resuming.first_backoff_s * 2.0**self._num_tries, resuming.max_backoff_s)
        # Many clients lose the same server at the same moment: they are not to come back at the same moment.
        delay_s = max(backoff_s * random.uniform(0.5, 1.0), error.retry_after_s or 0.0)
        latest_s = self._progress_s + resuming.max_wait_s
        if self._deadline_s is not None:
            latest_s = min(latest_s, self._deadline_s)
        if now_s + delay_s > latest_s:
            raise error
        self._num_tries += 1
        log.info("the stream broke: %s; try %d to go on, in %.1f s", error.message, self._num_tries, delay_s)
        return delay_s

    def named(self, error: OutriderError, now_s: float) -> OutriderError:
        """The error; once the caller's time has passed, one that says so, whichever side was the first to notice."""
        if not isinstance(error, DeadlineExceeded) or self._deadline_s is None or now_s < self._deadline_s:
            return error
        time_is_up = self._time_is_up()
        time_is_up.__cause__ = error.__cause__
        return time_is_up

    def _time_is_up(self) -> DeadlineExceeded:
        assert self._timeout_s is not None
        way_out = "a larger timeout_s (--timeout) or a smaller max_tokens (--max-tokens) would do"
        return DeadlineExceeded.of(self._timeout_s, f"it passed after {self._num_tokens} tokens; {way_out}")


def _may_pass(error: OutriderError) -> bool:
    """An overload without a hint is one that waiting does not end: the request itself is too large."""
    return isinstance(error, ServerUnavailable) or (isinstance(error, Overloaded) and error.retry_after_s is not None)


def continued(request: pb.GenerateRequest, started: Started, token_ids: Sequence[int]) -> pb.GenerateRequest:
    """The request for what follows these tokens of an answer. It takes over the answer's request_id."""
    rest = pb.GenerateRequest()
    rest.CopyFrom(request)
    rest.request_id, rest.model = started.request_id, started.model
    rest.sampling.ClearField("n")
    rest.sampling.seed = started.seed
    if started.max_tokens:
        rest.sampling.max_tokens = started.max_tokens  # by default it depends on the KV cache of the moment
    rest.resume_from.CopyFrom(pb.TokenIds(ids=token_ids))
    return rest


def all_continued(request: pb.GenerateRequest, folds: Folds) -> list[tuple[int, pb.GenerateRequest]]:
    """The requests for what is left of several answers, each with the index of its first answer among them all.

    As long as not all answers are started no token has come: all of them are asked for once more.
    """
    missing = [(index, fold) for index, fold in enumerate(folds) if fold.answer is None]
    if any(fold.started is None for _, fold in missing):
        folds.forget()
        again = pb.GenerateRequest()
        again.CopyFrom(request)
        again.resume_from.SetInParent()
        return [(0, again)]
    rests: list[tuple[int, pb.GenerateRequest]] = []
    for index, fold in missing:
        assert fold.started is not None
        rests.append((index, continued(request, fold.started, fold.resume())))
        if len(folds) > 1:
            rests[-1][1].request_id = ""  # one call each, and an id belongs to one call
    return rests
