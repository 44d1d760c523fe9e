"""Who asks what, and when: a closed loop of users, or questions at random times."""

from __future__ import annotations

import math
from random import Random

from scheduler.simulation.cell import Cell
from scheduler.simulation.client import Client, Question
from scheduler.simulation.scenario import LengthSection, LoadSection


class Load:
    """Question i is the same for the same seed, however fast the others are answered."""

    def __init__(self, section: LoadSection, cell: Cell, max_nodes: int, seed: int) -> None:
        self._section = section
        self._cell = cell
        self._max_nodes = max_nodes
        self._seed = seed
        self._num_asked = 0
        self._arrivals = Random(seed)

    def start(self) -> None:
        if self._section.concurrency is not None:
            for _ in range(self._section.concurrency):
                self._ask_now()
        else:
            self._wait_for_next()

    def _ask_now(self) -> None:
        self._cell.expect(self._question(self._num_asked), self._cell.agenda.now_s, self._note_end)
        self._num_asked += 1

    def _note_end(self, _: Client) -> None:
        if self._section.concurrency is not None:
            self._ask_now()

    def _wait_for_next(self) -> None:
        assert self._section.rate_per_s is not None
        self._cell.agenda.after(self._arrivals.expovariate(self._section.rate_per_s), self._arrive)

    def _arrive(self) -> None:
        self._ask_now()
        self._wait_for_next()

    def _question(self, index: int) -> Question:
        rng = Random(self._seed * 1_000_003 + index)
        vocab_size = self._cell.model.law.vocab_size
        prompt = [rng.randrange(vocab_size) for _ in range(_length(self._section.prompt, rng))]
        max_tokens = _length(self._section.answer, rng)
        return Question(index, prompt, max_tokens, max_nodes=self._max_nodes, speculates=self._max_nodes > 0)


def _length(section: LengthSection, rng: Random) -> int:
    drawn = section.median * math.exp(section.spread * rng.gauss(0, 1))
    return min(max(round(drawn), 1), section.max)
