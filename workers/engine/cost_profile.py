"""How long a pass takes, by its number of tokens and the context behind them: V(num_tokens, context_len), measured.

One point is the time of `Engine.forward` until its logits are there, for one row: a root and num_tokens - 1 nodes in
chains of eight below it, all of whose logits are wanted. The context is pretended, not computed.

    warm-up and first round    points in ascending order, each run twice and timed once, until the budget allows no more
    further rounds             every point once, down and up again in turn, so that a machine that changes its pace
                               bends no curve, and no pass finds the caches as one much larger has left them
    result                     each point's median; a point that was not reached is not there

Choosing and walking are not part of it. Nor is what many rows cost beyond one of as many tokens, since each reads a
context of its own.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from outrider.tree import ROOT
from workers.engine.batch import Row
from workers.engine.runner import Engine

CONTEXTS = (256, 1024)
KNEE = 1.3  # a pass that costs less than so many times a pass over one token is nearly free
_CHAIN = 8
_MIN_ROUNDS = 3
_MAX_ROUNDS = 7
_FIRST_KEY = 0  # nothing else is open


@dataclass(frozen=True, slots=True, order=True)
class Point:
    num_tokens: int
    context_len: int


@dataclass(frozen=True, slots=True)
class PassCost:
    point: Point
    pass_ms: float


def points_that_fit(engine: Engine, max_pass_tokens: int) -> list[Point]:
    """The points to be measured, fewest tokens first: those for which the model's context and the pool have room."""
    num_free = engine.num_free_blocks
    contexts = [
        context_len
        for context_len in CONTEXTS
        if context_len + _depth(1) <= engine.spec.max_context and _blocks(engine, context_len, 1) <= num_free
    ]
    sizes = [1 << power for power in range(max_pass_tokens.bit_length())]
    return [
        Point(num_tokens, context_len)
        for num_tokens in sizes
        for context_len in contexts
        if context_len + _depth(num_tokens) <= engine.spec.max_context
        and _blocks(engine, contexts[-1], num_tokens) <= num_free
    ]


def measure(
    engine: Engine,
    points: Sequence[Point],  # ascending, as `points_that_fit` gives them
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[PassCost]:
    """The points that the budget reaches, in order; the first one in any case, and a compiler's time is not counted.

    The engine serves nothing else meanwhile, and is left as it was: nothing open, nothing to be found. In a group
    this is rank 0's to call, and the others follow.
    """
    contexts = sorted({point.context_len for point in points}, reverse=True)
    try:
        keys = _pretend(engine, contexts)
        return _measure(lambda point: _time(engine, keys[point.context_len], point, clock), points, budget_s)
    finally:
        for key in range(_FIRST_KEY, _FIRST_KEY + len(contexts)):
            engine.close(key)


def knee(costs: Sequence[PassCost]) -> int:
    """The most tokens that cost less than KNEE times one token, over the shortest context."""
    shortest = min(cost.point.context_len for cost in costs)
    curve = {cost.point.num_tokens: cost.pass_ms for cost in costs if cost.point.context_len == shortest}
    return max(num_tokens for num_tokens, pass_ms in curve.items() if pass_ms < KNEE * curve[min(curve)])


def chains(num_nodes: int) -> list[int]:
    """Parents, [num_nodes], of the tree that is measured: chains of eight below the root."""
    return [node - 1 if node % _CHAIN else ROOT for node in range(num_nodes)]


def _measure(run: Callable[[Point], float], points: Sequence[Point], budget_s: float) -> list[PassCost]:
    """Rounds of `run`, which gives the seconds of one pass, within the budget."""
    runs: dict[Point, list[float]] = {}
    round_s = 0.0  # of every point once
    expected_s: dict[int, float] = {}  # of the next point over a context: at most twice the one before it
    for point in points:
        if runs and (1 + _MIN_ROUNDS) * (round_s + expected_s.get(point.context_len, round_s)) > budget_s:
            break
        run(point)  # warms up
        runs[point] = [run(point)]
        round_s += runs[point][0]
        expected_s[point.context_len] = 2 * runs[point][0]
    num_rounds = min(_MAX_ROUNDS, int(budget_s / round_s) - 1) if round_s > 0 else _MAX_ROUNDS
    measured = list(runs)
    for _ in range(1, num_rounds):
        measured.reverse()
        for point in measured:
            runs[point].append(run(point))
    return [PassCost(point, 1000 * statistics.median(seconds)) for point, seconds in runs.items()]


def _pretend(engine: Engine, contexts: Sequence[int]) -> dict[int, int]:
    """Requests with these contexts, the longest first, by context. They share the blocks of the longest."""
    keys = {}
    for key, context_len in enumerate(contexts, _FIRST_KEY):
        if key == _FIRST_KEY:
            engine.pretend(key, context_len)
        else:
            engine.fork(_FIRST_KEY, key)
            engine.truncate(key, context_len)
        keys[context_len] = key
    return keys


def _time(engine: Engine, key: int, point: Point, clock: Callable[[], float]) -> float:
    """Seconds of one pass, after which the request is as before."""
    rng = random.Random(point.num_tokens)  # different tokens, since experts are chosen by them
    tokens = [rng.randrange(engine.spec.vocab_size) for _ in range(point.num_tokens)]
    row = Row(key, tokens[:1], tokens[1:], chains(point.num_tokens - 1))
    started = clock()
    logits = engine.forward([row])[0]
    assert logits is not None
    float(logits[-1, -1])  # waits for the device
    seconds = clock() - started
    engine.truncate(key, point.context_len)
    return seconds


def _depth(num_tokens: int) -> int:
    """Positions that the row takes behind its context."""
    return min(num_tokens, 1 + _CHAIN)


def _blocks(engine: Engine, context_len: int, num_tokens: int) -> int:
    """KV blocks for a pretended context and a pass behind a part of it, whose last block may have to be copied."""
    return -(-context_len // engine.block_size) - (-num_tokens // engine.block_size) + 1
