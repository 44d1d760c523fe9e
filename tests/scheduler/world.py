"""A tiny world around the core: a target and drafters in a few lines, messages that take time, faults on demand.

The target's law is a pure function of the tokens, so the true answer of every request is known.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from outrider.v1.inference_pb2 import SamplingParams
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.core import Core, CoreConfig
from scheduler.events import (
    Cancelled,
    Command,
    DrafterDown,
    DrafterUp,
    Emit,
    Event,
    Finish,
    Grown,
    Growth,
    NewRequest,
    PassDone,
    PlannedRow,
    ReleaseDrafter,
    ReleaseTarget,
    ResetTarget,
    RowOutcome,
    SendOrder,
    SendPass,
    Submitted,
    TargetDown,
    TargetFacts,
    TargetUp,
    Tick,
)
from scheduler.simulation.target import behind

VOCAB = 7
END_TOKEN = 6
FACTS = TargetFacts(vocab_size=VOCAB, block_size=4, num_kv_blocks=64, max_pass_tokens=24)


def true_next(tokens: tuple[int, ...]) -> int:
    """The token that the target chooses after `tokens`: mostly a repeating pattern, now and then an end."""
    mixed = hash((len(tokens), *tokens[-2:])) & 0xFFFF
    return END_TOKEN if mixed % 41 == 0 else mixed % (VOCAB - 1)


def true_answer(new: NewRequest) -> list[int]:
    tokens = list(new.prompt)
    while len(tokens) - len(new.prompt) < new.max_tokens:
        tokens.append(true_next(tuple(tokens)))
        if tokens[-1] in new.end_token_ids:
            break
    return tokens[len(new.prompt) :]


def new_request(number: int, rng: random.Random, *, deadline_s: float | None = None) -> NewRequest:
    return NewRequest(
        number=number,
        prompt=[rng.randrange(VOCAB - 1) for _ in range(rng.randint(1, 40))],
        max_tokens=rng.randint(1, 20),
        end_token_ids=frozenset({END_TOKEN}),
        stop_token_ids=frozenset(),
        opening=OpenRequest(sampling=SamplingParams(seed=number)),
        speculates=rng.random() < 0.8,
        drafters=frozenset(),
        max_nodes=rng.randint(1, 6),
        deadline_s=deadline_s,
    )


@dataclass
class Stream:
    """What a client of the core has received."""

    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None


@dataclass
class DrafterState:
    """What a drafter keeps of a request: its nodes by number, as whole texts."""

    epoch: int
    texts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    next_number: int = 1


class World:
    """Runs a core to the end. Every random choice comes from one seed, so a failure replays."""

    def __init__(
        self,
        seed: int,
        *,
        draft_delays_s: Sequence[float] = (0.001, 0.05, 0.5, 3.0),
        draft_wait_s: float | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.core = Core(CoreConfig(max_running_requests=4, pass_timeout_s=5.0, draft_wait_s=draft_wait_s))
        self._draft_delays_s = draft_delays_s
        self.now_s = 0.0
        self.streams: dict[int, Stream] = {}
        self.requests: dict[int, NewRequest] = {}
        self.target: dict[int, tuple[int, list[int]]] | None = None  # request -> (epoch, tokens)
        self.drafters: dict[str, dict[int, DrafterState]] = {}  # worker -> request
        self.num_passes = 0
        self._pass_ends_s = 0.0
        self._hang_next = False
        self._sequence = count()
        self._mail: list[tuple[float, int, int, Event]] = []  # (time, order, the sender's life, event)
        self._lives = count(1)
        self._life: dict[str, int] = {}
        self._old_growth: deque[Growth] = deque(maxlen=20)

    # ── faults and arrivals ─────────────────────────────────────────────────────────────────────────

    def submit(self, new: NewRequest) -> None:
        self.requests[new.number] = new
        self.streams[new.number] = Stream()
        self.post(Submitted(new))

    def cancel(self, number: int) -> None:
        self.post(Cancelled(number))
        self.streams[number].finish = None
        self.requests.pop(number, None)

    def start_target(self) -> None:
        if self.target is None:
            self.target = {}
            self._life["target"] = next(self._lives)
            self.post(TargetUp(FACTS))

    def kill_target(self) -> None:
        if self.target is not None:
            self.target = None
            self._life["target"] = 0
            self.post(TargetDown())

    def hang_target(self) -> None:
        self._hang_next = True

    def start_drafter(self, worker: str) -> None:
        if worker not in self.drafters:
            self.drafters[worker] = {}
            self._life[worker] = next(self._lives)
            self.post(DrafterUp(worker, ["guess"]))

    def kill_drafter(self, worker: str) -> None:
        if self.drafters.pop(worker, None) is not None:
            self._life[worker] = 0
            self.post(DrafterDown(worker))

    def replay_old_growth(self) -> None:
        if self._old_growth:
            self.post(Grown([self.rng.choice(self._old_growth)]))

    # ── time ────────────────────────────────────────────────────────────────────────────────────────

    def post(self, event: Event) -> None:
        for command in self.core.handle(event, self.now_s):
            self._carry_out(command)

    def step(self) -> bool:
        """Deliver the next message, or let the core's timer ring. False: nothing will ever happen again."""
        wakeup_s = self.core.next_wakeup_s()
        mail_s = self._mail[0][0] if self._mail else None
        if mail_s is None and wakeup_s is None:
            return False
        if mail_s is None or (wakeup_s is not None and wakeup_s < mail_s):
            assert wakeup_s is not None
            self.now_s = max(self.now_s, wakeup_s)
            self.post(Tick())
            return True
        self.now_s, _, life, event = heapq.heappop(self._mail)
        if life in self._life.values():  # what a dead worker had sent is lost with its stream
            self.post(event)
        return True

    def run(self, max_steps: int = 20_000) -> None:
        for _ in range(max_steps):
            if not self.step():
                return
        raise AssertionError(f"not at rest after {max_steps} steps")

    def _later(self, worker: str, event: Event, delay_s: float) -> None:
        heapq.heappush(self._mail, (self.now_s + delay_s, next(self._sequence), self._life[worker], event))

    # ── the workers ─────────────────────────────────────────────────────────────────────────────────

    def _carry_out(self, command: Command) -> None:
        match command:
            case SendPass(pass_id, rows):
                self._run_pass(pass_id, list(rows))
            case ReleaseTarget(request, epoch):
                if self.target is not None and self.target.get(request, (0, []))[0] == epoch:
                    del self.target[request]
            case ResetTarget():
                self.target = {}
                self._life["target"] = next(self._lives)
                self._later("target", TargetUp(FACTS), 0.1)
            case SendOrder():
                self._draft(command)
            case ReleaseDrafter(worker, _, request, _):
                self.drafters.get(worker, {}).pop(request, None)
            case Emit(request, tokens, sources):
                assert len(tokens) == len(sources)
                assert self.streams[request].finish is None, "tokens after the end"
                self.streams[request].tokens.extend(tokens)
            case Finish(request):
                assert self.streams[request].finish is None, "two ends"
                self.streams[request].finish = command

    def _run_pass(self, pass_id: int, rows: list[PlannedRow]) -> None:
        assert self.target is not None, "a pass was sent to a target that is gone"
        assert len({row.request for row in rows}) == len(rows), "one row a request"
        assert all(0 <= token < VOCAB for row in rows for token in row.node_tokens), "a node outside the vocabulary"
        rows = [self._behind(row) for row in rows]
        total = sum(max(len(row.tokens), 1) + len(row.node_tokens) for row in rows)
        assert total <= FACTS.max_pass_tokens, "the pass is over the target's limit"
        self.num_passes += 1
        outcomes = [self._verify(row) for row in rows]
        if self._hang_next:
            self._hang_next = False
            return
        done = PassDone(pass_id, outcomes, FACTS.num_kv_blocks)
        self._pass_ends_s = max(self._pass_ends_s, self.now_s + self.rng.uniform(0.01, 0.2))  # answers keep their order
        self._later("target", done, self._pass_ends_s - self.now_s)

    def _behind(self, row: PlannedRow) -> PlannedRow:
        assert self.target is not None
        epoch, tokens = self.target.get(row.request, (0, []))
        return behind(row, tokens) if epoch == row.epoch else row

    def _verify(self, row: PlannedRow) -> RowOutcome:
        assert self.target is not None
        epoch, tokens = self.target.get(row.request, (0, []))
        if row.opening is not None:
            epoch, tokens = row.epoch, []
        if epoch != row.epoch or row.tokens_start > len(tokens):
            return RowOutcome(row.request, row.epoch, row.committed_len, "prefix_missing", known_len=len(tokens))
        tokens = [*tokens[: row.tokens_start], *row.tokens] if row.tokens else tokens
        walked: list[int] = []
        if len(tokens) == row.committed_len:
            at = -1
            while True:
                walked.append(true_next(tuple(tokens)))
                tokens = [*tokens, walked[-1]]
                children = [i for i, parent in enumerate(row.node_parents) if parent == at]
                hit = [i for i in children if row.node_tokens[i] == walked[-1]]
                if not hit:
                    break
                assert len(hit) == 1, "two nodes with equal parent and token"
                at = hit[0]
        self.target[row.request] = (epoch, tokens)
        return RowOutcome(row.request, row.epoch, row.committed_len, "ok", walked, len(tokens))

    def _draft(self, order: SendOrder) -> None:
        if order.worker not in self.drafters:
            return
        known = self.drafters[order.worker]
        if order.opening is not None:
            known[order.request] = DrafterState(order.epoch)
        answer = {"worker": order.worker, "drafter": "guess", "request": order.request}
        answer |= {"epoch": order.epoch, "committed_len": order.committed_len}
        state = known.get(order.request)
        if state is None or state.epoch != order.epoch or self.rng.random() < 0.02:
            grown = Growth(
                **answer, first_node=1, tokens=[], parents=[], scores=[], is_done=True, is_prefix_missing=True
            )
            self._later(order.worker, Grown([grown]), 0.01)
            return
        first_node = state.next_number
        tokens, parents, scores = self._grow_tree(order, state)
        grown = Growth(
            **answer,
            first_node=first_node,
            tokens=tokens,
            parents=parents,
            scores=scores,
            is_done=True,
            is_prefix_missing=False,
        )
        self._old_growth.append(grown)
        self._later(order.worker, Grown([grown]), self.rng.choice(self._draft_delays_s))

    def _grow_tree(self, order: SendOrder, state: DrafterState) -> tuple[list[int], list[int], list[float]]:
        """Nodes that are right, wrong or absurd, below whatever still stands; at times too many."""
        prefix = (*self.requests[order.request].prompt, *self.streams[order.request].tokens)
        if order.request not in self.requests or len(prefix) != order.committed_len:
            return [], [], []
        standing = [number for number, text in state.texts.items() if text[: len(prefix)] == prefix]
        tokens: list[int] = []
        parents: list[int] = []
        scores: list[float] = []
        for _ in range(self.rng.randint(0, order.max_nodes + 2)):
            parent = self.rng.choice([0, *standing]) if self.rng.random() < 0.5 or not standing else standing[-1]
            text = state.texts[parent] if parent else prefix
            is_right = self.rng.random() < 0.7
            tokens.append(true_next(text) if is_right else self.rng.randrange(-1, VOCAB + 2))
            parents.append(parent if self.rng.random() < 0.97 else 10**6)
            scores.append(self.rng.random() * 4 - (0 if is_right else 3))
            state.texts[state.next_number] = (*text, tokens[-1])
            standing.append(state.next_number)
            state.next_number += 1
        return tokens, parents, scores
