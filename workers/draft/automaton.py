"""A suffix automaton that grows token by token: where has the end of this text occurred before, and what came next?

Each state stands for the parts of the text that end at the same places. (Blumer et al., "The smallest automaton
recognizing the subwords of a text", 1985; the online construction.) A text of n tokens has at most 2n states.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_COUNTED = 16  # states whose counts an occurrence raises, the longest first: bounds a step's time in repetitive text


@dataclass(slots=True, eq=False)
class State:
    length: int  # tokens of the longest part that the state stands for
    link: State | None = None  # of the longest suffix of these that occurs elsewhere too
    next: dict[int, State] = field(default_factory=dict)
    count: int = 0  # occurrences


class Automaton:
    def __init__(self) -> None:
        self.root = State(0)
        self._last = self.root  # of the whole text
        self.num_tokens = 0

    def extend(self, token: int) -> None:
        state = State(self._last.length + 1)
        self.num_tokens += 1
        at: State | None = self._last
        while at is not None and token not in at.next:
            at.next[token] = state
            at = at.link
        state.link = self.root if at is None else self._link_for(at, token)
        self._last = state
        self._count(state)

    @property
    def repeated(self) -> State:
        """Of the longest end of the text that occurred before; the root where none did."""
        return self._last.link or self.root

    def follow(self, state: State, length: int, token: int) -> tuple[State, int]:
        """From a match of `length` tokens, which `state` stands for, to the longest one that ends with `token`."""
        while token not in state.next:
            if state.link is None:
                return self.root, 0
            state = state.link
            length = state.length
        return state.next[token], length + 1

    def _link_for(self, at: State, token: int) -> State:
        target = at.next[token]
        if target.length == at.length + 1:
            return target
        copy = State(at.length + 1, target.link, dict(target.next), target.count)
        target.link = copy
        here: State | None = at
        while here is not None and here.next.get(token) is target:
            here.next[token] = copy
            here = here.link
        return copy

    def _count(self, state: State) -> None:
        here: State | None = state
        for _ in range(_COUNTED):
            if here is None or here is self.root:
                return
            here.count += 1
            here = here.link
