"""From the messages of a stream to tokens, and in the end to whole answers. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from outrider import convert
from outrider.errors import InternalError
from outrider.types import Answer, Started, Token, TokenLogprobs
from outrider.v1 import inference_pb2 as pb


class Fold:
    """`started`, any number of `tokens`, `finished`: anything else is the server's fault, an InternalError."""

    def __init__(self) -> None:
        self.started: Started | None = None
        self.answer: Answer | None = None
        self._tokens: list[Token] = []
        self._num_resumed_tokens = 0
        self._is_broken = False

    def add(self, response: pb.GenerateResponse) -> tuple[Token, ...]:
        """Takes the next message; returns the tokens that it brought."""
        event = response.WhichOneof("event")
        if self.answer is not None:
            raise InternalError(f"the server sent {event} after finished")
        if event == "started":
            self._start(convert.started_from_proto(response.started))
            return ()
        if self.started is None or self._is_broken:
            raise InternalError(f"the server sent {event} before started")
        if event == "tokens":
            tokens = convert.tokens_from_proto(response.tokens)
            self._tokens += tokens
            return tokens
        if event == "finished":
            self.answer = self._finish(self.started, response.finished)
            return ()
        raise InternalError("the server sent an event that this client does not know")

    def resume(self) -> list[int]:
        """The stream broke: what comes next is `started` once more, and then what follows the tokens returned here."""
        self._num_resumed_tokens, self._is_broken = len(self._tokens), True
        return [token.id for token in self._tokens]

    def end(self) -> Answer:
        """To be called when the stream has ended without an error: there must be an answer now."""
        if self.answer is None:
            raise InternalError(f"the stream ended after {len(self._tokens)} tokens, before the answer was finished")
        return self.answer

    def _start(self, started: Started) -> None:
        if self.started is not None and not self._is_broken:
            raise InternalError("the server sent started twice")
        before = self.started or started
        has_other_prompt = before.prompt_hash and started.prompt_hash and started.prompt_hash != before.prompt_hash
        is_other = (started.seed, started.num_prompt_tokens) != (before.seed, before.num_prompt_tokens)
        if is_other or has_other_prompt:
            raise InternalError(f"the server went on with another request: {started} after {before}")
        self.started, self._is_broken = before, False

    def _finish(self, started: Started, finished: pb.Finished) -> Answer:
        return Answer(
            request_id=started.request_id,
            model=started.model,
            seed=started.seed,
            token_ids=tuple(token.id for token in self._tokens),
            texts=tuple(token.text for token in self._tokens),
            sources=tuple(token.source for token in self._tokens),
            text="".join(token.text for token in self._tokens),
            logprobs=_logprobs_of(self._tokens),
            finish_reason=convert.finish_reason_from_proto(finished.reason),
            matched_stop=finished.matched_stop,
            usage=convert.usage_from_proto(finished.usage),
            speculation=convert.speculation_stats_from_proto(finished.speculation),
            num_resumed_tokens=self._num_resumed_tokens,
        )


def _logprobs_of(tokens: Sequence[Token]) -> tuple[TokenLogprobs, ...] | None:
    entries = tuple(token.logprobs for token in tokens if token.logprobs is not None)
    if entries and len(entries) < len(tokens):
        raise InternalError(f"the server sent log-probabilities of {len(entries)} among {len(tokens)} tokens")
    return entries or None


class Folds:
    """Several answers in one stream, each with its index."""

    def __init__(self, num_answers: int) -> None:
        self._folds = [Fold() for _ in range(num_answers)]

    def __len__(self) -> int:
        return len(self._folds)

    def __iter__(self) -> Iterator[Fold]:
        return iter(self._folds)

    @property
    def has_started(self) -> bool:
        """Whether anything has come."""
        return any(fold.started is not None for fold in self._folds)

    @property
    def are_whole(self) -> bool:
        return all(fold.answer is not None for fold in self._folds)

    def add(self, response: pb.GenerateResponse, first_index: int = 0) -> tuple[Token, ...]:
        """Takes the next message of a stream whose own answer 0 is `first_index` here; returns the tokens in it."""
        index = first_index + response.index
        if index >= len(self._folds):
            raise InternalError(f"the server sent answer {index}: {len(self._folds)} were asked for")
        return self._folds[index].add(response)

    def forget(self) -> None:
        """All of them start once more."""
        self._folds = [Fold() for _ in self._folds]

    def end(self) -> list[Answer]:
        """To be called when the stream has ended without an error: all answers must be there now."""
        return [fold.end() for fold in self._folds]
