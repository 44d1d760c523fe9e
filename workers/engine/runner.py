"""One forward engine, on one rank: rows in, logits out, with everything between them in our paged KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from outrider.errors import InvalidRequest
from outrider.tree import check_parents
from workers.engine import row_invariance
from workers.engine.batch import Batch, BatchRow, Row, join, node_depths
from workers.engine.checkpoint import DEFAULT_CACHE_DIR, Checkpoint
from workers.engine.compilation import compile_forward
from workers.engine.demand import Demand, Growth
from workers.engine.device import kv_cache_budget_bytes, resolve_device
from workers.engine.forward import KernelForward
from workers.engine.kv_cache import KVCache
from workers.engine.layout import lay_out
from workers.engine.model import load_model


class Ranks(Protocol):
    """What the engine needs of the group of ranks that it is part of (`workers/target/group.py`)."""

    rank: int
    size: int

    def guard(self) -> AbstractContextManager[None]: ...
    def loaded(self, num_blocks: int) -> int: ...
    def broadcast(self, batch: Tensor) -> None: ...


class Engine:
    """A model, its KV cache and the requests in it.

    On rank 0 (or alone) the owner opens requests and calls `forward`; a follower is only told to `execute`. One
    thread at a time. Whatever fails inside a pass closes every request: the cache can't be trusted then, and the
    committed tokens, which the engine does not own, can always be sent again.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        tensor_parallel: int = 1,
        block_size: int = 16,
        kv_cache_bytes: int | None = None,
        compiled: bool = False,
        exact: bool = False,
        cache_dir: Path | None = None,
        output_ids: Sequence[int] | None = None,  # the tokens whose logits are computed; None: all
        group: Ranks | None = None,
    ) -> None:
        if tensor_parallel != (group.size if group is not None else 1):
            raise InvalidRequest.of("tensor_parallel", tensor_parallel, "it is the number of ranks in the group")
        self._group = group
        self.output_ids = output_ids
        cache_dir = (cache_dir or DEFAULT_CACHE_DIR).expanduser()
        self._device = resolve_device(device, group.rank if group is not None else 0)
        with self._guard():
            self.spec, self._forward = load_model(
                checkpoint,
                self._device,
                dtype,
                tensor_parallel,
                exact=exact,
                cache_dir=cache_dir,
                output_ids=output_ids,
            )
        self.block_size = block_size
        budget = kv_cache_budget_bytes(self._device, kv_cache_bytes)
        num_blocks = budget // (block_size * self._forward.kv_shape.token_bytes)
        if group is not None:
            num_blocks = group.loaded(num_blocks)
        if num_blocks == 0:
            raise InvalidRequest.of("kv_cache_bytes", budget, "it holds not a single block")
        self._cache = KVCache(num_blocks, block_size)
        self._forward.allocate(num_blocks, block_size)
        if isinstance(self._forward, KernelForward):
            with self._guard():
                if compiled and group is None:  # a group's sums leave the graph, so there is little to gain
                    compile_forward(self._forward, self.spec.vocab_size, block_size, cache_dir)
                if exact:
                    row_invariance.ensure(self._forward, self.spec.vocab_size, num_blocks, block_size)

    @property
    def is_compiled(self) -> bool:
        return self._forward.is_compiled

    @property
    def device(self) -> torch.device:
        """Of this rank."""
        return self._device

    @property
    def forward_name(self) -> str:
        """Of the way in which the model is run (`forward.py`)."""
        return type(self._forward).__name__

    @property
    def num_blocks(self) -> int:
        return self._cache.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that a pass can take: those of the prefix cache that no request holds are among them."""
        return self._cache.num_free_blocks

    def open(self, key: int) -> None:
        """Begin a request with nothing cached. `key` is the caller's own number for it."""
        self._cache.open(key)

    def fork(self, key: int, child: int) -> None:
        """Begin `child` with all that is cached of `key`: nothing is copied until one of the two writes."""
        self._cache.fork(key, child)

    def pretend(self, key: int, num_tokens: int) -> None:
        """Begin a request as if num_tokens were cached, for passes of which only the time is wanted.

        What comes out of them means nothing, and nobody finds it in the prefix cache. Raises OutOfBlocks.
        """
        self._cache.pretend(key, num_tokens)

    def reuse(self, key: int, tokens: Sequence[int]) -> int:
        """Take what the prefix cache has of `tokens`, which follow what is cached of the request, in whole blocks.

        Returns the number of tokens that are cached then: all of them, perhaps, and then the last one has to be
        truncated before `forward` can give its logits. Nodes of the last pass are dropped.
        """
        return self._cache.reuse(key, tokens)

    def close(self, key: int) -> None:
        """Give back all that a request holds; harmless where it is not open. Its full blocks can be found until they
        are taken for others."""
        self._cache.close(key)

    def disown(self, key: int) -> None:
        """Let nobody find in the prefix cache what the request holds: its logits were unusable, so its KV may be."""
        self._cache.disown(key)

    def is_open(self, key: int) -> bool:
        return self._cache.is_open(key)

    def num_cached(self, key: int) -> int:
        """Committed tokens whose KV is here; nodes count once they are accepted."""
        return self._cache.num_cached(key)

    def truncate(self, key: int, num_tokens: int) -> None:
        """Forget all but the first num_tokens committed tokens, and every node of the last pass."""
        self._cache.truncate(key, num_tokens)

    def accept(self, key: int, path: Sequence[int]) -> None:
        """Commit nodes of the key's last pass, given from the root down; its other nodes are dropped."""
        self._cache.accept(key, path)

    def blocks_needed(self, rows: Sequence[Row]) -> int:
        """Free blocks that `forward` would take; negative where dropped nodes give back more."""
        return self._cache.blocks_needed([(row.key, row.num_tokens) for row in rows])

    def growth(self, row: Row) -> Growth:
        """What `forward` would take for the row: to be added to a `demand`."""
        return self._cache.growth(row.key, row.num_tokens)

    def demand(self) -> Demand:
        """An empty sum of `growth`, for a caller that composes a pass row by row."""
        return self._cache.demand()

    def check_integrity(self) -> None:
        """Raises AssertionError where the cache's books don't agree with themselves."""
        self._cache.check_integrity()

    def forward(self, rows: Sequence[Row]) -> list[Tensor | None]:
        """Run one pass. Each row's result is its logits, [1 + num_nodes, vocab] f32: after its last token, then after
        each node; None where it wants none.

        The tokens are cached from then on. The nodes are dropped by the key's next forward or truncate, unless
        `accept` keeps them. Raises InvalidRequest, TreeError or OutOfBlocks before anything is done.
        """
        if not rows:
            return []
        parts = torch.split(self.forward_packed(rows), [row.num_logits for row in rows])
        return [part if row.wants_logits else None for row, part in zip(rows, parts, strict=True)]

    def forward_packed(self, rows: Sequence[Row]) -> Tensor:
        """`forward` of at least one row, with all logits side by side: [num_logits, vocab] f32."""
        self._check(rows)
        if len({row.key for row in rows}) < len(rows):
            raise InvalidRequest.of("rows", [row.key for row in rows], "a request has one row in a pass")
        self._cache.allocate([(row.key, row.num_tokens) for row in rows])
        try:
            return self._run(rows)
        except BaseException:
            self._cache.clear()
            raise

    def execute(self, encoded: Tensor) -> None:
        """A follower's part of the pass that rank 0 broadcast as `encoded`, [num_values] i64."""
        self._execute(Batch.decode(encoded))

    def _run(self, rows: Sequence[Row]) -> Tensor:
        placed = [BatchRow(row, self._cache.num_cached(row.key), self._cache.block_table(row.key)) for row in rows]
        batch = Batch.of(placed, self._cache.take_moves())
        if self._group is not None:
            self._group.broadcast(batch.encode())
        logits = self._execute(batch)
        for row in rows:
            self._cache.commit(row.key, row.tokens, row.node_tokens)
        return logits

    def _execute(self, batch: Batch) -> Tensor:
        """The logits that the batch's rows want, side by side: [num_logits, vocab] f32."""
        layout = lay_out(batch, self.block_size, self._device)
        with self._guard():
            return self._forward.run(layout)

    def _guard(self) -> AbstractContextManager[None]:
        return nullcontext() if self._group is None else self._group.guard()

    def _check(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if not row.tokens:
                raise InvalidRequest.of("tokens", [], "a row has at least one: the logits after it start the walk")
            if len(row.node_tokens) != len(row.node_parents):
                raise InvalidRequest.of(
                    "node_parents", list(row.node_parents), f"there are {len(row.node_tokens)} nodes"
                )
            check_parents(row.node_parents)
        tokens = join([part for row in rows for part in (row.tokens, row.node_tokens)])
        if len(outside := tokens[(tokens < 0) | (tokens >= self.spec.vocab_size)]):
            raise InvalidRequest.of("token", int(outside[0]), f"the vocabulary has {self.spec.vocab_size}")
        end = max(
            self.num_cached(row.key) + len(row.tokens) + depth
            for row, depth in zip(rows, _tree_depths(rows), strict=True)
        )
        if end > self.spec.max_context:
            raise InvalidRequest.of("tokens", end, f"the model's context holds {self.spec.max_context}")


def _tree_depths(rows: Sequence[Row]) -> list[int]:
    """Nodes on the longest path of each row."""
    if not any(row.node_parents for row in rows):
        return [0] * len(rows)
    num_nodes = np.array([len(row.node_parents) for row in rows])
    depths = node_depths(join([row.node_parents for row in rows]), num_nodes)
    deepest = np.zeros(len(rows), np.int64)
    np.maximum.at(deepest, np.repeat(np.arange(len(rows)), num_nodes), depths)
    return deepest.tolist()
