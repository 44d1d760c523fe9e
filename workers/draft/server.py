"""The drafter worker's server: orders in, nodes out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from tokenizers import Tokenizer

from outrider.errors import InvalidRequest, Overloaded
from outrider.tls import CellTls
from outrider.v1 import drafter_pb2, drafter_pb2_grpc, worker_pb2
from workers.draft.commands import carry_out
from workers.draft.drafter import DrafterSpec, Resources, TextDrafter, load_drafter
from workers.draft.hosted import Hosted, Stream
from workers.engine_thread import EngineThread, wait_any_failed
from workers.serving import Endpoint

SERVICE = "outrider.v1.Drafter"
_WRITE_TIMEOUT_S = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterConfig:
    """Of one drafter worker."""

    drafters: tuple[str, ...]  # "ngram", "model:PATH_OR_NAME", "NAME=model:PATH_OR_NAME"
    name: str = "drafter"
    dtype: str = "auto"
    device: str = "cpu"
    listen: str = "127.0.0.1:0"
    threads: int | None = None  # None: torch's own choice
    kv_cache_bytes: int | None = None  # of each model; None: what the device has to spare
    compiled: bool = False  # start later and run faster
    cache_dir: Path | None = None
    tls: CellTls | None = None


class DrafterServer:
    """`start`, then `wait_failed` until it raises or `stop` is called; a server is started once.

    Each drafter has a thread of its own: a slow one never keeps a fast one waiting.
    """

    def __init__(self, config: DrafterConfig) -> None:
        self._config = config
        self._specs = _parse(config.drafters)
        self._endpoint = Endpoint(config.listen, SERVICE, config.tls)
        self._threads: list[EngineThread] = []
        self._drafting: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None  # of a drafter, on its thread or on its way to the wire
        self._is_over = asyncio.Event()  # it has failed, or is stopped

    async def start(self) -> str:
        """Load the drafters, then serve. Returns the address, "host:port".

        Raises what keeps a drafter from being served (InvalidRequest, ModelNotFound, Unsupported).
        """
        try:
            hosted = [await self._host(spec) for spec in self._specs]
            servicer = _Servicer(self._config, {each.name: each for each in hosted}, self._threads)
            address = await self._endpoint.start(partial(drafter_pb2_grpc.add_DrafterServicer_to_server, servicer))
        except BaseException:
            await self.stop(0)
            raise
        self._drafting = asyncio.create_task(self._draft(hosted))
        _log.info("%s drafts with %s at %s", self._config.name, ", ".join(each.name for each in hosted), address)
        return address

    async def wait_failed(self) -> None:
        """Returns once the server is stopped. Raises what a drafter raised, or what its nodes led to: the server is of
        no more use then."""
        await self._is_over.wait()
        if self._failure is not None:
            raise self._failure

    async def stop(self, grace_s: float = 5.0) -> None:
        """End the streams within grace_s and release everything. Harmless when it has been done."""
        await self._endpoint.stop(grace_s)
        drafting, self._drafting = self._drafting, None
        if drafting is not None:
            drafting.cancel()
            await asyncio.wait([drafting])
        for thread in self._threads:
            await thread.close()
        self._is_over.set()

    async def _host(self, spec: DrafterSpec) -> Hosted:
        config = self._config
        resources = Resources(
            device=config.device,
            dtype=config.dtype,
            threads=config.threads,
            kv_cache_bytes=config.kv_cache_bytes,
            compiled=config.compiled,
            cache_dir=config.cache_dir,
        )
        thread = EngineThread(f"drafter-{spec.name}")
        self._threads.append(thread)
        return Hosted(spec.name, await thread.run(partial(load_drafter, spec, resources)))

    async def _draft(self, hosted: list[Hosted]) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for each, thread in zip(hosted, self._threads, strict=True):
                    tasks.create_task(each.run(thread))
        except ExceptionGroup as errors:
            _log.critical("%s has failed", self._config.name, exc_info=errors.exceptions[0])
            self._failure = errors.exceptions[0]
            self._is_over.set()
            await self._endpoint.fail()


def _parse(drafters: tuple[str, ...]) -> list[DrafterSpec]:
    if not drafters:
        raise InvalidRequest.of("drafters", list(drafters), 'a drafter worker has at least one, such as "ngram"')
    specs = [DrafterSpec.parse(text) for text in drafters]
    names = [spec.name for spec in specs]
    for text, name in zip(drafters, names, strict=True):
        if names.count(name) > 1:
            raise InvalidRequest.of("drafters", text, f"{name!r} is taken; name one of them: NAME=SPEC")
    return specs


_Streaming = grpc.aio.ServicerContext[drafter_pb2.DrafterCommand, drafter_pb2.DrafterReport]


class _Servicer(drafter_pb2_grpc.DrafterServicer):
    """The calls of drafter.proto."""

    def __init__(self, config: DrafterConfig, hosted: Mapping[str, Hosted], threads: list[EngineThread]) -> None:
        self._config = config
        self._hosted = hosted
        self._threads = threads

    async def Describe(  # noqa: N802 - gRPC's name
        self,
        request: worker_pb2.DescribeRequest,
        context: grpc.aio.ServicerContext[worker_pb2.DescribeRequest, drafter_pb2.DrafterWorkerDescription],
    ) -> drafter_pb2.DrafterWorkerDescription:
        descriptions = [
            drafter_pb2.DrafterDescription(
                name=each.name,
                kind=each.drafter.kind,
                model=each.drafter.model,
                vocabulary=each.drafter.vocabulary,
                max_context=each.drafter.max_context,
                draws=each.drafter.draws,
                reads_text=isinstance(each.drafter, TextDrafter),
            )
            for each in self._hosted.values()
        ]
        return drafter_pb2.DrafterWorkerDescription(
            name=self._config.name, drafters=descriptions, device=self._config.device
        )

    async def TakeTokenizer(  # noqa: N802 - gRPC's name
        self,
        request: drafter_pb2.TargetTokenizer,
        context: grpc.aio.ServicerContext[drafter_pb2.TargetTokenizer, drafter_pb2.TokenizerTaken],
    ) -> drafter_pb2.TokenizerTaken:
        for each, thread in zip(self._hosted.values(), self._threads, strict=True):
            if isinstance(each.drafter, TextDrafter):
                try:
                    # One for each: it is changed where it is used.
                    tokenizer = await asyncio.to_thread(Tokenizer.from_buffer, request.json)
                except ValueError as err:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"json is no tokenizer: {err}")
                await thread.run(partial(each.drafter.take_tokenizer, tokenizer))
                each.is_ready = True
        return drafter_pb2.TokenizerTaken()

    async def Connect(  # type: ignore[override]  # noqa: N802 - gRPC's name; it also takes a coroutine that writes
        self, request_iterator: AsyncIterator[drafter_pb2.DrafterCommand], context: _Streaming
    ) -> None:
        stream = Stream()
        try:
            async with asyncio.TaskGroup() as tasks:
                others = [
                    tasks.create_task(wait_any_failed(self._threads)),
                    tasks.create_task(_refuse_overrun(stream)),
                    tasks.create_task(_write(stream, context)),
                ]
                async for command in request_iterator:
                    carry_out(stream, command, self._hosted)
                for task in others:
                    task.cancel()
        except ExceptionGroup as errors:
            _log.error("a scheduler's stream ends: %s", errors.exceptions[0])
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._config.name}: {errors.exceptions[0]}")
        finally:
            for each in self._hosted.values():
                each.close(stream)


async def _write(stream: Stream, context: _Streaming) -> None:
    while True:
        report = await stream.reports.get()
        async with asyncio.timeout(_WRITE_TIMEOUT_S):
            await context.write(report)


async def _refuse_overrun(stream: Stream) -> None:
    """Nobody is waited for, and nothing is dropped in silence: a scheduler that reads too slowly starts over."""
    await stream.is_overrun.wait()
    raise Overloaded("the scheduler reads its reports too slowly")
