"""A real target on a tiny model, spoken to over real gRPC."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import torch
from transformers import AutoModelForCausalLM

from outrider.packing import pack_i32, unpack_i32
from outrider.rpc import link_options
from outrider.v1 import inference_pb2, target_pb2, target_pb2_grpc, worker_pb2
from workers.choice.choose import choose
from workers.choice.params import choice_params
from workers.choice.paths import Paths
from workers.choice.penalties import edit
from workers.target.server import TargetConfig, TargetServer

TIMEOUT_S = 30.0
GREEDY = inference_pb2.SamplingParams(temperature=0)
SEEDED = inference_pb2.SamplingParams(temperature=0.8, seed=1234, top_k=60, top_p=0.97)


class Reference:
    """The same model in transformers' own forward: one token at a time, no cache, no draft."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder)

    def decode(self, prompt: Sequence[int], num_tokens: int, sampling: inference_pb2.SamplingParams) -> list[int]:
        opened = worker_pb2.OpenRequest(sampling=sampling, num_prompt_tokens=len(prompt))
        return self.decode_opened(prompt, num_tokens, opened)

    @torch.inference_mode()
    def decode_opened(self, prompt: Sequence[int], num_tokens: int, opened: worker_pb2.OpenRequest) -> list[int]:
        params = choice_params(opened)
        tokens = list(prompt)
        while len(tokens) < len(prompt) + num_tokens:
            logits = self._model(torch.tensor([tokens])).logits[0, -1:].float()
            edit(logits, params, Paths(tokens))
            tokens.append(int(choose(logits, [len(tokens)], [params])))
        return tokens[len(prompt) :]


class Link:
    """A scheduler's stream to a target, one pass at a time."""

    def __init__(self, stub: target_pb2_grpc.TargetAsyncStub) -> None:
        self._stream = stub.Connect()  # type: ignore[call-arg]  # the stubs know only the form with an iterator
        self._pass_id = 0

    async def send(self, *rows: target_pb2.Row) -> int:
        """Ask without waiting. Returns the pass's number."""
        self._pass_id += 1
        command = target_pb2.TargetCommand()
        asked: target_pb2.Pass = getattr(command, "pass")  # a keyword of Python
        asked.pass_id = self._pass_id
        asked.rows.extend(rows)
        asked.SetInParent()
        async with asyncio.timeout(TIMEOUT_S):
            await self._stream.write(command)
        return self._pass_id

    async def receive(self) -> target_pb2.PassResult:
        async with asyncio.timeout(TIMEOUT_S):
            report = await self._stream.read()
        assert isinstance(report, target_pb2.TargetReport), "the stream has ended"
        return report.pass_result

    async def ask(self, *rows: target_pb2.Row) -> target_pb2.PassResult:
        pass_id = await self.send(*rows)
        result = await self.receive()
        assert result.pass_id == pass_id
        assert [row.ref for row in result.rows] == [row.ref for row in rows]
        return result

    async def ask_one(self, row: target_pb2.Row) -> target_pb2.RowResult:
        return (await self.ask(row)).rows[0]

    async def release(self, request: int, epoch: int) -> None:
        ref = worker_pb2.RequestRef(request=request, epoch=epoch)
        async with asyncio.timeout(TIMEOUT_S):
            await self._stream.write(target_pb2.TargetCommand(release=ref))

    async def end(self) -> None:
        """Half-close, and wait for the target's end of the stream."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._stream.done_writing()
            assert await self._stream.read() == grpc.aio.EOF  # type: ignore[attr-defined]

    def cancel(self) -> None:
        self._stream.cancel()

    async def details(self) -> str:
        async with asyncio.timeout(TIMEOUT_S):
            return await self._stream.details() or ""

    async def code(self) -> grpc.StatusCode:
        async with asyncio.timeout(TIMEOUT_S):
            return await self._stream.code()


@asynccontextmanager
async def serving(config: TargetConfig) -> AsyncIterator[tuple[TargetServer, target_pb2_grpc.TargetAsyncStub]]:
    server = TargetServer(config)
    address = await server.start()
    try:
        async with grpc.aio.insecure_channel(address, options=link_options()) as channel:
            yield server, target_pb2_grpc.TargetStub(channel)
    finally:
        await server.stop(0)


def make_row(
    request: int,
    committed: Sequence[int],
    *,
    start: int = 0,
    end: int | None = None,  # of the tokens that the row brings
    epoch: int = 1,
    open_with: inference_pb2.SamplingParams | None = None,
    nodes: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> target_pb2.Row:
    """A row that brings committed[start:end]."""
    row = target_pb2.Row(
        ref=worker_pb2.RequestRef(request=request, epoch=epoch),
        committed_len=len(committed),
        tokens=worker_pb2.TokenSpan(start=start, ids=pack_i32(committed[start:end])),
        node_tokens=pack_i32(nodes[0]),
        node_parents=pack_i32(nodes[1]),
    )
    if open_with is not None:
        row.open.sampling.CopyFrom(open_with)
        row.open.num_prompt_tokens = len(committed)
    return row


def tokens_of(result: target_pb2.RowResult) -> list[int]:
    assert result.status == target_pb2.ROW_STATUS_OK, result
    return unpack_i32(result.tokens)


def random_tree(rng: random.Random, future: Sequence[int], vocab: int, max_nodes: int) -> tuple[list[int], list[int]]:
    """A tree of right and wrong nodes; `future` are the tokens that decoding will choose."""
    tokens: list[int] = []
    parents: list[int] = []
    depths = [0]
    for node in range(rng.randrange(max_nodes + 1)):
        parent = rng.choice([node - 1, rng.randrange(-1, node)])
        depth = depths[parent + 1]
        is_right = rng.random() < 0.7 and depth < len(future)
        tokens.append(future[depth] if is_right else rng.randrange(vocab))
        parents.append(parent)
        depths.append(depth + 1)
    return tokens, parents
