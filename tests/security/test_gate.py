"""The gate before a public service, with real gRPC: who is let in, as whom, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from outrider import AsyncClient, SamplingParams
from outrider.errors import Overloaded, Unauthenticated
from outrider.guard import Guard
from outrider.v1 import inference_pb2 as pb
from outrider.v1 import inference_pb2_grpc
from scheduler import gate as gates
from scheduler.gate import Gate
from scheduler.tenants import tenant
from scheduler.tokens import new_token
from tests.security.test_tokens import entry, written

ONE, TWO = new_token(), new_token()
TIMEOUT_S = 30.0


class Told(inference_pb2_grpc.InferenceServicer):
    """Answers with the tenant that it was called as; a stream goes on when it may."""

    def __init__(self) -> None:
        self.num_streams = 0
        self.may_end = asyncio.Event()

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: object) -> pb.GetModelInfoResponse:  # type: ignore[override]  # noqa: N802
        return pb.GetModelInfoResponse(model=tenant.get())

    async def Generate(self, request: pb.GenerateRequest, context: object) -> AsyncIterator[pb.GenerateResponse]:  # type: ignore[override]  # noqa: N802
        self.num_streams += 1
        try:
            yield pb.GenerateResponse(started=pb.Started(model=tenant.get()))
            await self.may_end.wait()
            yield pb.GenerateResponse(started=pb.Started(model=tenant.get()))
        finally:
            self.num_streams -= 1


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return written(tmp_path / "tokens.toml", entry("one", ONE) + entry("two", TWO))


@asynccontextmanager
async def guarded(tokens: Path, told: Told | None = None) -> AsyncIterator[str]:
    gate = Gate(tokens)
    server = grpc.aio.server(interceptors=[Guard(gate.enter)])
    inference_pb2_grpc.add_InferenceServicer_to_server(told or Told(), server)
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((reflection.SERVICE_NAME,), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    fresh = asyncio.create_task(gate.keep_fresh())
    try:
        yield address
    finally:
        fresh.cancel()
        await server.stop(0)


async def called_as(address: str, token: str | None) -> str:
    async with AsyncClient(address, token=token) as client:
        return (await client.model_info()).model


async def test_a_call_is_made_as_the_tenant_whose_token_it_has(tokens: Path) -> None:
    async with guarded(tokens) as address:
        assert [await called_as(address, token) for token in (ONE, TWO, ONE)] == ["one", "two", "one"]


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ONE),),
        (("authorization", f"Basic {ONE}"),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", f"Bearer {ONE[:-1]}"),),
        (("authorization", f"Bearer {ONE}{ONE}"),),
        (("authorization", f"Bearer {ONE}"), ("authorization", "Bearer wrong")),
        (("token", ONE),),
    ],
)
async def test_a_call_without_a_right_token_is_unauthenticated_and_reaches_nobody(
    tokens: Path, metadata: tuple[tuple[str, str], ...]
) -> None:
    told = Told()
    async with guarded(tokens, told) as address, grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=metadata, timeout=TIMEOUT_S)
        with pytest.raises(grpc.aio.AioRpcError) as stream:
            await stub.Generate(pb.GenerateRequest(), metadata=metadata, timeout=TIMEOUT_S).read()
        assert unary.value.code() is stream.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert ONE not in (unary.value.details() or "")
        assert told.num_streams == 0


async def test_the_scheme_is_read_in_any_case_as_http_says(tokens: Path) -> None:
    async with guarded(tokens) as address, grpc.aio.insecure_channel(address) as channel:
        info = inference_pb2_grpc.InferenceStub(channel).GetModelInfo
        answer = await info(pb.GetModelInfoRequest(), metadata=(("authorization", f"bearer {TWO}"),), timeout=TIMEOUT_S)
        assert answer.model == "two"


async def test_health_is_told_to_everybody_and_reflection_is_not(tokens: Path) -> None:
    async with guarded(tokens) as address, grpc.aio.insecure_channel(address) as channel:
        health_stub = health_pb2_grpc.HealthStub(channel)
        answer = await health_stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = health_stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=TIMEOUT_S
        )
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await listing.read()
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_streams_that_run_at_once_each_keep_their_own_tenant(tokens: Path) -> None:
    told = Told()
    async with guarded(tokens, told) as address, grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        calls = [
            stub.Generate(pb.GenerateRequest(), metadata=(("authorization", f"Bearer {token}"),), timeout=TIMEOUT_S)
            for token in (ONE, TWO, ONE)
        ]
        first = [(await call.read()).started.model for call in calls]
        told.may_end.set()
        second = [(await call.read()).started.model for call in calls]
        assert first == second == ["one", "two", "one"]


async def test_a_tenant_at_its_limit_is_told_when_to_come_back_and_a_stream_that_is_left_makes_room(
    tmp_path: Path,
) -> None:
    limited = written(tmp_path / "tokens.toml", entry("one", ONE, more="max_calls = 1") + entry("two", TWO))
    told = Told()
    async with guarded(limited, told) as address, AsyncClient(address, token=ONE) as client:
        generation = client.generate("Why?", sampling=SamplingParams(max_tokens=1))
        chunks = generation.chunks()
        await anext(chunks)
        with pytest.raises(Overloaded) as raised:
            await client.model_info()
        assert raised.value.retry_after_s
        assert await called_as(address, TWO) == "two"
        await chunks.aclose()
        async with asyncio.timeout(TIMEOUT_S):
            while True:  # until the server has seen that the client is gone
                try:
                    assert (await client.model_info()).model == "one"
                    break
                except Overloaded:
                    await asyncio.sleep(0)
        assert told.num_streams == 0


async def test_calls_beyond_those_of_a_minute_are_refused_with_the_time_to_wait(tmp_path: Path) -> None:
    limited = written(tmp_path / "tokens.toml", entry("one", ONE, more="calls_per_minute = 2"))
    async with guarded(limited) as address, AsyncClient(address, token=ONE) as client:
        await client.model_info()
        await client.model_info()
        with pytest.raises(Overloaded, match="2 calls a minute") as raised:
            await client.model_info()
        assert raised.value.retry_after_s is not None
        assert 0 < raised.value.retry_after_s <= 30


async def test_a_changed_file_lets_new_tenants_in_and_shuts_old_ones_out(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "_REFRESH_S", 0.01)
    three = new_token()
    async with guarded(tokens) as address, asyncio.timeout(TIMEOUT_S):
        with pytest.raises(Unauthenticated):
            await called_as(address, three)
        written(tokens.with_suffix(".new"), entry("three", three)).replace(tokens)
        while True:
            try:
                assert await called_as(address, three) == "three"
                break
            except Unauthenticated:
                await asyncio.sleep(0.01)
        with pytest.raises(Unauthenticated):
            await called_as(address, ONE)
