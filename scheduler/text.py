"""Tokens to text, as they come: characters that span tokens, and stop strings that span them too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer as FastTokenizer

from outrider.types import Token, TokenLogprobs, TokenSource

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet


@dataclass(frozen=True, slots=True)
class Piece:
    """What became final: tokens with their texts, and the stop string that ended the text, if one did."""

    tokens: Sequence[Token]
    matched_stop: str = ""


class TextStream:
    """Turns one answer's tokens into text, token by token.

    A token's text is held back while it could be the beginning of a stop string, so nothing that is sent
    ever has to be taken back. The tokens up to the one that completes a stop string belong to the answer;
    their text ends before the stop string, or behind it with `include_stop`.
    """

    def __init__(
        self,
        tokenizer: FastTokenizer,
        *,
        stop: Sequence[str],
        include_stop: bool,
        skip_special_tokens: bool,
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._skip_special_tokens = skip_special_tokens
        self._min_tokens = min_tokens  # a stop string that is complete before ends nothing
        self._num_tokens = 0
        self._before: list[int] = []  # tokens with the last text: what a token's text is depends on those before it
        self._text_before = ""
        self._unfinished: list[int] = []  # tokens since the last complete character
        self._held: list[Token] = []
        self._num_known = 0  # tokens from the first one held on that the reader has

    def replay(self, ids: Sequence[int]) -> Piece:
        """Add the first tokens of a text whose reader has them: no later piece brings them again.

        Returns what `push` would. Fewer tokens than were added: a stop string ends the text before the last one.
        """
        self._num_known = len(ids)
        known = self._push(ids, ["target"] * len(ids), [None] * len(ids))
        self._num_known -= len(known.tokens)
        return known

    def push(
        self, ids: Sequence[int], sources: Sequence[TokenSource], logprobs: Sequence[TokenLogprobs | None]
    ) -> Piece:
        """Add tokens; returns those that are now final. After a matched stop nothing may be pushed."""
        piece = self._push(ids, sources, logprobs)
        return Piece(self._without_known(piece.tokens), piece.matched_stop) if self._num_known else piece

    def _push(
        self, ids: Sequence[int], sources: Sequence[TokenSource], logprobs: Sequence[TokenLogprobs | None]
    ) -> Piece:
        told = zip(ids, sources, logprobs, strict=True)
        tokens = (
            Token(token_id, self._decode(token_id), source, its_logprobs) for token_id, source, its_logprobs in told
        )
        if not self._stop:
            self._held += tokens
            return Piece(self._release())
        final: list[Token] = []
        for token in tokens:
            self._held.append(token)
            self._num_tokens += 1
            matched = self._match() if self._num_tokens >= self._min_tokens else ""
            if matched:
                return Piece([*final, *self._held], matched)
            final.extend(self._release())
        return Piece(final)

    def flush(self) -> Piece:
        """The answer is over: what was held back, with the remains of a broken character."""
        rest = self._without_before(self._text_of(self._before + self._unfinished))
        if rest:
            last = self._held[-1]  # _release keeps the last token of an unfinished character
            self._held[-1] = replace(last, text=last.text + rest)
        held, self._held = self._held, []
        return Piece(self._without_known(held))

    def _without_known(self, final: Sequence[Token]) -> Sequence[Token]:
        num_left_out = min(self._num_known, len(final))
        self._num_known -= num_left_out
        return final[num_left_out:]

    def _decode(self, token_id: int) -> str:
        self._unfinished.append(token_id)
        whole = self._text_of(self._before + self._unfinished)
        text = "" if whole.endswith(BROKEN) else self._without_before(whole)
        if text:
            self._before, self._unfinished = self._unfinished, []
            self._text_before = self._text_of(self._before)
        return text

    def _without_before(self, whole: str) -> str:
        if whole.startswith(self._text_before):
            return whole[len(self._text_before) :]
        # Bytes that are no character take those before them along, where these were tokens of a byte too: but those
        # were sent.
        return self._text_of(self._unfinished)

    def _text_of(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
        return text

    def _match(self) -> str:
        """If a stop string is complete, cut the held texts there and return it."""
        text = "".join(token.text for token in self._held)
        found = min(((text.find(stop), stop) for stop in self._stop if stop in text), default=None)
        if found is None:
            return ""
        at, stop = found
        self._cut(at + len(stop) if self._include_stop else at)
        return stop

    def _cut(self, length: int) -> None:
        cut: list[Token] = []
        for token in self._held:
            cut.append(replace(token, text=token.text[: max(length, 0)]))
            length -= len(token.text)
        self._held = cut

    def _release(self) -> list[Token]:
        """Take out the tokens whose text can't belong to a stop string any more: all of them where there is none.

        Tokens inside an unfinished character are held as well, so that flush can complete the last one.
        """
        num_whole = len(self._held) - (1 if self._unfinished else 0)
        if not self._stop:
            final, self._held = self._held[:num_whole], self._held[num_whole:]
            return final
        text = "".join(token.text for token in self._held)
        num_final = len(text) - self._longest_beginning(text)
        final = []
        end = 0
        for token in self._held[:num_whole]:
            end += len(token.text)
            if end > num_final:
                break
            final.append(token)
        self._held = self._held[len(final) :]
        return final

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that some stop string begins with."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
