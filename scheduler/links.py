"""Links to workers: one bidirectional stream each, kept up for as long as the worker is wanted.

A link turns a worker's reports into events and the core's commands into messages. A session is
connect → describe → check → exchange; whatever ends it, the core is told that the worker's state is gone,
and the link starts over.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.errors import OutriderError
from outrider.rpc import MAX_MESSAGE_BYTES, link_options
from outrider.tls import CellChannels
from outrider.v1 import inference_pb2 as pb
from outrider.v1 import worker_pb2
from outrider.v1.drafter_pb2 import DrafterReport, DrafterWorkerDescription, TargetTokenizer
from outrider.v1.drafter_pb2_grpc import DrafterStub
from outrider.v1.target_pb2 import GetTokenizerRequest, TargetDescription, TargetReport
from outrider.v1.target_pb2_grpc import TargetStub
from scheduler.draft_stream import DraftStream
from scheduler.events import (
    DrafterDown,
    DrafterUp,
    Event,
    Grown,
    PassCost,
    ReleaseDrafter,
    ReleaseTarget,
    SendOrder,
    SendPass,
    TargetDown,
    TargetFacts,
    TargetUp,
)
from scheduler.messages import pass_done_of
from scheduler.outbox import OrderOutbox, Outbox, TargetOutbox
from scheduler.served_model import ServedModel
from scheduler.vocabulary import mismatch

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
DESCRIBE_TIMEOUT_S = 60.0  # a tokenizer of a large vocabulary takes a while to send
WRITE_TIMEOUT_S = 30.0
RECONNECT_PAUSE_S = 0.2
REFUSED_PAUSE_S = 30.0  # it may be repaired, or what it does not fit may be gone

Post = Callable[[Event], None]


class Refused(OutriderError):
    """The worker can't be used as it is."""


class Garbled(OutriderError):
    """The worker has sent bytes that are no message of its protocol."""


class Unreachable(OutriderError):
    """No connection to the worker comes about; the message is gRPC's own reason, if it has one."""


class Link(ABC):
    """The life of one link. `run` ends only by cancellation. A worker that is refused is tried again now and then.

    What is sent while no session is held is dropped: the core sends everything anew to a worker that is up.
    """

    max_receive_bytes = -1  # of one message; a larger one costs the worker its session

    def __init__(self, address: str, channels: CellChannels) -> None:
        self.address = address
        self._channels = channels
        self.state: pb.WorkerState = pb.WORKER_STATE_CONNECTING
        self.detail = ""
        self._session: asyncio.Task[None] | None = None

    async def run(self) -> None:
        while True:
            self._session = asyncio.create_task(self._hold_session())
            try:
                await asyncio.wait([self._session])
            finally:
                self._session.cancel()
                [ended] = await asyncio.gather(self._session, return_exceptions=True)
            if isinstance(ended, Refused):
                self._refuse(ended.message)
                await asyncio.sleep(REFUSED_PAUSE_S)
            elif isinstance(ended, Exception):
                raise ended
            else:
                self._enter(pb.WORKER_STATE_CONNECTING, self.detail)
                await asyncio.sleep(RECONNECT_PAUSE_S)

    def reset(self, reason: str) -> None:
        """End the session; a new one begins at once."""
        log.warning("%s: session ended: %s", self.address, reason)
        if self._session is not None:
            self._session.cancel()

    def _enter(self, state: pb.WorkerState, detail: str = "") -> None:
        self.state, self.detail = state, detail

    def _refuse(self, reason: str) -> None:
        if (self.state, self.detail) != (pb.WORKER_STATE_REFUSED, reason):
            self._enter(pb.WORKER_STATE_REFUSED, reason)
            log.error("%s is refused: %s", self.address, reason)

    async def _hold_session(self) -> None:
        try:
            async with await self._channels.open(self.address, link_options(self.max_receive_bytes)) as channel:
                await self._connect(channel)
                await self._hold(channel)
        except (Garbled, Unreachable) as err:
            self.detail = err.message
            log.warning("%s: link lost: %s", self.address, self.detail)
        except TimeoutError:
            self.detail = "does not answer"
            log.warning("%s: link lost: it does not answer", self.address)
        except grpc.aio.AioRpcError as err:
            self.detail = err.details() or err.code().name
            log.warning("%s: link lost: %s", self.address, self.detail)

    async def _connect(self, channel: grpc.aio.Channel) -> None:
        """Returns once the channel is ready; `detail` says at once what keeps it from that. Raises Unreachable."""
        reason = "does not answer"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        reason = await _failure_of(channel) or reason
                        self._enter(pb.WORKER_STATE_CONNECTING, reason)
                    await channel.wait_for_state_change(state)
        except TimeoutError as err:
            raise Unreachable(reason) from err

    async def _exchange(
        self, call: grpc.aio.StreamStreamCall[Any, Any], outbox: Outbox, take: Callable[[Any], None]
    ) -> None:
        """Write the outbox and read reports until either side ends; raises what the call ended with."""
        writer = asyncio.create_task(_write_all(call, outbox))
        reader = asyncio.create_task(_read_all(call, take))
        try:
            await asyncio.wait([writer, reader], return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():
                writer.result()
                # The call ended under the writer. The reader is about to see it too, and learns why.
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await reader
            reader.result()
        finally:
            writer.cancel()
            reader.cancel()
            call.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)

    @abstractmethod
    async def _hold(self, channel: grpc.aio.Channel) -> None:
        """One session on a channel that is ready."""


