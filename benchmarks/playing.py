"""The scheduler's own core plays answers through with real drafters and no clock.

A row goes into a pass as soon as it may, the drafters run ahead while the pass is in flight, and the verdict is what
the answer says: so what is counted is exact for these answers, on any machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

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
from workers.draft.drafter import Drafter
from workers.draft.growing import Growing, Order
from workers.training.shards import Answer

CHAIN_LEN = 4
NUM_BINS = 10
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
            own = [order_of(order) for order in orders if order.drafter == name]
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


def order_of(order: SendOrder) -> Order:
    params = guess_params(order.opening) if order.opening is not None else None
    return Order(order.request, params, order.tokens, order.max_nodes, order.min_survival)
