"""The target's server: rank 0 answers the scheduler, the other ranks of its group follow."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc

from outrider.errors import InvalidRequest
from outrider.tls import CellTls
from outrider.v1 import target_pb2, target_pb2_grpc, worker_pb2
from workers.choice.grammar import Grammars
from workers.choice.noise import kept_noise
from workers.engine.checkpoint import DEFAULT_CACHE_DIR, Checkpoint, prepare_checkpoint
from workers.engine.device import resolve_device, set_num_threads
from workers.engine.kept_profiles import cost_profile
from workers.engine.runner import Engine
from workers.engine_thread import EngineThread
from workers.serving import Endpoint
from workers.target.group import Group
from workers.target.passes import Passes, Session
from workers.vocabulary import TOKENIZER_FILE, vocabulary_of

SERVICE = "outrider.v1.Target"
TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "chat_template.jinja")
_PIECE_BYTES = 1 << 20
_PASSES_AHEAD = 4  # that a stream may have waiting for the engine; the rest waits in the connection
_WRITE_TIMEOUT_S = 30.0
_TICKS_PER_TIMEOUT = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetConfig:
    """Of every rank of one target group; all ranks are given the same."""

    model: str  # a folder, a .gguf file or a hub name
    name: str = "target"
    tensor_parallel: int = 1
    dtype: str = "auto"
    device: str = "cpu"
    listen: str = "127.0.0.1:0"
    block_size: int = 16
    kv_cache_bytes: int | None = None  # None: what the device has to spare
    max_pass_tokens: int = 512
    compiled: bool = False  # start later and run faster; torch's compiler fuses what our kernels leave
    exact: bool = False  # a token's logits don't depend on the rest of the pass, or the start fails
    threads: int | None = None  # None: torch's own choice
    cache_dir: Path | None = None
    group_address: str | None = None  # "host:port" where the ranks meet; needed with tensor_parallel > 1
    group_timeout_s: float = 30.0  # silence after which a rank counts as lost
    profile_s: float = 3.0  # for measuring how long passes take, where no profile is kept; 0: there is none
    tls: CellTls | None = None  # of rank 0's port; what ranks say to each other is not encrypted


class TargetServer:
    """Rank 0. `start`, then `wait_failed` until it raises or `stop` is called; a server is started once."""

    def __init__(self, config: TargetConfig) -> None:
        self._config = config
        self._endpoint = Endpoint(config.listen, SERVICE, config.tls)
        self._thread: EngineThread | None = None
        self._group: Group | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Load the model, then serve. Returns the address, "host:port".

        Raises what keeps the model from being served (InvalidRequest, ModelNotFound, Unsupported, GroupLost).
        """
        self._thread = EngineThread("target-engine")
        try:
            checkpoint, engine = await self._thread.run(self._load)
            servicer = await self._thread.run(partial(_servicer, self._config, checkpoint, engine, self._thread))
            address = await self._endpoint.start(partial(target_pb2_grpc.add_TargetServicer_to_server, servicer))
        except BaseException:
            await self.stop(0)
            raise
        self._watch = asyncio.create_task(self._watch_over(self._thread))
        _log.info("the target serves %s at %s", engine.spec.name, address)
        return address

    async def wait_failed(self) -> None:
        """Returns once the server is stopped. Raises what the engine raised: the server is of no more use then."""
        assert self._thread is not None, "start comes first"
        await self._thread.wait_failed()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Let passes end for grace_s, then release everything. Harmless when it has been done."""
        await self._endpoint.stop(grace_s)
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait([watch])
        if self._thread is not None:
            self._thread.post(self._leave)
            await self._thread.close()

    def _load(self) -> tuple[Checkpoint, Engine]:
        checkpoint = _prepare(self._config)
        self._group = _join(self._config, rank=0)
        return checkpoint, _engine(self._config, checkpoint, self._group)

    def _leave(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.stop()
            group.leave()

    async def _watch_over(self, thread: EngineThread) -> None:
        """Keep the followers sure of rank 0 while it is idle, and tell health when the engine has failed."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(thread.wait_failed())
                if self._group is not None:
                    tasks.create_task(_tick(thread, self._group))
        except BaseExceptionGroup as errors:
            _log.critical("the target's engine has failed", exc_info=errors.exceptions[0])
            await self._endpoint.fail()


def serve_follower(config: TargetConfig, rank: int, stop: threading.Event | None = None) -> None:
    """A rank above 0: load its part of the model and do what rank 0 does, until rank 0 stops. Blocks.

    Raises GroupLost when rank 0 is gone, and what keeps the model from being loaded.
    """
    if config.tensor_parallel == 1:
        raise InvalidRequest.of("tensor_parallel", config.tensor_parallel, "a target of one rank has no followers")
    checkpoint = _prepare(config)
    group = _join(config, rank)
    assert group is not None
    try:
        group.follow(_engine(config, checkpoint, group), stop)
    finally:
        group.leave()


def _join(config: TargetConfig, rank: int) -> Group | None:
    if config.tensor_parallel == 1:
        return None
    if config.group_address is None:
        raise InvalidRequest.of("group_address", None, 'with tensor_parallel > 1 it is "host:port" of rank 0')
    return Group.join(
        rank,
        config.tensor_parallel,
        config.group_address,
        device=config.device,
        timeout_s=config.group_timeout_s,
    )


def _prepare(config: TargetConfig) -> Checkpoint:
    """Before the group is joined: a download or conversion takes as long as it takes, and transformers saves
    nothing in a process that is a rank above 0."""
    set_num_threads(config.threads)
    return prepare_checkpoint(config.model, tensor_parallel=config.tensor_parallel, cache_dir=config.cache_dir)


