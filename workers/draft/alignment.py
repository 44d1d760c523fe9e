"""One text in the tokens of two models: the target's committed tokens read as text, the text told to a draft model in
its own tokens, and what the draft model adds said in the target's.

    target's tokens   Ġun | bel | iev | able | Ġre            committed        ?
    text              " unbelievable re"                      TargetText       "sults"
    draft's tokens    Ġunbeliev | able | Ġre                  DraftText        sult | s

Texts meet at characters, not at tokens. So a token that ends in the middle of a character waits for its rest; where
the draft model's tokens run across the target's border, they stay as they are for as long as the text agrees; and text
is told again from a few tokens before the place where it changed, since tokens depend on what stands around them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from workers.draft.tokenizer_pair import TokenizerPair, decode
from workers.prefix import common_len

LOOK_BACK = 16  # tokens before a place that decide, for all practical purposes, how the text behind it is cut
_MAX_UNFINISHED = 3  # tokens at the end that may be parts of one character: UTF-8 has up to four bytes a character
_NUM_AGREEING = 2  # equal tokens behind a common border: from there on, two ways of cutting a text go on alike
_BROKEN = "\ufffd"  # what decoders give for bytes that are no character (yet)


def read_on(tokenizer: Tokenizer, before: Sequence[int], new: Sequence[int]) -> tuple[str, int] | None:
    """The text that `new` adds to that of `before`, and how many of its ids are read with it: those at its end that
    are parts of an unfinished character are not, yet. None: with `new`, what stands before reads differently.
    """
    before, text_before = _context(tokenizer, before)
    for num_read in range(len(new), max(-1, len(new) - 1 - _MAX_UNFINISHED), -1):
        if num_read == 0:
            return "", 0
        text = decode(tokenizer, [*before, *new[:num_read]])
        if not text.endswith(_BROKEN):
            break
    else:  # bytes that will never be a character
        num_read = len(new)
        text = decode(tokenizer, [*before, *new])
    return (text[len(text_before) :], num_read) if text.startswith(text_before) else None


def _context(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[Sequence[int], str]:
    """The last of these ids, and their text, from the beginning of a character on: some decoders take all bytes in a
    row for broken ones where the first few are.
    """
    ids = ids[-LOOK_BACK:]
    for first in range(_MAX_UNFINISHED + 1):
        text = decode(tokenizer, ids[first:])
        if not text.startswith(_BROKEN):
            return ids[first:], text
    return ids, decode(tokenizer, ids)


@dataclass(frozen=True, slots=True)
class Word:
    """A token of a text, and the characters that it writes, or writes parts of: [begin, end)."""

    token: int
    begin: int
    end: int


class TargetText:
    """The target's committed tokens, read as text."""

    def __init__(self, pair: TokenizerPair) -> None:
        self._pair = pair
        self._tokens: list[int] = []
        self._told: list[int] = []  # without what the draft model is not told
        self._num_read = 0  # of those told: the others are parts of an unfinished character
        self.text = ""  # of those read

    def extend(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens
        self._told += [token for token in tokens if token not in self._pair.target_only]
        n = self._num_read
        found = read_on(self._pair.target, self._told[max(0, n - LOOK_BACK) : n], self._told[n:])
        if found is None:
            self.text, self._num_read = "", 0
            found = read_on(self._pair.target, [], self._told)
            assert found is not None, "nothing stands before"
        self.text += found[0]
        self._num_read += found[1]

    def continued(self, more: str) -> list[Word]:
        """The target's tokens for `more`, which follows the text and from where their characters count. Empty where
        they can't be told: no token is ever proposed whose text is not what follows.
        """
        num_whole = len(self._tokens) - (len(self._told) - self._num_read)
        unfinished = self._tokens[num_whole:]
        context, before = _context(self._pair.target, self._tokens[max(0, num_whole - LOOK_BACK) : num_whole])
        words = _encode_behind(self._pair.target, before, more)
        tokens = [word.token for word in words]
        if tokens[: len(unfinished)] != unfinished:
            return []  # the target has begun another character
        if decode(self._pair.target, [*context, *tokens]) != before + more:
            return []  # its tokenizer writes this text in another way
        return words[len(unfinished) :]


def _encode_behind(tokenizer: Tokenizer, before: str, more: str) -> list[Word]:
    """The tokens of `more` where it follows `before`; their characters count from its beginning.

    A token that would be on both sides is none that can follow: the target has chosen one that ends at the border. Then
    `more` is cut as if it began a line, or followed a letter; alone only in the end, since some tokenizers put a blank
    before a text.
    """
    for context in (before, "\n", "x", ""):
        words = _words(tokenizer, context + more, -len(context))
        first = next((index for index, word in enumerate(words) if word.end > 0), None)
        if first is not None and words[first].begin >= 0:
            return words[first:]
    return []


def _words(tokenizer: Tokenizer, text: str, first: int = 0) -> list[Word]:
    """The tokens of the text, without special ones; `first`: the number of its first character."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return [
        Word(token, first + begin, first + end)
        for token, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True)
    ]


class DraftText:
    """What the draft model has been told, in its own tokens, and what it has added."""

    def __init__(self, pair: TokenizerPair) -> None:
        self._pair = pair
        self._words: list[Word] = []  # [num_ids]
        self._scores: list[float] = []  # [num_ids]; of those that were told, nothing of meaning
        self._num_read = 0  # ids; the others are parts of an unfinished character
        self._num_told = 0  # characters
        self.ids: list[int] = []
        self.text = ""

    @property
    def added(self) -> str:
        """What follows the text that was told."""
        return self.text[self._num_told :]

    def added_scores(self) -> list[tuple[int, float]]:
        """Of each id that ends behind the text that was told: where it begins, counted from there, and its score."""
        first = self._num_ids(self._num_told)
        return [
            (word.begin - self._num_told, score)
            for word, score in zip(self._words[first:], self._scores[first:], strict=True)
        ]

    def tell(self, text: str) -> int:
        """Make `text` what has been told. Returns how many ids stand: where it agrees with the text that is here, all
        of them, those that were added included. Otherwise it is cut anew from a few ids before the first difference.
        """
        if self.ids and self.text.startswith(text):
            self._num_told = len(text)
            return len(self.ids)
        start = self._num_told if text.startswith(self.text[: self._num_told]) else 0
        num_same = start + common_len(self.text[start:], text[start:])
        num_kept, words = self._cut(text, self._num_ids(num_same))
        ids = [word.token for word in words]
        num_standing = num_kept + common_len(self.ids[num_kept:], ids)
        self.ids[num_kept:] = ids
        self._scores[num_kept:] = [0.0] * len(ids)
        self._words[num_kept:] = words
        self.text, self._num_told, self._num_read = text, len(text), len(self.ids)
        return num_standing

    def add(self, token: int, score: float) -> bool:
        """The draft model says this next. False, and nothing is added, where it can't be read as text that follows."""
        found = self._read_on(token)
        if found is None:
            return False
        begin = len(self.text)
        self.ids.append(token)
        self._scores.append(score)
        self.text += found[0]
        self._num_read += found[1]
        is_unfinished = self._num_read < len(self.ids)
        self._words.append(Word(token, begin, len(self.text) + is_unfinished))
        return True

    def would_add(self, token: int) -> str:
        """The text that this token would add; empty where it ends in the middle of a character, or can't be read."""
        found = self._read_on(token)
        return found[0] if found is not None else ""

    def _read_on(self, token: int) -> tuple[str, int] | None:
        n = self._num_read
        return read_on(self._pair.draft, self.ids[max(0, n - LOOK_BACK) : n], [*self.ids[n:], token])

    def _num_ids(self, num_characters: int) -> int:
        """Those that end within so many characters of the text."""
        return bisect_right(self._words, num_characters, key=lambda word: word.end)

    def _cut(self, text: str, num_same: int) -> tuple[int, list[Word]]:
        """How many ids are kept, and the words of the text behind them. `num_same`: ids whose text is the same."""
        look_back = LOOK_BACK
        while (first := num_same - look_back) > len(self._pair.opening):
            begin = self._words[first - 1].end
            words = _words(self._pair.draft, text[begin:], begin)
            num_kept, num_left_out = self._joint(first, num_same, words)
            if num_kept:
                return num_kept, words[num_left_out:]
            look_back *= 4
        words, opening = _words(self._pair.draft, text), self._pair.opening
        if [word.token for word in words[: len(opening)]] == opening:  # a chat template has written it
            return 0, words
        return 0, [*(Word(token, 0, 0) for token in opening), *words]

    def _joint(self, first: int, num_same: int, words: Sequence[Word]) -> tuple[int, int]:
        """The first place where the ids from `first` on and the words, which begin there too, have a common border and
        go on alike: how many of each stand before it. (0, 0): there is none.
        """
        borders = {left.end: index for index, left in enumerate(words[:-1], 1) if words[index].begin >= left.end}
        for index in range(first + 1, num_same - _NUM_AGREEING + 1):
            end = self._words[index - 1].end
            other = borders.get(end)
            if other is None or self._words[index].begin < end:  # in the middle of a character
                continue
            following = [word.token for word in words[other : other + _NUM_AGREEING]]
            if following == self.ids[index : index + _NUM_AGREEING]:
                return index, other
        return 0, 0
