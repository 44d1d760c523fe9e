"""A target and a drafter that compute nothing: what is left is the scheduler's own work, and the wire's.

The text that they agree on is a function of the position alone. The drafter is right at most positions, and both are
instant, so the scheduler is never waiting for anything but itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from outrider.draft_orders import DraftOrder, orders_of
from outrider.packing import pack_i32, unpack_i32
from outrider.rpc import server_options
from outrider.scores import NUM_STEPS, step_of
from outrider.tree import below
from outrider.v1 import drafter_pb2, drafter_pb2_grpc, target_pb2, target_pb2_grpc, worker_pb2

NAME = "null"
VOCAB = 49152
_FIRST, _NUM = 1000, 5000  # of the tokens that the text is made of
_WRONG = 7  # a token that is never right
_ONE_IN = 4  # positions at which the drafter is wrong
_PASS_MS, _TOKEN_MS = 15.0, 0.005  # of the profile that the target claims: flat, as a GPU's


def token_at(position: int) -> int:
    return _FIRST + position * 7919 % _NUM


def guess_at(position: int) -> int:
    return _WRONG if (position * 2654435761 >> 8) % _ONE_IN == 0 else token_at(position)


class NullTarget(target_pb2_grpc.TargetServicer):
    """`gaps_s`: between an answer and the next pass, each time. `folder`: of the tokenizer that it serves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.gaps_s: list[float] = []
        self.num_tokens = 0  # that it chose
        self._answered_s: float | None = None
        self._known: dict[int, int] = {}  # tokens of each request

    async def Describe(self, request: Any, context: Any) -> target_pb2.TargetDescription:  # noqa: N802 - gRPC's name
        sizes = (1, 64, 256, 1024, 8192)
        costs = [target_pb2.PassCost(num_tokens=n, context_len=0, pass_ms=_PASS_MS + n * _TOKEN_MS) for n in sizes]
        return target_pb2.TargetDescription(
            name="null",
            model="null",
            vocabulary=worker_pb2.Vocabulary(size=VOCAB),
            max_context=1 << 20,
            block_size=16,
            num_kv_blocks=1 << 24,
            max_pass_tokens=8192,
            pass_costs=costs,
        )

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncIterator[target_pb2.TokenizerPiece]:  # noqa: N802
        data = (self._folder / "tokenizer.json").read_bytes()
        for start in range(0, len(data), 1 << 20):
            yield target_pb2.TokenizerPiece(file="tokenizer.json", data=data[start : start + (1 << 20)])

    async def Connect(self, request_iterator: AsyncIterator[Any], context: Any) -> None:  # type: ignore[override]  # noqa: N802
        async for command in request_iterator:
            if command.HasField("pass"):
                asked = getattr(command, "pass")
                if self._answered_s is not None:
                    self.gaps_s.append(time.perf_counter() - self._answered_s)
                rows = [self._choose(row) for row in asked.rows]
                result = target_pb2.PassResult(pass_id=asked.pass_id, rows=rows, num_free_kv_blocks=1 << 24)
                await context.write(target_pb2.TargetReport(pass_result=result))
                self._answered_s = time.perf_counter()
            else:
                self._known.pop(command.release.request, None)

    def _choose(self, row: target_pb2.Row) -> target_pb2.RowResult:
        committed_len = row.committed_len
        known_len = row.tokens.start + len(row.tokens.ids) // 4
        if row.is_ahead:
            committed_len = known_len = max(known_len, self._known.get(row.ref.request, 0))
        self._known[row.ref.request] = known_len
        if known_len < committed_len:
            return _ok(row, committed_len, [], known_len)
        path = [token_at(place) for place in range(row.committed_len, committed_len)]
        tokens, parents = unpack_i32(row.node_tokens), unpack_i32(row.node_parents)
        left, parents = below(path, tokens, parents)
        chosen = [token_at(committed_len)]
        here = -1
        for place, (node, parent) in enumerate(zip(left, parents, strict=True)):
            if parent == here and tokens[node] == chosen[-1]:
                here = place
                chosen.append(token_at(committed_len + len(chosen)))
        self.num_tokens += len(chosen)
        self._known[row.ref.request] = committed_len + len(chosen)
        return _ok(row, committed_len, chosen, committed_len + len(chosen))


def _ok(row: target_pb2.Row, committed_len: int, tokens: Sequence[int], known_len: int) -> target_pb2.RowResult:
    return target_pb2.RowResult(
        ref=row.ref,
        committed_len=committed_len,
        status=target_pb2.ROW_STATUS_OK,
        tokens=pack_i32(tokens),
        known_len=known_len,
    )


class NullDrafter(drafter_pb2_grpc.DrafterServicer):
    """Answers each order at once, with what is still missing of a chain that is worth verifying."""

    async def Describe(self, request: Any, context: Any) -> drafter_pb2.DrafterWorkerDescription:  # noqa: N802
        return drafter_pb2.DrafterWorkerDescription(name=NAME, drafters=[{"name": NAME, "kind": NAME}])

    async def TakeTokenizer(self, request: Any, context: Any) -> drafter_pb2.TokenizerTaken:  # noqa: N802
        return drafter_pb2.TokenizerTaken()

    async def Connect(self, request_iterator: AsyncIterator[Any], context: Any) -> None:  # type: ignore[override]  # noqa: N802
        chains: dict[int, _Chain] = {}  # by draft
        async for command in request_iterator:
            for draft in command.released:
                chains.pop(draft, None)
            growths = [
                number
                for order in orders_of(command)
                for number in _grow(order, chains.setdefault(order.draft, _Chain()))
            ]
            await context.write(drafter_pb2.DrafterReport(growths=growths, released=command.released))


@dataclass
class _Chain:
    """Guesses of the positions from `start` to `end`."""

    root: int = 0  # committed tokens
    start: int = 0
    end: int = 0
    max_nodes: int = 0
    worthwhile: float = 0.0  # so many nodes at most


def _grow(order: DraftOrder, chain: _Chain) -> list[int]:
    """The numbers of a growth, as drafter.proto has them."""
    chain.root += len(order.tokens)
    if order.max_nodes is not None:
        chain.max_nodes = order.max_nodes
    if order.min_survival is not None:
        least = order.min_survival / 100
        chain.worthwhile = math.log(least, 1 - 1 / _ONE_IN) if least > 0 else math.inf
    root = chain.root
    is_fresh = chain.end <= root or any(guess_at(p) == _WRONG for p in range(chain.start, root))
    if is_fresh:
        chain.start = chain.end = root
    end = max(root + int(min(chain.max_nodes, chain.worthwhile)), chain.end)
    tokens = [guess_at(position) for position in range(chain.end, end)]
    chain.end = end
    numbers = [8 * len(tokens) + 7, order.draft, len(order.tokens)]
    for token in tokens:
        numbers += token, NUM_STEPS + step_of(2.0)
    if is_fresh and tokens:
        numbers[4] = step_of(2.0)  # a child of the root
    return numbers


async def serve_null(target: NullTarget | None, drafter: NullDrafter | None) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(options=server_options())
    if target is not None:
        target_pb2_grpc.add_TargetServicer_to_server(target, server)
    if drafter is not None:
        drafter_pb2_grpc.add_DrafterServicer_to_server(drafter, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"
