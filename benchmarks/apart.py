"""What benchmarks.validation tells the simulator of a cell's workers: of each alone on its core, and beside the other.

A target and a draft model, each in a process as it serves: V(n) as the target's own passes report it, over trees of
chains of eight, one row, each size by itself; what a token's logits take, by which passes over prompts are shorter;
steps of the draft model, by the tokens that they compute; and how much longer each takes while the other computes too,
since two cores of one machine share its memory.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from benchmarks.measure import checkpoint_of
from benchmarks.overlap import OTHER_CORE, TARGET_CORE
from benchmarks.playing import Play, Tally
from outrider.packing import pack_i32, unpack_i32
from outrider.v1 import inference_pb2, target_pb2, worker_pb2
from workers.choice.grammar import Grammars
from workers.choice.noise import kept_noise
from workers.choice.params import ChoiceParams
from workers.draft.drafter import Resources
from workers.draft.growing import Growing, Order
from workers.draft.model import ModelDrafter, load
from workers.engine.cost_profile import chains
from workers.engine.runner import Engine
from workers.target.passes import Passes, Session
from workers.target.server import TargetConfig
from workers.training.answering import answer_prompts, pick_as_served
from workers.training.distill import encoder
from workers.training.prompts import Prompt
from workers.training.shards import Answer

MAX_NODES = 8
STEPS_OF_A_ROOT = 4
CONTEXTS = (32, 512)
PROMPT_LENS = (32, 64)  # of which the logits' part is taken
MOST_BESIDE = 16  # tokens of passes that are measured beside the draft model at work
MOST_GROWTH = 160  # of a context, while passes behind it are measured
_WARM_UP, _NUM_PASSES = 3, 9  # medians are taken over the latter


@dataclass(frozen=True, slots=True)
class Apart:
    passes: list[list[float]]  # [tokens, context, milliseconds]
    logits_ms: float  # of a token
    disturbance: float  # of a pass, by steps beside it
    steps: list[list[float]]  # [tokens, context, milliseconds]
    steps_beside: list[list[float]]  # the same, while the target computes
    acceptance: list[float]  # by rank
    sharpness: float
    prompt_lens: list[int]  # by text; what the target computes


class Measured(Protocol):
    """Made in a process of its own."""

    def first(self) -> Any:
        """What is measured of it alone."""

    def again(self) -> Any:
        """What is measured beside the other."""

    def work(self) -> None:
        """A moment of it, for the other to be measured beside."""


def measured_apart(
    model: str, dtype: str, draft: str, prompts: Sequence[str], asked: Sequence[str], size: int
) -> Apart:
    """`prompts`: whose answers the draft model guesses at; `asked`: the same as they are asked for."""
    with _process(TargetApart, TARGET_CORE, model, dtype) as target:
        target.send("first")
        passes, logits_ms = target.recv()
        with _process(DraftApart, OTHER_CORE, model, dtype, draft, prompts, asked, size) as drafter:
            drafter.send("first")
            steps, acceptance, sharpness, prompt_lens = drafter.recv()
            target.send("work")
            drafter.send("again")
            steps_beside = drafter.recv()
            drafter.send("work")
            target.send("again")
            beside = target.recv()
    alone = {(num_tokens, context): pass_ms for num_tokens, context, pass_ms in passes}
    ratios = [pass_ms / alone[num_tokens, context] for num_tokens, context, pass_ms in beside]
    disturbance = max(statistics.median(ratios) - 1, 0.0)
    return Apart(passes, logits_ms, disturbance, steps, steps_beside, acceptance, sharpness, prompt_lens)


@contextmanager
def _process(kind: Callable[..., Measured], core: int, *arguments: object) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(kind, core, theirs, arguments), daemon=True)
    process.start()
    try:
        yield mine
    finally:
        process.kill()
        process.join()


def _serve(kind: Callable[..., Measured], core: int, pipe: Connection, arguments: tuple[object, ...]) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    measured = kind(*arguments)
    while True:
        match pipe.recv():
            case "first":
                pipe.send(measured.first())
            case "again":
                pipe.send(measured.again())
            case "work":
                while not pipe.poll():
                    measured.work()


class TargetApart:
    def __init__(self, model: str, dtype: str) -> None:
        checkpoint = checkpoint_of(model)
        engine = Engine(checkpoint, dtype=dtype, kv_cache_bytes=1_000_000_000, compiled=True)
        self._vocab_size, self._most = engine.spec.vocab_size, TargetConfig(model=model).max_pass_tokens
        noise = kept_noise(self._vocab_size, engine.device)
        self._passes = Passes(engine, noise, Grammars(checkpoint.folder, self._vocab_size, []), self._most)
        self._session, self._numbers, self._rng = Session(), count(1), random.Random(0)
        self._working = self._trees(4, CONTEXTS[0])

    def first(self) -> tuple[list[list[float]], float]:
        costs = self._costs(self._most)
        of_trees = {num_tokens: pass_ms for num_tokens, context, pass_ms in costs if context == CONTEXTS[0]}
        of_prompts = {length: self._prompt_ms(length) for length in PROMPT_LENS}
        parts = [(of_trees[length] - of_prompts[length]) / (length - 1) for length in PROMPT_LENS]
        return costs, max(statistics.mean(parts), 0.0)

    def again(self) -> list[list[float]]:
        return self._costs(MOST_BESIDE)

    def work(self) -> None:
        if next(self._working, None) is None:
            self._working = self._trees(4, CONTEXTS[0])

    def _costs(self, most: int) -> list[list[float]]:
        costs: list[list[float]] = []
        for num_tokens in (1 << power for power in range(most.bit_length())):
            for context in CONTEXTS:
                trees = self._trees(num_tokens, context)
                times = [next(trees) for _ in range(_WARM_UP + _NUM_PASSES)]
                pass_ms = statistics.median(times[_WARM_UP:])
                costs.append([float(num_tokens), float(context), pass_ms])
                trees.close()
        return costs

    def _prompt_ms(self, length: int) -> float:
        """Of prompts that nothing is known of."""
        times: list[float] = []
        for _ in range(_WARM_UP + _NUM_PASSES):
            number = next(self._numbers)
            times.append(self._run(self._opening(number, self._tokens(length))).pass_ms)
            self._passes.release(self._session, worker_pb2.RequestRef(request=number, epoch=1))
        return statistics.median(times[_WARM_UP:])

    def _trees(self, num_tokens: int, context: int) -> Generator[float, None, None]:
        """Milliseconds of passes, each over a root and its nodes, until the context has grown noticeably."""
        number = next(self._numbers)
        known = self._run(self._opening(number, self._tokens(context))).rows[0]
        parents = chains(num_tokens - 1)
        try:
            while known.known_len < context + MOST_GROWTH:
                row = target_pb2.Row(
                    ref=known.ref,
                    committed_len=known.known_len,
                    tokens=worker_pb2.TokenSpan(start=known.known_len),
                    node_tokens=pack_i32(self._tokens(num_tokens - 1)),
                    node_parents=pack_i32(parents),
                )
                result = self._run(row)
                known = result.rows[0]
                yield result.pass_ms
        finally:
            self._passes.release(self._session, known.ref)

    def _opening(self, number: int, prompt: Sequence[int]) -> target_pb2.Row:
        opening = worker_pb2.OpenRequest(
            sampling=inference_pb2.SamplingParams(temperature=0.0), num_prompt_tokens=len(prompt)
        )
        return target_pb2.Row(
            ref=worker_pb2.RequestRef(request=number, epoch=1),
            committed_len=len(prompt),
            open=opening,
            tokens=worker_pb2.TokenSpan(start=0, ids=pack_i32(prompt)),
        )

    def _run(self, row: target_pb2.Row) -> target_pb2.PassResult:
        result = self._passes.run(self._session, target_pb2.Pass(pass_id=1, rows=[row]))
        assert unpack_i32(result.rows[0].tokens), result.rows[0].detail
        return result

    def _tokens(self, num: int) -> list[int]:
        return [self._rng.randrange(self._vocab_size) for _ in range(num)]


class DraftApart:
    def __init__(
        self, model: str, dtype: str, draft: str, prompts: Sequence[str], asked: Sequence[str], size: int
    ) -> None:
        checkpoint = checkpoint_of(model)
        encode = encoder(checkpoint)
        engine = Engine(checkpoint, dtype=dtype, kv_cache_bytes=1_000_000_000)
        self._answers = [Answer(number, encode(Prompt("chat", text)), 0.0) for number, text in enumerate(prompts)]
        answer_prompts(engine, self._answers, pick_as_served, lambda num_tokens: None, max_tokens=size)
        prompt_lens = [encode(Prompt("chat", text)) for text in asked]
        num_common = next(i for i, tokens in enumerate(zip(*prompt_lens, strict=False)) if len(set(tokens)) > 1)
        num_cached = num_common // engine.block_size * engine.block_size
        self._prompt_lens = [len(prompt) - num_cached for prompt in prompt_lens]
        self._drafter: ModelDrafter = load(draft, Resources(threads=1, kv_cache_bytes=500_000_000, compiled=True))
        self._working = self._steps(1)

    def first(self) -> tuple[list[list[float]], list[float], float, list[int]]:
        tally = Tally()
        Play({"draft": self._drafter}, MAX_NODES, is_chain=False).run((answer, tally) for answer in self._answers)
        acceptance = [tally.right_ranks[rank] / tally.num_first for rank in range(4)]
        return self.again(), acceptance, _sharpness(tally, acceptance[0]), self._prompt_lens

    def again(self) -> list[list[float]]:
        """Medians by the number of tokens computed, rounded to a power of two."""
        times: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
        for num_requests in (1, 2, 4, 8, 16):
            for computed, took_ms in self._steps(num_requests):
                times[round(math.log2(computed))].append((computed, took_ms))
        return [
            [float(round(statistics.mean(n for n, _ in each))), 0.0, statistics.median(ms for _, ms in each)]
            for _, each in sorted(times.items())
        ]

    def work(self) -> None:
        if next(self._working, None) is None:
            self._working = self._steps(1)

    def _steps(self, num_requests: int) -> Iterator[tuple[int, float]]:
        """Tokens computed, and milliseconds, of the steps behind each token of so many answers."""
        engine, computed = self._drafter._engine, 0
        forward = engine.forward_packed

        def counted(rows: Any) -> Any:
            nonlocal computed
            computed += sum(row.num_tokens for row in rows)
            return forward(rows)

        growing, some = Growing(self._drafter), self._answers[:num_requests]
        params = ChoiceParams(temperature=0.0)
        orders = [Order(key, params, [*answer.prompt, answer.tokens[0]], 0) for key, answer in enumerate(some)]
        engine.forward_packed = counted  # type: ignore[method-assign]
        try:
            growing.step([], orders)
            for place in range(1, min(len(answer.tokens) for answer in some)):
                orders = [Order(key, None, [answer.tokens[place]], 3 * MAX_NODES) for key, answer in enumerate(some)]
                for _ in range(STEPS_OF_A_ROOT):
                    computed, started = 0, time.perf_counter()
                    growing.step([], orders)
                    if computed and place > 2:
                        yield computed, 1000 * (time.perf_counter() - started)
                    orders = []
        finally:
            growing.step(list(range(num_requests)), [])
            del engine.forward_packed


def _sharpness(tally: Tally, mean: float) -> float:
    """Such that modelled confidences differ as much from place to place as the survivals of first guesses do."""
    power = (1 - mean) / mean
    widest = math.sqrt(1 / (2 * power + 1) - 1 / (power + 1) ** 2)
    return min(statistics.pstdev(tally.first_survivals) / widest, 1.0)
