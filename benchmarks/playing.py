"""The scheduler's own core plays answers through with real drafters and no clock.

A row goes into a pass as soon as it may, the drafters run ahead while the pass is in flight, and the verdict is what
the answer says: so what is counted is exact for these answers, on any machine.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice

from outrider.scores import SCORES, step_of
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
NUM_AT_ONCE = 16
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
    right_ranks: Counter[int] = field(default_factory=Counter)  # among the root's children, where one of them was right
    first_survivals: list[float] = field(default_factory=list)  # of the likeliest child of each root
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
        self._numbers = count(1)
        self._running: dict[int, tuple[Answer, Tally]] = {}
        self._orders: list[SendOrder] = []
        self._passes: list[SendPass] = []
        self._closed: defaultdict[str, list[int]] = defaultdict(list)
        self._live: set[tuple[str, int]] = set()  # drafters that work for requests
        facts = TargetFacts(vocab_size=_MANY, block_size=16, num_kv_blocks=_MANY, max_pass_tokens=_MANY)
        self._handle(TargetUp(facts))
        for name in drafters:
            self._handle(DrafterUp(name, [name]))

    def run(self, answers: Iterable[tuple[Answer, Tally]]) -> None:
        """Play them all, some at a time; each counts in its tally."""
        waiting = iter(answers)
        while True:
            for answer, tally in islice(waiting, NUM_AT_ONCE - len(self._running)):
                self._submit(answer, tally)
            if not self._running:
                return
            while not self._passes:
                self._step_drafters()
            sent = self._passes.pop()
            while self._live or self._orders:  # run-ahead: the pass is in flight
                self._step_drafters()
            outcomes = [self._verify(row) for row in sent.rows]
            self._handle(PassDone(sent.pass_id, outcomes, _MANY))

    def _submit(self, answer: Answer, tally: Tally) -> None:
        number = next(self._numbers)
        self._running[number] = answer, tally
        sampling = SamplingParams(temperature=answer.temperature, seed=answer.number, top_p=1, typical_p=1)
        sampling.repetition_penalty = 1
        self._handle(
            Submitted(
                NewRequest(
                    number=number,
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

    def _verify(self, row: PlannedRow) -> RowOutcome:
        answer, tally = self._running[row.request]
        walked = self._walk(row, [*answer.prompt, *answer.tokens], tally)
        known_len = row.committed_len + len(walked)
        return RowOutcome(row.request, row.epoch, row.committed_len, "ok", walked, known_len)

    def _finish(self, finish: Finish) -> None:
        answer, tally = self._running.pop(finish.request)
        tally.num_tokens += len(answer.tokens) - 1  # the first one comes with the prompt
        tally.num_passes += finish.stats.num_passes - 1
        tally.num_hits += finish.stats.num_hits
        tally.hit_depth += finish.stats.hit_depth

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
            children = sorted(tree.children(None).values(), key=lambda node: -node.survival)
            tally.first_survivals += [node.survival for node in children[:1]]
            tally.right_ranks.update(rank for rank, node in enumerate(children) if node.token == rest[0])
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
                self._finish(command)
            case ReleaseDrafter(_, drafter, request, _):
                self._closed[drafter].append(request)
                self._live.discard((drafter, request))
                self._orders = [order for order in self._orders if order.request != request]

    def _step_drafters(self) -> None:
        orders, self._orders = self._orders, []
        for name, growing in self._growing.items():
            own = [order_of(order) for order in orders if order.drafter == name]
            news = growing.step(self._closed.pop(name, []), own)
            self._live |= {(name, order.key) for order in own}
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
                    scores=[SCORES[step_of(score)] for score in new.scores],
                    is_done=new.is_done,
                    is_prefix_missing=False,
                )
                for new in news
                if new.key in self._core._running
            ]
            self._live -= {(name, new.key) for new in news if new.is_done}
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
