"""Prompt lookup: what came after these tokens the last time comes after them again.

Answers often repeat their prompt, or themselves: code that is edited, a text that is summarised, a list. The
drafter looks for earlier places where the text's last tokens occur, and proposes what followed there. It needs no
model, no vocabulary and almost no time. (Saxena, "Prompt lookup decoding", 2023; here with several matches, merged
into one tree as in SpecInfer, arXiv 2305.09781.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from outrider.errors import InvalidRequest
from outrider.v1 import worker_pb2
from workers.draft.drafter import Request, Resources

MAX_MATCH_LEN = 4
MAX_CONTINUATIONS = 3
MAX_MATCHES = 16  # looked at for one length, the most recent ones: bounds a step's time in repetitive text
NONE = -1
_DEPTH_COST = 0.5  # when nodes compete for the budget, this many tokens of match make up for one of depth


def load(source: str, _resources: Resources) -> NgramDrafter:
    if source:
        raise InvalidRequest.of("drafters", f"ngram:{source}", 'an n-gram drafter takes nothing; write "ngram"')
    return NgramDrafter()


@dataclass(slots=True)
class _Text:
    """A request's committed tokens, and where each of its n-grams was followed by something."""

    tokens: list[int] = field(default_factory=list)
    # n-gram -> the index of the token that followed it the last time
    latest: dict[tuple[int, ...], int] = field(default_factory=dict)
    # earlier[n - 1][index]: the follower before this one, of the same n-gram of n tokens; NONE: there is none
    earlier: list[list[int]] = field(default_factory=lambda: [[] for _ in range(MAX_MATCH_LEN)])

    def extend(self, tokens: Sequence[int]) -> None:
        """Indexes each new token once, as the follower of the n-grams before it."""
        for token in tokens:
            index = len(self.tokens)
            for length in range(1, MAX_MATCH_LEN + 1):
                ngram = tuple(self.tokens[max(0, index - length) :])
                self.earlier[length - 1].append(self.latest.get(ngram, NONE) if len(ngram) == length else NONE)
                if len(ngram) == length:
                    self.latest[ngram] = index
            self.tokens.append(token)

    def matches(self) -> Iterator[tuple[int, int]]:
        """(match length, index of the token that followed), the longest matches first, among these the most recent."""
        for length in range(min(MAX_MATCH_LEN, len(self.tokens)), 0, -1):
            index = self.latest.get(tuple(self.tokens[-length:]), NONE)
            for _ in range(MAX_MATCHES):
                if index == NONE:
                    break
                yield length, index
                index = self.earlier[length - 1][index]

    def continuation(self, index: int, num_tokens: int) -> tuple[int, ...]:
        """What followed from `index` on. Where that runs into the text's end, it goes on with its own beginning."""
        period = len(self.tokens) - index
        return tuple(self.tokens[index + offset % period] for offset in range(num_tokens))


class NgramDrafter:
    """Drafts from each request's own text. One step finds all that there is."""

    kind = "ngram"
    model = ""
    vocabulary = worker_pb2.Vocabulary()
    max_context = 0
    draws = False

    def __init__(self) -> None:
        self._texts: dict[int, _Text] = {}

    def open(self, request: Request) -> None:
        self._texts[request.key] = _Text()

    def commit(self, request: Request, tokens: Sequence[int]) -> None:
        self._texts[request.key].extend(tokens)

    def step(self, requests: Sequence[Request]) -> None:
        for request in requests:
            _draft(request, self._texts[request.key])
            request.is_live = False

    def close(self, request: Request) -> None:
        del self._texts[request.key]


def _draft(request: Request, text: _Text) -> None:
    """The continuations after the best matches, merged; of their nodes the most promising that are missing."""
    # A continuation as long as the budget may fill it alone; what is cut is only the tails of weaker ones.
    continuations: dict[tuple[int, ...], float] = {}
    num_tokens = min(request.max_nodes, len(text.tokens))
    for length, index in text.matches() if num_tokens else ():
        rank = len(continuations)
        continuations.setdefault(text.continuation(index, num_tokens), length - rank / MAX_CONTINUATIONS)
        if len(continuations) == MAX_CONTINUATIONS:
            break
    # Scores don't rise along a path, so whatever is taken, its parent was taken before.
    found = [
        (_DEPTH_COST * depth - score, depth, continuation[:depth], score)
        for continuation, score in continuations.items()
        for depth in range(1, len(continuation) + 1)
    ]
    for _, _, path, score in sorted(found):
        if request.num_missing <= 0:
            break
        parent = request.tree.find(path[:-1])
        if parent is not None or len(path) == 1:
            # A path of a lesser match may begin like a better one's, and then goes on from that one's nodes.
            request.tree.add(parent, path[-1], NgramDrafter.kind, score)
