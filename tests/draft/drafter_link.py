"""A real drafter worker, spoken to over real gRPC as a scheduler does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc

from outrider.packing import pack_i32
from outrider.rpc import link_options
from outrider.v1 import drafter_pb2, drafter_pb2_grpc, inference_pb2, worker_pb2
from tests.target_link import SEEDED, TIMEOUT_S
from workers.draft.server import DrafterConfig, DrafterServer


class Link:
    """A scheduler's stream to a drafter worker."""

    def __init__(self, stub: drafter_pb2_grpc.DrafterAsyncStub) -> None:
        self.stream = stub.Connect()  # type: ignore[call-arg]  # the stubs know only the form with an iterator

    async def send(self, *orders: drafter_pb2.DraftOrder) -> None:
        command = drafter_pb2.DrafterCommand(orders=drafter_pb2.DraftOrders(orders=orders))
        async with asyncio.timeout(TIMEOUT_S):
            await self.stream.write(command)

    async def release(self, request: int, epoch: int, drafter: str) -> None:
        released = drafter_pb2.DraftRelease(ref=worker_pb2.RequestRef(request=request, epoch=epoch), drafter=drafter)
        async with asyncio.timeout(TIMEOUT_S):
            await self.stream.write(drafter_pb2.DrafterCommand(release=released))

    async def receive(self) -> list[drafter_pb2.Growth]:
        return list((await self.receive_report()).growths)

    async def receive_report(self) -> drafter_pb2.Growths:
        async with asyncio.timeout(TIMEOUT_S):
            report = await self.stream.read()
        assert isinstance(report, drafter_pb2.DrafterReport), "the stream has ended"
        return report.growths

    async def receive_until_done(self) -> list[drafter_pb2.Growth]:
        """The growths of the one order that is open."""
        growths = await self.receive()
        while not growths[-1].is_done:
            growths += await self.receive()
        return growths

    async def code(self) -> grpc.StatusCode:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.stream.code()


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
    committed: Sequence[int],
    *,
    start: int = 0,
    end: int | None = None,
    request: int = 1,
    epoch: int = 1,
    is_open: bool = False,
    max_nodes: int = 4,
    sampling: inference_pb2.SamplingParams = SEEDED,
) -> drafter_pb2.DraftOrder:
    """An order that brings committed[start:end]."""
    order = drafter_pb2.DraftOrder(
        ref=worker_pb2.RequestRef(request=request, epoch=epoch),
        drafter=drafter,
        committed_len=len(committed),
        tokens=worker_pb2.TokenSpan(start=start, ids=pack_i32(committed[start:end])),
        max_nodes=max_nodes,
    )
    if is_open:
        order.open.sampling.CopyFrom(sampling)
    return order