def _engine(config: TargetConfig, checkpoint: Checkpoint, group: Group | None) -> Engine:
    return Engine(
        checkpoint,
        device=config.device,
        dtype=config.dtype,
        tensor_parallel=config.tensor_parallel,
        block_size=config.block_size,
        kv_cache_bytes=config.kv_cache_bytes,
        compiled=config.compiled,
        exact=config.exact,
        cache_dir=config.cache_dir,
        group=group,
    )


async def _tick(thread: EngineThread, group: Group) -> None:
    while True:
        await asyncio.sleep(group.timeout_s / _TICKS_PER_TIMEOUT)
        await thread.run(group.tick)


def _servicer(config: TargetConfig, checkpoint: Checkpoint, engine: Engine, thread: EngineThread) -> _Servicer:
    """On the engine's thread, which measures how long passes take where that is not known yet."""
    noise = kept_noise(engine.spec.vocab_size, resolve_device(config.device))
    grammars = Grammars(checkpoint.folder, engine.spec.vocab_size, engine.spec.end_token_ids)
    return _Servicer(
        checkpoint.folder,
        _describe(config, checkpoint, engine),
        Passes(engine, noise, grammars, config.max_pass_tokens),
        thread,
    )


def _describe(config: TargetConfig, checkpoint: Checkpoint, engine: Engine) -> target_pb2.TargetDescription:
    return target_pb2.TargetDescription(
        name=config.name,
        model=checkpoint.model,
        vocabulary=vocabulary_of(checkpoint.folder, engine.spec.vocab_size),
        max_context=engine.spec.max_context,
        end_token_ids=engine.spec.end_token_ids,
        dtype=engine.spec.dtype,
        device=config.device,
        num_ranks=config.tensor_parallel,
        block_size=engine.block_size,
        num_kv_blocks=engine.num_blocks,
        max_pass_tokens=config.max_pass_tokens,
        pass_costs=_pass_costs(config, checkpoint, engine),
    )


def _pass_costs(config: TargetConfig, checkpoint: Checkpoint, engine: Engine) -> list[target_pb2.PassCost]:
    profile = cost_profile(
        checkpoint,
        engine,
        num_ranks=config.tensor_parallel,
        max_pass_tokens=config.max_pass_tokens,
        budget_s=config.profile_s,
        cache_dir=(config.cache_dir or DEFAULT_CACHE_DIR).expanduser(),
    )
    return [
        target_pb2.PassCost(num_tokens=cost.point.num_tokens, context_len=cost.point.context_len, pass_ms=cost.pass_ms)
        for cost in profile
    ]


class _Servicer(target_pb2_grpc.TargetServicer):
    """The calls of target.proto."""

    def __init__(
        self, folder: Path, description: target_pb2.TargetDescription, passes: Passes, thread: EngineThread
    ) -> None:
        self._folder = folder
        self._description = description
        self._passes = passes
        self._thread = thread

    async def Describe(  # noqa: N802 - gRPC's name
        self,
        request: worker_pb2.DescribeRequest,
        context: grpc.aio.ServicerContext[worker_pb2.DescribeRequest, target_pb2.TargetDescription],
    ) -> target_pb2.TargetDescription:
        return self._description

    async def GetTokenizer(  # noqa: N802 - gRPC's name
        self,
        request: target_pb2.GetTokenizerRequest,
        context: grpc.aio.ServicerContext[target_pb2.GetTokenizerRequest, target_pb2.TokenizerPiece],
    ) -> AsyncIterator[target_pb2.TokenizerPiece]:
        for file in TOKENIZER_FILES:
            path = self._folder / file
            data = await asyncio.to_thread(path.read_bytes) if path.is_file() else b""
            for start in range(0, len(data), _PIECE_BYTES):
                yield target_pb2.TokenizerPiece(file=file, data=data[start : start + _PIECE_BYTES])

    async def Connect(  # type: ignore[override]  # noqa: N802 - gRPC's name; it also takes a coroutine that writes
        self, request_iterator: AsyncIterator[target_pb2.TargetCommand], context: _Stream
    ) -> None:
        """Reads ahead, so that the engine has the next pass when it is done with one."""
        session = Session()
        results: _Results = asyncio.Queue(_PASSES_AHEAD)
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._thread.wait_failed())
                tasks.create_task(self._read(request_iterator, session, results))
                await _write(results, context)
                watch.cancel()
        except ExceptionGroup:
            if self._thread.failure is None:
                raise
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the target has failed: {self._thread.failure}")
        finally:
            self._thread.post(partial(self._passes.close, session))

    async def _read(
        self, commands: AsyncIterator[target_pb2.TargetCommand], session: Session, results: _Results
    ) -> None:
        async for command in commands:
            kind = command.WhichOneof("command")
            if kind == "pass":
                asked: target_pb2.Pass = getattr(command, "pass")  # a keyword of Python
                await results.put(self._thread.submit(partial(self._passes.run, session, asked)))
            elif kind == "release":
                self._thread.post(partial(self._passes.release, session, command.release))
            else:
                _log.warning("a command of an unknown kind is left out; is the scheduler newer than this target?")
        await results.put(None)


_Stream = grpc.aio.ServicerContext[target_pb2.TargetCommand, target_pb2.TargetReport]
_Results = asyncio.Queue[asyncio.Future[target_pb2.PassResult] | None]  # None: no more will come


async def _write(results: _Results, context: _Stream) -> None:
    while (result := await results.get()) is not None:
        report = target_pb2.TargetReport(pass_result=await result)
        async with asyncio.timeout(_WRITE_TIMEOUT_S):
            await context.write(report)
