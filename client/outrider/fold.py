"""From the messages of one answer to its tokens, and in the end to the whole answer. No I/O."""

from __future__ import annotations

from outrider import convert
from outrider.errors import InternalError
from outrider.types import Answer, Started, Token
from outrider.v1 import inference_pb2 as pb


class Fold:
    """`started`, any number of `tokens`, `finished`: anything else is the server's fault, an InternalError."""

    def __init__(self) -> None:
        self.started: Started | None = None
        self.answer: Answer | None = None
        self._tokens: list[Token] = []

    def add(self, response: pb.GenerateResponse) -> tuple[Token, ...]:
        """Takes the next message; returns the tokens that it brought."""
        event = response.WhichOneof("event")
        if self.answer is not None:
            raise InternalError(f"the server sent {event} after finished")
        if event == "started":
            if self.started is not None:
                raise InternalError("the server sent started twice")
            self.started = convert.started_from_proto(response.started)
            return ()
        if self.started is None:
            raise InternalError(f"the server sent {event} before started")
        if event == "tokens":
            tokens = convert.tokens_from_proto(response.tokens)
            self._tokens += tokens
            return tokens
        if event == "finished":
            self.answer = self._finish(self.started, response.finished)
            return ()
        raise InternalError("the server sent an event that this client does not know")

    def end(self) -> Answer:
        """To be called when the stream has ended without an error: there must be an answer now."""
        if self.answer is None:
            raise InternalError(f"the stream ended after {len(self._tokens)} tokens, before the answer was finished")
        return self.answer

    def _finish(self, started: Started, finished: pb.Finished) -> Answer:
        return Answer(
            request_id=started.request_id,
            model=started.model,
            seed=started.seed,
            token_ids=tuple(token.id for token in self._tokens),
            sources=tuple(token.source for token in self._tokens),
            text="".join(token.text for token in self._tokens),
            finish_reason=convert.finish_reason_from_proto(finished.reason),
            matched_stop=finished.matched_stop,
            usage=convert.usage_from_proto(finished.usage),
            speculation=convert.speculation_stats_from_proto(finished.speculation),
        )
