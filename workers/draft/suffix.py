"""What followed the longest repeated end of the text, as often as it did: counts say how likely each token is.

As prompt lookup, but with matches of any length, and every continuation weighed by how often it was seen (Oliaro et
al., "SuffixDecoding", arXiv 2411.04975). With "suffix:shared" the finished answers of all requests on this worker are
searched as well: where a service is asked similar things again and again, its answers begin to repeat each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from outrider.calibration import SCORE_BORDERS, Calibration
from outrider.errors import InvalidRequest
from outrider.tree import Node
from outrider.v1 import worker_pb2
from workers.draft.automaton import Automaton, State
from workers.draft.drafter import Request, Resources

MAX_TEXT_TOKENS = 16_384  # of one request's text that are searched, the newest; about 10 MB
MAX_SHARED_TOKENS = 200_000  # of finished answers that are kept, the newest: about 120 MB
MAX_CHILDREN = 4
SEPARATOR = -1  # between answers: no token
_SHARED = "shared"
_MAX_SHORTER = 3  # matches that are looked at, the longest among them


def load(source: str, _resources: Resources) -> SuffixDrafter:
    if source not in ("", _SHARED):
        raise InvalidRequest.of("drafters", f"suffix:{source}", f'write "suffix", or "suffix:{_SHARED}"')
    return SuffixDrafter(is_shared=source == _SHARED)


@dataclass(frozen=True, slots=True)
class _Match:
    """A place in a text that was seen before: its last `length` tokens are those that are to be continued."""

    automaton: Automaton
    state: State
    length: int

    def then(self, token: int) -> _Match:
        return _Match(self.automaton, *self.automaton.follow(self.state, self.length, token))

    def chances(self) -> Iterator[tuple[int, float]]:
        """What came next, and its share of the occurrences; shares of few, and of short matches, count for less.

        Of the longest match first, then of shorter ones, which have seen more.
        """
        here: State | None = self.state
        length = self.length
        for _ in range(_MAX_SHORTER):
            if here is None or length == 0:
                return
            trust = 1 - 0.6**length
            total = sum(state.count for state in here.next.values())
            for token, state in here.next.items():
                if token != SEPARATOR:
                    yield token, trust * state.count / (total + 0.5)
            here = here.link
            length = here.length if here is not None else 0


class _Text:
    """A request's text, or all finished answers: what is too old is forgotten by halves."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self.automaton = Automaton()
        self._newest: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.automaton.extend(token)
        self._newest = [*self._newest, *tokens][-self._max_tokens // 2 :]
        if self.automaton.num_tokens > self._max_tokens:
            self.automaton = Automaton()
            for token in self._newest:
                self.automaton.extend(token)


class SuffixDrafter:
    """One step finds all that there is."""

    kind = "suffix"
    model = ""
    vocabulary = worker_pb2.Vocabulary()
    max_context = 0
    draws = False

    def __init__(self, *, is_shared: bool = False) -> None:
        self._texts: dict[int, _Text] = {}
        self._answers = _Text(MAX_SHARED_TOKENS) if is_shared else None
        self._calibration = Calibration(SCORE_BORDERS, lambda _rank, score: 1 / (1 + math.exp(-score)))

    def open(self, request: Request) -> None:
        self._texts[request.key] = _Text(MAX_TEXT_TOKENS)

    def commit(self, request: Request, tokens: Sequence[int]) -> None:
        for node, is_accepted in request.tree.judged(tokens):
            vote = node.votes[self.kind]
            self._calibration.learn(vote.rank, vote.score, is_accepted=is_accepted)
        self._texts[request.key].extend(tokens)

    def step(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._draft(request)
            request.is_live = False

    def close(self, request: Request) -> None:
        del self._texts[request.key]
        if self._answers is not None:
            self._answers.extend([SEPARATOR, *request.tokens[request.params.num_prompt_tokens :]])

    def _draft(self, request: Request) -> None:
        """The likeliest continuations, until there are enough."""
        heap: list[
            tuple[float, int, Node | None, int, float]
        ] = []  # (-survival, order of finding, parent, token, score)
        matches: dict[int, list[_Match]] = {0: self._matches(request)}  # by the number of a node; 0: the root
        survivals = {0: 1.0}
        order = count()

        def expand(node: Node | None) -> None:
            number = node.number if node is not None else 0
            for token, score, chance in self._children(matches[number]):
                if token not in request.tree.children(node):
                    heappush(heap, (-survivals[number] * chance, next(order), node, token, score))

        def add(node: Node) -> None:
            above = node.parent.number if node.parent is not None else 0
            matches[node.number] = [match.then(node.token) for match in matches[above]]
            survivals[node.number] = survivals[above] * node.chance
            expand(node)

        expand(None)
        for node in request.tree:
            add(node)
        while heap and request.num_missing > 0 and -heap[0][0] >= max(request.min_survival, 1e-6):
            survival, _, parent, token, score = heappop(heap)
            node = request.tree.add(parent, token, self.kind, score)
            node.chance = -survival / survivals[parent.number if parent is not None else 0]
            add(node)

    def _matches(self, request: Request) -> list[_Match]:
        own = self._texts[request.key].automaton
        found = [_Match(own, own.repeated, own.repeated.length)]
        if self._answers is not None:
            match = _Match(self._answers.automaton, self._answers.automaton.root, 0)
            for token in request.tokens[-32:]:
                match = match.then(token)
            found.append(match)
        return found

    def _children(self, matches: Sequence[_Match]) -> list[tuple[int, float, float]]:
        """(token, score, chance), the likeliest first. The score is the logarithm of the odds."""
        chances: dict[int, float] = {}
        for match in matches:
            if match.length:
                for token, chance in match.chances():
                    chances[token] = max(chance, chances.get(token, 0.0))
        best = sorted(chances.items(), key=lambda entry: (-entry[1], entry[0]))[:MAX_CHILDREN]
        found = []
        bound = 1.0
        for rank, (token, chance) in enumerate(best):
            chance = min(chance, 0.999)
            score = math.log(chance / (1 - chance))
            bound = min(bound, self._calibration.chance(rank, score))
            found.append((token, score, bound))
        return found
