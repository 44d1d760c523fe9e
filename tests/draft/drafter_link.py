"""A real drafter worker, spoken to over real gRPC as a scheduler does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from outrider.draft_orders import DraftOrder, add_orders
from outrider.rpc import link_options
from outrider.v1 import drafter_pb2, drafter_pb2_grpc, inference_pb2, worker_pb2
from tests.target_link import SEEDED, TIMEOUT_S
from workers.draft.server import DrafterConfig, DrafterServer


@dataclass(frozen=True)
class Told:
    """A growth, read as drafter.proto has it."""

    draft: int
    committed_len: int  # of the root
    first_node: int
    tokens: list[int]
    parents: list[int]
    scores: list[int]
    is_done: bool


class Link:
    """A scheduler's stream to a drafter worker."""

    def __init__(self, stub: drafter_pb2_grpc.DrafterAsyncStub) -> None:
        self.stream = stub.Connect()  # type: ignore[call-arg]  # the stubs know only the form with an iterator
        self._root_lens: Counter[int] = Counter()
        self._num_nodes: Counter[int] = Counter()

    async def send(self, *orders: DraftOrder) -> None:
        for order in orders:
            if order.opening is not None:
                self._root_lens[order.draft] = self._num_nodes[order.draft] = 0
        command = drafter_pb2.DrafterCommand()
        add_orders(command, orders)
        await self._write(command)

    async def release(self, *drafts: int) -> None:
        await self._write(drafter_pb2.DrafterCommand(released=drafts))

    async def receive(self) -> list[Told]:
        """A report's growths; one without any is a failure, and so is one of which something is missing."""
        report = await self.receive_report()
        growths = self.read(report)
        assert growths
        assert not report.missing
        return growths

    async def receive_report(self) -> drafter_pb2.DrafterReport:
        async with asyncio.timeout(TIMEOUT_S):
            report = await self.stream.read()
        assert isinstance(report, drafter_pb2.DrafterReport), "the stream has ended"
        return report

    async def receive_until_done(self) -> list[Told]:
        """The growths of the one order that is open."""
        growths = await self.receive()
        while not growths[-1].is_done:
            growths += await self.receive()
        return growths

    async def code(self) -> grpc.StatusCode:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.stream.code()

    def read(self, report: drafter_pb2.DrafterReport) -> list[Told]:
        growths: list[Told] = []
        numbers = iter(report.growths)
        draft = -1
        for head in numbers:
            num_nodes, flags = divmod(head, 8)
            draft = next(numbers) if flags & 4 else draft + 1
            self._root_lens[draft] += next(numbers) if flags & 2 else 0
            first = self._num_nodes[draft] + 1
            self._num_nodes[draft] += num_nodes
            told = Told(draft, self._root_lens[draft], first, [], [], [], bool(flags & 1))
            for number in range(first, first + num_nodes):
                told.tokens.append(next(numbers))
                distance, score = divmod(next(numbers), 8)
                told.parents.append(number - distance if distance else 0)
                told.scores.append(score)
            growths.append(told)
        return growths

    async def _write(self, command: drafter_pb2.DrafterCommand) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await self.stream.write(command)


@asynccontextmanager
async def serving(
    *drafters: str, kv_cache_bytes: int = 1 << 20
) -> AsyncIterator[tuple[DrafterServer, drafter_pb2_grpc.DrafterAsyncStub]]:
    server = DrafterServer(DrafterConfig(drafters=drafters, threads=1, kv_cache_bytes=kv_cache_bytes))
    address = await server.start()
    try:
        async with grpc.aio.insecure_channel(address, options=link_options()) as channel:
            yield server, drafter_pb2_grpc.DrafterStub(channel)
    finally:
        await server.stop(0)


def make_order(
    drafter: str,
    tokens: Sequence[int],
    *,
    draft: int = 1,
    is_open: bool = False,
    max_nodes: int = 4,
    sampling: inference_pb2.SamplingParams = SEEDED,
) -> DraftOrder:
    """An order that brings these tokens. Only an opening names the drafter."""
    request = worker_pb2.OpenRequest(sampling=sampling)
    opening = drafter_pb2.DraftOpening(drafter=drafter, request=request) if is_open else None
    return DraftOrder(draft, tokens, max_nodes, opening=opening)
