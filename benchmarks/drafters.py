"""How much of the target's own answers drafters foresee: tokens per pass, calibration, run-ahead, a step's cost.

    python -m benchmarks.drafters --drafter model:PATH --drafter suffix --threads 2

The target answers the held-out prompts of workers/training once for each temperature. Then the scheduler's own core
plays them through, with the real drafters and no clock: a row goes into a pass as soon as it may, the drafters run
ahead while the pass is in flight, and the verdict is what the answer says. So every figure but the times is exact for
these answers, and nothing depends on the machine. Each drafter plays alone, and then all of them on one tree.

    tokens_per_pass         of the target, with at most `budget` nodes verified in one; "chain": without siblings
    first_token_acceptance  how often the likeliest child of the root was the target's choice
    calibration_error       the mean distance between predicted and observed survival of the nodes verified, by tenths
    run_ahead_hit_rate      verdicts after which a node was there already; run_ahead_depth: how deep the tree was then
    draft_step_share        the median time of a step by the median time of a pass of one token, measured in turn

The last line is one JSON object.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Annotated

import torch
import typer

from benchmarks.measure import checkpoint_of, rounded, show
from outrider.v1.inference_pb2 import SamplingParams
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.core import Core, CoreConfig
from scheduler.events import (
    Command,
    DrafterUp,
    Event,
    Finish,
    Grown,
    Growth,
    NewRequest,
    PassDone,
    PlannedRow,
    ReleaseDrafter,
    RowOutcome,
    SendOrder,
    SendPass,
    Submitted,
    TargetFacts,
    TargetUp,
)
from workers.choice.params import guess_params
from workers.draft.drafter import Drafter, DrafterSpec, Resources, load_drafter
from workers.draft.growing import Growing, Order
from workers.engine.batch import Row
from workers.engine.runner import Engine
from workers.training.answering import answer_prompts, pick_as_served
from workers.training.distill import encoder
from workers.training.held_out import held_out_prompts
from workers.training.shards import Answer

TEMPERATURES = (0.0, 0.7, 1.0)
BUDGETS = (4, 8, 16, 32)
CHAIN_LEN = 4
NUM_BINS = 10
TIMED_CONTEXT = 256
_MANY = 1 << 28


@dataclass
class Tally:
    """Over all answers of one temperature, with one set of drafters and one budget."""

    num_tokens: int = 0
    num_passes: int = 0
    num_hits: int = 0
    hit_depth: int = 0
    num_first: int = 0
    num_first_right: int = 0
    predicted: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # by bin
    observed: defaultdict[int, list[bool]] = field(default_factory=lambda: defaultdict(list))

    def calibration_error(self) -> float:
        """Expected calibration error: bins weighed by their nodes (Guo et al., arXiv 1706.04599)."""
        total = sum(map(len, self.predicted.values()))
        gaps = (abs(sum(self.predicted[b]) - sum(self.observed[b])) for b in self.predicted)
        return sum(gaps) / total if total else 0.0


class Play:
    """One core with real drafters, and a target that says what the answers say."""

    def __init__(self, drafters: dict[str, Drafter], budget: int, *, is_chain: bool) -> None:
        self._core = Core(CoreConfig(draft_wait_s=1e9, pass_timeout_s=1e9))
        self._growing = {name: Growing(drafter) for name, drafter in drafters.items()}
        self._budget, self._is_chain = budget, is_chain
        self._numbers = 0
        self._orders: list[SendOrder] = []
        self._passes: list[SendPass] = []
        self._finished: Finish | None = None
        self._closed: defaultdict[str, list[int]] = defaultdict(list)
        self._live: set[str] = set()
        facts = TargetFacts(vocab_size=_MANY, block_size=16, num_kv_blocks=_MANY, max_pass_tokens=_MANY)
        self._handle(TargetUp(facts))
        for name in drafters:
            self._handle(DrafterUp(name, [name]))

    def run(self, answer: Answer, tally: Tally) -> None:
        self._numbers += 1
        self._finished = None
        sampling = SamplingParams(temperature=answer.temperature, seed=answer.number, top_p=1, typical_p=1)
        sampling.repetition_penalty = 1
        self._handle(
            Submitted(
                NewRequest(
                    number=self._numbers,
                    prompt=answer.prompt,
                    max_tokens=len(answer.tokens),
                    end_token_ids=frozenset(),
                    stop_token_ids=frozenset(),
                    opening=OpenRequest(sampling=sampling, num_prompt_tokens=len(answer.prompt)),
                    speculates=True,
                    drafters=frozenset(),
                    max_nodes=self._budget,
                    deadline_s=None,
                )
            )
        )
        text = [*answer.prompt, *answer.tokens]
        while self._finished is None:
            while not self._passes:
                self._step_drafters()
            sent = self._passes.pop()
            [row] = sent.rows
            while self._live or self._orders:  # run-ahead: the pass is in flight
                self._step_drafters()
            walked = self._walk(row, text, tally)
            known_len = row.committed_len + len(walked)
            outcome = RowOutcome(row.request, row.epoch, row.committed_len, "ok", walked, known_len)
            self._handle(PassDone(sent.pass_id, [outcome], _MANY))
        stats = self._finished.stats
        tally.num_tokens += len(answer.tokens) - 1  # the first one comes with the prompt
        tally.num_passes += stats.num_passes - 1
        tally.num_hits += stats.num_hits
        tally.hit_depth += stats.hit_depth

    def _walk(self, row: PlannedRow, text: Sequence[int], tally: Tally) -> list[int]:
        paths: list[tuple[int, ...]] = []
        rest = text[row.committed_len :]
        for token, parent in zip(row.node_tokens, row.node_parents, strict=True):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        right = [path for path in paths if list(path) == rest[: len(path)]]
        tree = self._core._running[row.request].tree
        for path in paths:
            node = tree.find(path)
            assert node is not None, "the pass holds nodes of this tree"
            survival = node.survival
            where = min(int(survival * NUM_BINS), NUM_BINS - 1)
            tally.predicted[where].append(survival)
            tally.observed[where].append(path in right)
        if row.opening is None:  # the prompt's own pass has no draft
            tally.num_first += 1
            tally.num_first_right += bool(paths) and list(paths[0]) == rest[:1]
        if self._is_chain:
            right = [path for path in right if all(path[: n + 1] in _firsts(paths) for n in range(len(path)))]
            right = [path for path in right if len(path) <= CHAIN_LEN]
        depth = max(map(len, right), default=0)
        return list(rest[: depth + 1])

    def _handle(self, event: Event) -> None:
        for command in self._core.handle(event, 0.0):
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case SendOrder():
                self._orders.append(command)
            case SendPass():
                self._passes.append(command)
            case Finish():
                self._finished = command
            case ReleaseDrafter(_, drafter, request, _):
                self._closed[drafter].append(request)
                self._orders = [order for order in self._orders if order.request != request]

    def _step_drafters(self) -> None:
        orders, self._orders = self._orders, []
        for name, growing in self._growing.items():
            own = [_order(order) for order in orders if order.drafter == name]
            news = growing.step(self._closed.pop(name, []), own)
            self._live |= {name} if own else set()
            grown = [
                Growth(
                    worker=name,
                    drafter=name,
                    request=new.key,
                    epoch=self._core._running[new.key].drafters[name].epoch,
                    committed_len=new.committed_len,
                    first_node=new.first_number,
                    tokens=new.tokens,
                    parents=new.parents,
                    scores=[round(8 * score) / 8 for score in new.scores],
                    is_done=new.is_done,
                    is_prefix_missing=False,
                )
                for new in news
                if new.key in self._core._running
            ]
            if any(new.is_done for new in news) or not (news or own):
                self._live.discard(name)
            if grown:
                self._handle(Grown(grown))


def _firsts(paths: Sequence[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """The likeliest child of each place: nodes come in order of survival."""
    first: dict[tuple[int, ...], tuple[int, ...]] = {}
    for path in paths:
        first.setdefault(path[:-1], path)
    return set(first.values())


def _order(order: SendOrder) -> Order:
    params = guess_params(order.opening) if order.opening is not None else None
    return Order(order.request, params, order.tokens, order.max_nodes, order.min_survival)


def main(
    drafter: Annotated[list[str], typer.Option(help="As for outriderd up; may be repeated.")],
    model: Annotated[
        str, typer.Option(help="The target: folder, GGUF file or hub name. Unset: the default model.")
    ] = "",
    dtype: Annotated[str, typer.Option(help="Of the target.")] = "float32",
    prompts: Annotated[int, typer.Option(min=1, help="Of the held-out ones, of every kind alike.")] = 52,
    max_tokens: Annotated[int, typer.Option(min=2)] = 128,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Of the timings.")] = 15,
) -> None:
    torch.set_num_threads(threads)
    checkpoint = checkpoint_of(model)
    engine = Engine(checkpoint, dtype=dtype, kv_cache_bytes=1_500_000_000)
    specs = [DrafterSpec.parse(text) for text in drafter]
    loaded = {spec.name: load_drafter(spec, Resources(threads=threads, kv_cache_bytes=500_000_000)) for spec in specs}
    encode = encoder(checkpoint)
    held_out = held_out_prompts()
    chosen = [held_out[i * len(held_out) // prompts] for i in range(min(prompts, len(held_out)))]
    sets: dict[str, dict[str, Drafter]] = {name: {name: one} for name, one in loaded.items()}
    if len(loaded) > 1:
        sets["+".join(loaded)] = loaded
    rows: list[dict[str, object]] = []
    tables: dict[str, Tally] = defaultdict(Tally)
    for temperature in TEMPERATURES:
        answers = [Answer(number, encode(prompt), temperature) for number, prompt in enumerate(chosen)]
        answer_prompts(engine, answers, pick_as_served, lambda num_tokens: None, max_tokens=max_tokens)
        kinds = [prompt.kind for prompt in chosen]
        for name, drafters in sets.items():
            for budget in ("chain", *BUDGETS):
                rows.append(_play(name, drafters, temperature, budget, answers, kinds, tables))
                print("   ", rows[-1], flush=True)
    errors = {name: tally.calibration_error() for name, tally in tables.items()}
    for name, tally in tables.items():
        show(f"survival, {name}: predicted, observed, nodes", _calibration_rows(tally))
    shares = {name: _step_share(engine, one, answers, rounds) for name, one in loaded.items()}
    result = {
        "target": checkpoint.model,
        "num_prompts": len(chosen),
        "rows": rows,
        "calibration_error": errors,
        "run_ahead_hit_rate": {name: _hit_rate(rows, name) for name in sets},
        "draft_step_share": shares,
    }
    print(json.dumps(rounded(result)))


def _play(
    name: str,
    drafters: dict[str, Drafter],
    temperature: float,
    budget: int | str,
    answers: Sequence[Answer],
    kinds: Sequence[str],
    tables: dict[str, Tally],
) -> dict[str, object]:
    is_chain = isinstance(budget, str)
    play = Play(drafters, budget if isinstance(budget, int) else max(BUDGETS), is_chain=is_chain)
    by_kind: dict[str, Tally] = defaultdict(Tally)
    for answer, kind in zip(answers, kinds, strict=True):
        play.run(answer, by_kind[kind])
    tallies = by_kind.values()
    num_passes = sum(tally.num_passes for tally in tallies)
    num_hits = sum(tally.num_hits for tally in tallies)
    if not is_chain:
        for tally in tallies:
            for where in tally.predicted:
                tables[name].predicted[where] += tally.predicted[where]
                tables[name].observed[where] += tally.observed[where]
    return {
        "drafter": name,
        "temperature": temperature,
        "budget": budget,
        "tokens_per_pass": sum(tally.num_tokens for tally in tallies) / max(1, num_passes),
        "by_kind": {kind: tally.num_tokens / max(1, tally.num_passes) for kind, tally in by_kind.items()},
        "first_token_acceptance": sum(t.num_first_right for t in tallies) / max(1, sum(t.num_first for t in tallies)),
        "run_ahead_hit_rate": num_hits / max(1, num_passes),
        "run_ahead_depth": sum(tally.hit_depth for tally in tallies) / max(1, num_hits),
    }


def _calibration_rows(tally: Tally) -> list[tuple[object, ...]]:
    return [
        (
            sum(tally.predicted[b]) / len(tally.predicted[b]),
            sum(tally.observed[b]) / len(tally.observed[b]),
            len(tally.predicted[b]),
        )
        for b in sorted(tally.predicted)
    ]


def _hit_rate(rows: Sequence[dict[str, object]], name: str) -> float:
    """Over all temperatures and tree budgets."""
    rates = [
        float(str(row["run_ahead_hit_rate"])) for row in rows if row["drafter"] == name and row["budget"] != "chain"
    ]
    return sum(rates) / len(rates)


def _step_share(engine: Engine, drafter: Drafter, answers: Sequence[Answer], rounds: int) -> float:
    """A step for one request in the middle of an answer, by a pass of one token behind as long a text."""
    text = [token for answer in answers for token in (*answer.prompt, *answer.tokens)][: TIMED_CONTEXT + rounds + 2]
    growing, key = Growing(drafter), -1
    growing.step(
        [], [Order(key, guess_params(OpenRequest(sampling=SamplingParams(temperature=0))), text[:TIMED_CONTEXT], 0)]
    )
    engine.open(key)
    engine.forward_packed([Row(key, text[:TIMED_CONTEXT])])
    steps, passes = [], []
    for place in range(TIMED_CONTEXT, len(text)):
        started = time.perf_counter()
        growing.step([], [Order(key, None, text[place : place + 1], 64)])
        between = time.perf_counter()
        engine.forward_packed([Row(key, text[place : place + 1])])
        steps.append(between - started)
        passes.append(time.perf_counter() - between)
    growing.step([key], [])
    engine.close(key)
    return median(steps) / median(passes)


if __name__ == "__main__":
    typer.run(main)
