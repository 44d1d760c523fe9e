"""The engine against transformers' own forward on the real model, in float32: equal logits, and the same choice.

Random tokens give flat distributions, the hard case: where two tokens are nearly tied, a small error shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from workers.engine.batch import Row
from workers.engine.checkpoint import prepare_checkpoint
from workers.engine.runner import Engine

pytestmark = pytest.mark.model

TOLERANCE = 2e-4
LogitsOf = Callable[[Path, Sequence[int]], Tensor]


class Compared:
    """The engine beside the committed tokens that it should have, comparing every logits row that it gives."""

    def __init__(self, folder: Path, logits_of: LogitsOf) -> None:
        self.engine = Engine(prepare_checkpoint(str(folder)), dtype="float32", kv_cache_bytes=1 << 26)
        self._generator = torch.Generator().manual_seed(0)
        self._plain = lambda path: logits_of(folder, path)
        self.committed: dict[int, list[int]] = {}
        self.num_compared = 0

    def tokens(self, count: int) -> list[int]:
        return torch.randint(0, self.engine.spec.vocab_size, (count,), generator=self._generator).tolist()

    def tree(self, key: int, num_tokens: int, num_nodes: int, *, chain: bool = False) -> Row:
        """A row of random tokens, with a random tree, or a chain, below them."""
        drawn = [int(torch.randint(-1, max(node, 0), (), generator=self._generator)) for node in range(num_nodes)]
        parents = [node - 1 for node in range(num_nodes)] if chain else drawn
        return Row(key, self.tokens(num_tokens), self.tokens(num_nodes), parents)

    def forward(self, *rows: Row) -> None:
        for row in rows:
            if row.key not in self.committed:
                self.engine.open(row.key)
                self.committed[row.key] = []
        for row, logits in zip(rows, self.engine.forward(rows), strict=True):
            self.committed[row.key] += row.tokens
            assert logits is not None
            self._compare(row, logits)

    def accept(self, row: Row, path: Sequence[int]) -> None:
        self.engine.accept(row.key, path)
        self.committed[row.key] += [row.node_tokens[node] for node in path]

    def _compare(self, row: Row, logits: Tensor) -> None:
        """Every path from the root to a leaf by one plain forward, which covers every node."""
        paths: list[list[int]] = []  # a node's own index last
        for node, parent in enumerate(row.node_parents):
            paths.append([*(paths[parent] if parent >= 0 else []), node])
        leaves = [path for path in paths if path[-1] not in row.node_parents] or [[]]
        for path in leaves:
            plain = self._plain([*self.committed[row.key], *(row.node_tokens[node] for node in path)])
            expected = plain[-1 - len(path) :]
            got = logits[[0, *(1 + node for node in path)]]
            torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
            assert got.argmax(-1).tolist() == expected.argmax(-1).tolist()
            self.num_compared += len(got)


@pytest.fixture
def compared(smollm2: Path, plain_logits: LogitsOf) -> Compared:
    return Compared(smollm2, plain_logits)


def deepest_path(row: Row) -> list[int]:
    paths: list[list[int]] = []
    for node, parent in enumerate(row.node_parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    return max(paths, key=len)


def test_every_shape_of_pass_gives_the_models_own_logits_and_choices(compared: Compared) -> None:
    compared.forward(*(Row(key, compared.tokens(length)) for key, length in enumerate([5, 37, 64, 101])))
    compared.forward(*(compared.tree(key, 1, key + 1, chain=True) for key in range(4)))
    trees = [compared.tree(key, 1, 10) for key in range(4)]
    compared.forward(*trees)
    for row in trees:
        compared.accept(row, deepest_path(row))
    compared.forward(
        Row(0, compared.tokens(1)),  # decoding after an accepted walk
        compared.tree(1, 2, 12),
        compared.tree(2, 1, 6, chain=True),
        Row(3, compared.tokens(30)),  # a prompt chunk
        Row(4, compared.tokens(45)),  # a new prompt
    )
    compared.forward(*(Row(key, compared.tokens(1)) for key in range(5)))
    compared.engine.check_integrity()
    assert compared.num_compared >= 100
