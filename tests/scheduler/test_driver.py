"""The core's shell and its links, against workers that misbehave. Real gRPC on loopback."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

from outrider.errors import ModelNotFound, Overloaded, ServerUnavailable
from outrider.tls import CellChannels
from outrider.v1 import drafter_pb2, drafter_pb2_grpc, target_pb2, target_pb2_grpc
from outrider.v1 import inference_pb2 as pb
from outrider.v1.worker_pb2 import OpenRequest
from scheduler import links, outbox
from scheduler.core import CoreConfig
from scheduler.draft_stream import DraftStream
from scheduler.driver import Driver
from scheduler.events import (
    Command,
    DrafterDown,
    DrafterUp,
    Event,
    SendOrder,
    TargetDown,
    TargetsExpected,
    TargetUp,
    Tick,
)
from scheduler.information import ServiceLimits, server_info
from scheduler.links import DrafterLink, Link, TargetLink
from scheduler.outbox import OrderOutbox
from scheduler.served_model import ServedModel
from scheduler.tokenizer import Tokenizer
from tests.scheduler.classes import asked

TIMEOUT_S = 60.0
PLAIN = CellChannels(None)


class RudeDrafter(drafter_pb2_grpc.DrafterServicer):
    """Says hello, reads a few commands, and drops the stream while more are on their way."""

    def __init__(self) -> None:
        self.num_streams = 0

    async def Describe(self, request: Any, context: Any) -> drafter_pb2.DrafterWorkerDescription:  # noqa: N802
        return drafter_pb2.DrafterWorkerDescription(name="rude", drafters=[{"name": "rude", "kind": "ngram"}])

    async def Connect(self, request_iterator: AsyncIterator[Any], context: Any) -> None:  # type: ignore[override]  # noqa: N802
        self.num_streams += 1
        num_commands = 0
        async for _ in request_iterator:
            num_commands += 1
            if num_commands == self.num_streams % 7 + 1:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "I have had enough")


def an_opening(worker: str, request: int) -> SendOrder:
    return SendOrder(worker, "rude", request, 1, 1, OpenRequest(), 0, [5], max_nodes=4, min_survival=0.0)


async def served() -> ServedModel:
    files = {"tokenizer.json": FastTokenizer(models.BPE()).to_str().encode()}
    return ServedModel(target_pb2.TargetDescription(), Tokenizer(files))


class GarbledWorker:
    """A target and a drafter whose bytes are no message, in one of its methods; all others answer properly."""

    def __init__(self, garbled: str) -> None:
        self.num_garbled = 0
        self._garbled = garbled
        self._enough = asyncio.Event()

    def handlers(self) -> list[grpc.GenericRpcHandler[Any, Any]]:
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        describe, connect, pieces = unary(self._describe), stream(self._connect), self._pieces
        methods: dict[str, Any] = {"Describe": describe, "Connect": connect}
        methods["GetTokenizer"] = grpc.unary_stream_rpc_method_handler(pieces)
        names = ("outrider.v1.Drafter", "outrider.v1.Target")
        return [grpc.method_handlers_generic_handler(name, methods) for name in names]

    async def wait_garbled(self, num: int) -> None:
        while self.num_garbled < num:
            self._enough.clear()
            await self._enough.wait()

    def _bytes(self, method: str) -> bytes:
        if method != self._garbled:
            return b""  # a message of any type, with nothing in it
        self.num_garbled += 1
        self._enough.set()
        return b"\xff\xff\xff"

    async def _describe(self, request: bytes, context: Any) -> bytes:
        return self._bytes("Describe")

    async def _pieces(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield self._bytes("GetTokenizer")

    async def _connect(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        yield self._bytes("Connect")
        async for _ in requests:
            pass


@pytest.mark.parametrize(
    ("kind", "garbled"),
    [
        ("target", "Describe"),
        ("target", "GetTokenizer"),
        ("target", "Connect"),
        ("drafter", "Describe"),
        ("drafter", "Connect"),
    ],
)
async def test_bytes_that_are_no_message_cost_their_session_alone(
    kind: str, garbled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "RECONNECT_PAUSE_S", 0.0)
    worker, server = GarbledWorker(garbled), grpc.aio.server()
    server.add_generic_rpc_handlers(worker.handlers())
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()

    async def learn(description: Any, files: Any) -> None:
        pass

    events: list[Event] = []
    link: Link = (
        TargetLink(address, events.append, learn, lambda: None, PLAIN)
        if kind == "target"
        else DrafterLink(address, events.append, served, PLAIN)
    )
    running = asyncio.create_task(link.run())
    await asyncio.wait_for(worker.wait_garbled(3), TIMEOUT_S)  # it comes back, and back again
    assert not running.done(), "the link itself must go on, and the scheduler with it"
    if garbled == "Connect":
        assert sum(isinstance(event, (DrafterDown, TargetDown)) for event in events) >= 2
    else:
        assert "no message" in link.detail
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await server.stop(0)


async def test_a_worker_that_drops_its_stream_under_a_burst_of_commands_costs_its_session_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "MAX_MESSAGE_TOKENS", 1)  # each order is a message of its own
    rude, server = RudeDrafter(), grpc.aio.server()
    drafter_pb2_grpc.add_DrafterServicer_to_server(rude, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    events: list[Event] = []
    enough = asyncio.Event()

    def take(event: Event) -> None:
        events.append(event)
        if isinstance(event, DrafterUp):
            for number in range(200):
                link.send(an_opening(address, number))
        elif sum(isinstance(event, DrafterDown) for event in events) == 12:
            enough.set()

    link = DrafterLink(address, take, served, PLAIN)
    running = asyncio.create_task(link.run())
    ended = asyncio.create_task(enough.wait())
    await asyncio.wait([running, ended], timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    assert not running.done(), "the link itself must go on"
    assert enough.is_set()
    assert [type(event) for event in events[:4]] == [DrafterUp, DrafterDown, DrafterUp, DrafterDown]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await server.stop(0)


async def test_a_defect_in_the_core_ends_the_scheduler_and_not_only_its_timer() -> None:
    driver = Driver(CoreConfig(), max_queued_requests=4)

    def fail(event: Event, now_s: float) -> Any:
        raise ZeroDivisionError("a defect")

    driver.core.handle = fail  # type: ignore[method-assign]
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    asyncio.get_running_loop().call_soon(driver.post, Tick())
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(driver.wait_failed(), TIMEOUT_S)


class Target(target_pb2_grpc.TargetServicer):
    """Says of itself what a test wants, and answers no pass."""

    def __init__(self, **description: Any) -> None:
        sizes = {"block_size": 4, "num_kv_blocks": 8, "max_pass_tokens": 16, "max_context": 4096}
        self.description: dict[str, Any] = {"model": "ours", "vocabulary": {"size": 97}, **sizes, **description}
        self.files = {"tokenizer.json": FastTokenizer(models.BPE()).to_str().encode()}
        self._sessions: asyncio.Queue[None] = asyncio.Queue()

    async def wait_sessions(self, number: int) -> None:
        """Until so many more have begun from now on."""
        self._sessions = asyncio.Queue()
        for _ in range(number):
            await asyncio.wait_for(self._sessions.get(), TIMEOUT_S)

    async def Describe(self, request: Any, context: Any) -> target_pb2.TargetDescription:  # noqa: N802
        self._sessions.put_nowait(None)
        return target_pb2.TargetDescription(**self.description)

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]  # noqa: N802
        for name, data in self.files.items():
            yield target_pb2.TokenizerPiece(file=name, data=data)

    async def Connect(self, request_iterator: AsyncIterator[Any], context: Any) -> None:  # type: ignore[override]  # noqa: N802
        async for _ in request_iterator:
            pass


def costs(*passes_ms: float) -> list[dict[str, float]]:
    return [{"num_tokens": i + 1, "pass_ms": pass_ms} for i, pass_ms in enumerate(passes_ms)]


@asynccontextmanager
async def serving(*targets: Target) -> AsyncIterator[list[str]]:
    """Yields their addresses."""
    servers = [grpc.aio.server() for _ in targets]
    for target, server in zip(targets, servers, strict=True):
        target_pb2_grpc.add_TargetServicer_to_server(target, server)
    addresses = [f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}" for server in servers]
    await asyncio.gather(*(server.start() for server in servers))
    try:
        yield addresses
    finally:
        await asyncio.gather(*(server.stop(0) for server in servers))


class Watched(Driver):
    """Whose events a test can wait for."""

    def __init__(self) -> None:
        super().__init__(CoreConfig(), max_queued_requests=4)
        self._handle, self.core.handle = self.core.handle, self._note  # type: ignore[method-assign]
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def _note(self, event: Event, now_s: float) -> list[Command]:
        self._events.put_nowait(event)
        return self._handle(event, now_s)

    async def wait_for(self, is_it: Callable[[Event], bool]) -> None:
        """Until the next one that is it. A scheduler that fails meanwhile fails the test."""

        async def next_one() -> None:
            while not is_it(await self._events.get()):
                pass

        waits = [asyncio.create_task(next_one()), asyncio.create_task(self.wait_failed())]
        done, pending = await asyncio.wait(waits, timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
        assert done, "it did not come"
        done.pop().result()

    async def wait_up(self, address: str) -> None:
        await self.wait_for(lambda event: isinstance(event, TargetUp) and event.target == address)

    async def wait_expected(self, number: int) -> None:
        await self.wait_for(lambda event: event == TargetsExpected(number))


async def test_what_waits_for_a_group_that_is_refused_ends_with_what_it_needs_and_what_there_is() -> None:
    driver = Watched()
    async with serving(Target(), Target(model="theirs", num_kv_blocks=99)) as addresses:
        await driver.set_workers(addresses[:1], [])
        await driver.wait_up(addresses[0])
        await driver.set_workers(addresses, [])
        mailbox = driver.submit(asked(driver.next_number(), prompt=100))
        assert mailbox.finish is None, "the other one may be large enough"
        await driver.wait_expected(1)
        assert mailbox.finish is not None
        assert isinstance(mailbox.finish.error, Overloaded)
        words = "may come to need 27 KV blocks: the target's KV cache holds 8 blocks of 4 tokens"
        assert words in mailbox.finish.error.message
        await driver.stop()


async def test_a_group_that_is_refused_does_not_count_and_one_whose_address_is_not_known_does() -> None:
    driver = Watched()
    async with serving(Target(), Target(model="theirs")) as addresses:
        await driver.set_workers(addresses[:1], [])
        await driver.wait_up(addresses[0])
        await driver.set_workers(addresses, [], num_missing=2)
        await driver.wait_expected(4)
        await driver.wait_expected(3)
        await driver.set_workers(addresses, [])
        await driver.wait_expected(1)
        await driver.set_workers(addresses[:1], [])
        await driver.wait_expected(1)
        await driver.stop()


@pytest.mark.parametrize(
    ("description", "files", "reason"),
    [
        ({"block_size": 0}, {}, "its block_size is 0: it must be at least 1"),
        ({"num_kv_blocks": 0}, {}, "its num_kv_blocks is 0: it must be at least 1"),
        ({"max_pass_tokens": 0}, {}, "its max_pass_tokens is 0: it must be at least 1"),
        ({"max_context": 0}, {}, "its max_context is 0: it must be at least 1"),
        ({"vocabulary": {"size": 0}}, {}, "its vocabulary.size is 0: it must be at least 1"),
        ({"pass_costs": costs(8.0, float("inf"))}, {}, "its pass_costs[1].pass_ms is inf: it must be a finite number"),
        ({"pass_costs": costs(float("nan"))}, {}, "its pass_costs[0].pass_ms is nan: it must be a finite number"),
        ({}, {"tokenizer.json": b'{"ver'}, "its tokenizer.json, 5 bytes, is no tokenizer"),
        ({}, {"tokenizer_config.json": b"{"}, "its tokenizer_config.json, 1 bytes, is no JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_target_that_could_serve_nobody_is_refused_by_its_field_and_another_serves(
    description: dict[str, Any], files: dict[str, bytes], reason: str
) -> None:
    driver, bad = Watched(), Target(**description)
    bad.files |= files
    async with serving(bad, Target()) as addresses:
        await driver.set_workers(addresses[:1], [])
        await driver.wait_expected(0)
        with pytest.raises(ServerUnavailable, match=re.escape(f"{addresses[0]} is refused: {reason}")):
            driver.served_model()
        await driver.set_workers(addresses, [])
        await driver.wait_up(addresses[1])
        info = server_info(driver, ServiceLimits(max_queued_requests=4, max_nodes=8), "0", is_draining=False)
        assert [target.state for target in info.targets] == [pb.WORKER_STATE_REFUSED, pb.WORKER_STATE_READY]
        assert info.targets[0].detail.startswith(reason)
        await driver.stop()


@pytest.mark.parametrize("change", [{"model": "theirs"}, {"end_token_ids": [1]}, {"num_kv_blocks": 16}])
async def test_what_one_model_has_begun_is_never_gone_on_with_by_another(change: dict[str, Any]) -> None:
    driver, target = Watched(), Target()
    async with serving(target) as addresses:
        await driver.set_workers(addresses, [])
        await driver.wait_up(addresses[0])
        mailbox = driver.submit(asked(driver.next_number()))
        await driver.set_workers([], [])
        target.description |= change
        await driver.set_workers(addresses, [])
        await driver.wait_up(addresses[0])
        if "num_kv_blocks" in change:
            assert (mailbox.finish, driver.core.num_running) == (None, 1)
        else:
            assert mailbox.finish is not None
            assert isinstance(mailbox.finish.error, ModelNotFound)
            assert driver.core.num_running == 0
        await driver.stop()


async def test_a_target_that_is_refused_is_used_once_it_is_repaired_and_refused_until_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(links, "REFUSED_PAUSE_S", 0.0)
    driver, target = Watched(), Target(block_size=0)
    async with serving(target) as addresses:
        await driver.set_workers(addresses, [])
        await driver.wait_expected(0)
        await target.wait_sessions(4)
        [link] = driver.target_links
        assert (link.state, link.detail) == (pb.WORKER_STATE_REFUSED, "its block_size is 0: it must be at least 1")
        assert [record.levelname for record in caplog.records if "is refused" in record.message] == ["ERROR"]
        target.description["block_size"] = 4
        await driver.wait_expected(1)
        await driver.wait_up(addresses[0])
        assert (link.state, link.detail) == (pb.WORKER_STATE_READY, "")
        await driver.stop()


async def test_another_model_is_refused_while_the_one_that_was_served_may_come_back_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "REFUSED_PAUSE_S", 0.0)
    driver, other = Watched(), Target(model="theirs")
    async with serving(Target(), other) as addresses:
        await driver.set_workers(addresses[:1], [])
        await driver.wait_up(addresses[0])
        await driver.set_workers(addresses, [])
        await driver.wait_expected(1)
        await driver.set_workers(addresses[1:], [], num_missing=1)
        await other.wait_sessions(4)
        assert [link.state for link in driver.target_links] == [pb.WORKER_STATE_REFUSED]
        await driver.set_workers(addresses[1:], [])
        await driver.wait_up(addresses[1])
        assert driver.served_model().description.model == "theirs"
        await driver.stop()


async def test_overlapping_changes_of_workers_end_with_the_last_one() -> None:
    driver = Driver(CoreConfig(), max_queued_requests=4)
    addresses = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
    await driver.set_workers(addresses[:1], addresses[1:])
    await asyncio.gather(
        driver.set_workers([], addresses[1:2]), driver.set_workers([], []), driver.set_workers([], addresses[2:])
    )
    assert [link.address for link in driver.drafter_links] == addresses[2:]
    await asyncio.gather(driver.set_workers(addresses, addresses), driver.stop())
    assert not list(driver.target_links)
    assert not list(driver.drafter_links)


async def test_of_a_queue_no_tenant_takes_more_than_it_leaves() -> None:
    """Ten places: one tenant comes to half of them, the next ones to half of the rest; who is not known to all."""
    driver = Driver(CoreConfig(max_running_requests=2), max_queued_requests=8)
    admitted: Counter[str] = Counter()

    def ask_until_refused(tenant: str) -> None:
        while True:
            driver.check_room(1, tenant)
            driver.submit(asked(driver.next_number(), tenant=tenant))
            admitted[tenant] += 1

    for tenant in ("a", "b", "c", "d", ""):
        with pytest.raises(Overloaded) as caught:
            ask_until_refused(tenant)
        assert caught.value.retry_after_s is not None
        if tenant == "a":
            assert "5 requests of tenant 'a' wait" in str(caught.value)
    assert admitted == {"a": 5, "b": 3, "c": 1, "d": 1}
    assert "10 wait, which is the limit" in str(caught.value)
    await driver.stop()


async def test_answers_that_were_promised_a_place_count_as_if_they_waited() -> None:
    driver = Driver(CoreConfig(max_running_requests=1), max_queued_requests=3)
    driver.check_room(2, "", num_coming=2)
    with pytest.raises(Overloaded):
        driver.check_room(2, "", num_coming=3)
    await driver.stop()


@pytest.mark.parametrize("tenant", ["a", ""])
async def test_requests_that_are_replaced_make_room_wherever_they_are(tenant: str) -> None:
    """As much as if they had ended before: ten that wait, of which a tenant that is known may have five."""
    driver = Driver(CoreConfig(max_running_requests=2), max_queued_requests=8)
    for _ in range(5):
        driver.submit(asked(driver.next_number(), tenant=tenant))
    for _ in range(5):
        driver.submit(asked(driver.next_number(), tenant="other"))
    for num_replaced in (1, 2, 5):
        replaced = range(1, num_replaced + 1)
        with pytest.raises(Overloaded):
            driver.check_room(num_replaced + 1, tenant, 0, replaced)
        if not tenant:
            driver.check_room(num_replaced, tenant, 0, replaced)
    driver.check_room(5, tenant, 0, range(1, 6))
    with pytest.raises(Overloaded):
        driver.check_room(1, tenant, 0, [99])  # that has ended
    await driver.stop()


class SlowCall:
    """A call whose writes end when the test says so."""

    def __init__(self) -> None:
        self.writing = asyncio.Event()
        self.may_end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def write(self, message: object) -> None:
        self.writing.set()
        await self.may_end


@pytest.mark.parametrize("num_turns", range(6))
async def test_a_session_that_is_dropped_as_a_write_ends_is_dropped(num_turns: int) -> None:
    """`asyncio.wait_for` of Python 3.11 forgets the drop where it comes up to two turns of the event loop later."""
    call, box = SlowCall(), OrderOutbox(DraftStream("w"))
    box.put(an_opening("w", 1))
    writer = asyncio.create_task(links._write_all(call, box))  # type: ignore[arg-type]
    await asyncio.wait_for(call.writing.wait(), TIMEOUT_S)
    call.may_end.set_result(None)
    for _ in range(num_turns):
        await asyncio.sleep(0)
    writer.cancel()
    await asyncio.wait([writer], timeout=1.0)
    assert writer.cancelled()