async def _failure_of(channel: grpc.aio.Channel) -> str:
    """Why a channel could not connect: gRPC says it only to those who call. Empty where it can by now."""
    check = health_pb2_grpc.HealthStub(channel).Check
    try:
        await check(health_pb2.HealthCheckRequest(), timeout=DESCRIBE_TIMEOUT_S)
    except grpc.aio.AioRpcError as err:
        return err.details() or err.code().name
    return ""


async def _write_all(call: grpc.aio.StreamStreamCall[Any, Any], outbox: Outbox) -> None:
    """Write what comes into the outbox until the call has ended."""
    while True:
        message = await outbox.take()
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await call.write(message)
        except asyncio.InvalidStateError:  # grpc.aio's answer to a write on a call that is over
            return


async def _read_all(call: grpc.aio.StreamStreamCall[Any, Any], take: Callable[[Any], None]) -> None:
    async for report in call:
        take(_parsed(report))


def _parsed(message: Any) -> Any:
    """A message as gRPC gives it: where the bytes don't parse, that is None and a line in the log. Raises Garbled."""
    if message is None:
        raise Garbled("it sends what is no message of its protocol; is it of another version?")
    return message


class TargetLink(Link):
    """To a target group. `on_describe` is awaited with its description and its tokenizer's files before it is used; it
    raises Refused for one that must not be. `on_state` is called when the link has entered another state."""

    def __init__(
        self,
        address: str,
        post: Post,
        on_describe: Callable[[TargetDescription, Mapping[str, bytes]], Any],
        on_state: Callable[[], None],
        channels: CellChannels,
    ) -> None:
        super().__init__(address, channels)
        self._post = post
        self._on_describe = on_describe
        self._on_state = on_state
        self.description: TargetDescription | None = None
        self._outbox = TargetOutbox()

    def send(self, command: SendPass | ReleaseTarget) -> None:
        self._outbox.put(command)

    def _enter(self, state: pb.WorkerState, detail: str = "") -> None:
        super()._enter(state, detail)
        self._on_state()

    async def _hold(self, channel: grpc.aio.Channel) -> None:
        stub: Any = TargetStub(channel)
        description = _parsed(await stub.Describe(worker_pb2.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S))
        files: dict[str, bytearray] = {}
        async for piece in stub.GetTokenizer(GetTokenizerRequest(), timeout=DESCRIBE_TIMEOUT_S):
            files.setdefault(_parsed(piece).file, bytearray()).extend(piece.data)
        await self._on_describe(description, {name: bytes(data) for name, data in files.items()})
        self.description = description
        call = stub.Connect()
        self._outbox = TargetOutbox()
        self._enter(pb.WORKER_STATE_READY)
        log.info("target %s at %s is ready", description.name, self.address)
        facts = TargetFacts(
            vocab_size=description.vocabulary.size,
            block_size=description.block_size,
            num_kv_blocks=description.num_kv_blocks,
            max_pass_tokens=description.max_pass_tokens,
            pass_costs=[
                PassCost(cost.num_tokens, cost.context_len, cost.pass_ms / 1000)
                for cost in description.pass_costs
                if cost.num_tokens > 0 and cost.pass_ms > 0
            ],
        )
        self._post(TargetUp(facts, self.address))
        try:
            await self._exchange(call, self._outbox, self._take)
        finally:
            self._post(TargetDown(self.address))

    def _take(self, report: TargetReport) -> None:
        if report.HasField("pass_result"):
            self._post(pass_done_of(self.address, report.pass_result))


class DrafterLink(Link):
    """`served` is awaited for what the target's tokens mean: drafters that mean others are refused, and those that
    read texts are told."""

    max_receive_bytes = MAX_MESSAGE_BYTES

    def __init__(
        self, address: str, post: Post, served: Callable[[], Awaitable[ServedModel]], channels: CellChannels
    ) -> None:
        super().__init__(address, channels)
        self._post = post
        self._served = served
        self.description: DrafterWorkerDescription | None = None
        self._stream = DraftStream(address)
        self._outbox = OrderOutbox(self._stream)

    def send(self, command: SendOrder | ReleaseDrafter) -> None:
        self._outbox.put(command)

    async def _hold(self, channel: grpc.aio.Channel) -> None:
        stub: Any = DrafterStub(channel)
        description = _parsed(await stub.Describe(worker_pb2.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S))
        self.description = description
        served = await self._served()
        for drafter in description.drafters:
            complaint = await asyncio.to_thread(mismatch, drafter.vocabulary, served.description.vocabulary)
            if complaint:
                raise Refused(f"drafter {drafter.name!r}: {complaint}")
        if any(drafter.reads_text for drafter in description.drafters):
            await stub.TakeTokenizer(TargetTokenizer(json=served.tokenizer.json), timeout=DESCRIBE_TIMEOUT_S)
        call = stub.Connect()
        self._stream = DraftStream(self.address)
        self._outbox = OrderOutbox(self._stream)
        self._enter(pb.WORKER_STATE_READY)
        log.info("drafter worker %s at %s is ready", description.name, self.address)
        drawing = frozenset(drafter.name for drafter in description.drafters if drafter.draws)
        self._post(DrafterUp(self.address, [drafter.name for drafter in description.drafters], drawing))
        try:
            await self._exchange(call, self._outbox, self._take)
        finally:
            self._post(DrafterDown(self.address))

    def _take(self, report: DrafterReport) -> None:
        self._post(Grown(self._stream.growths(report)))
