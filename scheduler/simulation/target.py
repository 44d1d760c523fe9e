"""A modelled target: one process's life. It keeps the rules of target.proto, and knows nothing but what it was told.

Commands of all sessions are carried out in order, one pass at a time. A pass takes modelled time; what it commits is
the law's choice, whatever the drafts say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

from outrider.tree import below
from outrider.types import TokenLogprobs
from scheduler.events import Command, Event, PassDone, PlannedRow, ReleaseTarget, RowOutcome, SendPass, TargetFacts
from scheduler.simulation.agenda import Agenda
from scheduler.simulation.law import Law

Reply = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class TargetModel:
    facts: TargetFacts
    # By rows, the tokens that are computed, the mean context of a row, and how many of the tokens need no logits.
    pass_s: Callable[[int, int, int, int], float]
    spread: float = 0.0  # a pass takes up to so much more or less than that, as a share
    disturbance: float = 0.0  # a second of drafting takes so much of the target's: both are on one machine


@dataclass(slots=True)
class Counts:
    """What it has done, by the world's clock."""

    num_passes: int = 0
    num_tokens: int = 0  # computed
    num_rows: int = 0
    busy_s: float = 0.0


@dataclass(slots=True)
class _Held:
    """What it knows of a request: tokens, and the law's fold before each of them and behind the last."""

    epoch: int
    states: list[int]
    tokens: list[int] = field(default_factory=list)
    num_cached: int = 0  # tokens whose KV is there
    wants_logprobs: bool = False
    end_token_ids: frozenset[int] = frozenset()

    def truncate(self, num_tokens: int) -> None:
        del self.tokens[num_tokens:]
        del self.states[num_tokens + 1 :]
        self.num_cached = min(self.num_cached, num_tokens)


class Target:
    def __init__(
        self, agenda: Agenda, address: str, model: TargetModel, law: Law, rng: Random, drafted_s: Callable[[], float]
    ) -> None:
        """`drafted_s`: how long the cell's drafters have worked, until now."""
        self._agenda = agenda
        self._address = address
        self._model = model
        self._law = law
        self._rng = rng
        self._drafted_s = drafted_s
        self._replies: dict[int, Reply] = {}
        self._held: dict[tuple[int, int], _Held] = {}  # by session and request
        self._queue: deque[tuple[int, Command | None]] = deque()  # None: the session has ended
        self._is_busy = False
        self._idle_since_s = agenda.now_s
        self.counts = Counts()
        self.refused: set[int] = set()  # requests that there were no blocks for
        # What mischief may do to it.
        self.slowness = 1.0
        self.hangs_until_s = 0.0
        self.num_squatted_blocks = 0  # taken by somebody else

    # ── what its link does ──────────────────────────────────────────────────────────────────────────

    def open(self, session: int, reply: Reply) -> None:
        self._replies[session] = reply

    def take(self, session: int, command: Command) -> None:
        self._queue.append((session, command))
        self._work()

    def close(self, session: int) -> None:
        self._queue.append((session, None))
        self._work()

    @property
    def num_free_blocks(self) -> int:
        used = sum(self._blocks(len(held.tokens)) for held in self._held.values())
        return self._model.facts.num_kv_blocks - self.num_squatted_blocks - used

    @property
    def num_requests(self) -> int:
        return len(self._held)

    # ── its work, in order ──────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        while self._queue and not self._is_busy:
            if self._agenda.now_s < self.hangs_until_s:
                self._is_busy = True
                self._agenda.at(self.hangs_until_s, self._resume)
                return
            session, command = self._queue.popleft()
            match command:
                case SendPass(pass_id, rows):
                    self._start_pass(session, pass_id, rows)
                case ReleaseTarget(request, epoch):
                    held = self._held.get((session, request))
                    if held is not None and epoch >= held.epoch:
                        del self._held[session, request]
                case None:
                    self._replies.pop(session, None)
                    self._held = {key: held for key, held in self._held.items() if key[0] != session}

    def _resume(self) -> None:
        self._is_busy = False
        self._work()

    def _start_pass(self, session: int, pass_id: int, rows: Sequence[PlannedRow]) -> None:
        idle_s = self._agenda.now_s - self._idle_since_s
        outcomes, num_tokens, context_len, num_without = self._verify(session, rows)
        spread = self._rng.uniform(-self._model.spread, self._model.spread) if self._model.spread else 0.0
        pass_s = self._model.pass_s(len(rows), max(num_tokens, 1), context_len, num_without)
        pass_s *= self.slowness * (1 + spread)
        self._is_busy = True
        done = PassDone(pass_id, outcomes, max(self.num_free_blocks, 0), pass_s, idle_s, num_tokens, self._address)
        self._agenda.after(pass_s, partial(self._lengthen_pass, session, done, self._drafted_s()))

    def _lengthen_pass(self, session: int, done: PassDone, drafted_s: float) -> None:
        """By what drafters took of it meanwhile."""
        lost_s = self._model.disturbance * (self._drafted_s() - drafted_s)
        if lost_s:
            done = replace(done, pass_s=done.pass_s + lost_s)
            self._agenda.after(lost_s, partial(self._end_pass, session, done))
        else:
            self._end_pass(session, done)

    def _end_pass(self, session: int, done: PassDone) -> None:
        self._is_busy = False
        self._idle_since_s = self._agenda.now_s
        self.counts.num_passes += 1
        self.counts.num_tokens += done.num_tokens
        self.counts.num_rows += len(done.outcomes)
        self.counts.busy_s += done.pass_s
        reply = self._replies.get(session)
        if reply is not None:
            reply(done)
        self._work()

    # ── a pass ──────────────────────────────────────────────────────────────────────────────────────

    def _verify(self, session: int, rows: Sequence[PlannedRow]) -> tuple[list[RowOutcome], int, int, int]:
        """The outcomes, the tokens computed for them, the mean context behind these, and those without logits."""
        room = self.num_free_blocks
        num_tokens = context_len = num_without = 0
        outcomes: list[RowOutcome] = []
        for row in rows:
            before = self._held[session, row.request].num_cached if (session, row.request) in self._held else 0
            outcome, computed, blocks = self._verify_row(session, row, room)
            outcomes.append(outcome)
            num_tokens += computed
            num_without += max(computed - (1 + len(row.node_tokens) if outcome.tokens else 0), 0)
            context_len += before
            room -= blocks
        return outcomes, num_tokens, context_len // max(len(rows), 1), num_without

    def _verify_row(self, session: int, row: PlannedRow, room: int) -> tuple[RowOutcome, int, int]:
        """The outcome, the tokens computed and the blocks taken, nodes included: they are given back after the pass."""
        held = self._open(session, row)
        if held is None:
            return _refusal(row, "prefix_missing", 0), 0, 0
        row = behind(row, held.tokens)
        if row.tokens_start > len(held.tokens) or (not row.tokens and len(held.tokens) < row.committed_len):
            return _refusal(row, "prefix_missing", len(held.tokens)), 0, 0
        known_before = self._learn(held, row)
        is_chunk = len(held.tokens) < row.committed_len
        if not is_chunk:
            held.num_cached = min(held.num_cached, row.committed_len - 1)
        num_nodes = 0 if is_chunk else len(row.node_tokens)
        blocks = self._blocks(len(held.tokens) + num_nodes) - self._blocks(known_before)
        if blocks > room:
            held.truncate(known_before)
            self.refused.add(row.request)
            return _refusal(row, "no_capacity", known_before), 0, 0
        computed = len(held.tokens) - held.num_cached + num_nodes
        held.num_cached = len(held.tokens)
        walked = [] if is_chunk else self._walk(held, row)
        logprobs = [TokenLogprobs(-float(token), (), ()) for token in walked] if held.wants_logprobs else []
        known_len = len(held.tokens)
        outcome = RowOutcome(row.request, row.epoch, row.committed_len, "ok", walked, known_len, logprobs=logprobs)
        return outcome, computed, blocks

    def _open(self, session: int, row: PlannedRow) -> _Held | None:
        held = self._held.get((session, row.request))
        if held is not None and held.epoch == row.epoch:
            return held
        if row.opening is None or (held is not None and held.epoch > row.epoch):
            return None
        held = self._held[session, row.request] = _Held(
            row.epoch,
            [self._law.start(row.opening.sampling.seed)],
            wants_logprobs=row.opening.sampling.HasField("logprobs"),
            end_token_ids=frozenset(row.opening.end_token_ids),
        )
        return held

    def _learn(self, held: _Held, row: PlannedRow) -> int:
        """The row is the truth: what is known is made to agree with it. Returns what was known of that before it."""
        for place, token in enumerate(row.tokens, row.tokens_start):
            if place < len(held.tokens) and held.tokens[place] != token:
                held.truncate(place)
        held.truncate(row.committed_len)
        known_before = len(held.tokens)
        for token in row.tokens[known_before - row.tokens_start :] if row.tokens else ():
            held.tokens.append(token)
            held.states.append(self._law.fold(held.states[-1], [token]))
        return known_before

    def _walk(self, held: _Held, row: PlannedRow) -> list[int]:
        edges = zip(row.node_parents, row.node_tokens, strict=True)
        children = {edge: node for node, edge in enumerate(edges)}
        walked: list[int] = []
        at: int | None = -1
        while at is not None:
            token = self._law.choice(held.states[-1])
            walked.append(token)
            held.tokens.append(token)
            held.states.append(self._law.fold(held.states[-1], [token]))
            at = None if token in held.end_token_ids else children.get((at, token))
        held.num_cached = len(held.tokens) - 1
        return walked

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._model.facts.block_size)


def behind(row: PlannedRow, tokens: Sequence[int]) -> PlannedRow:
    """A row that was sent ahead, once it is known what was chosen since."""
    if not row.is_ahead or len(tokens) <= row.committed_len:
        return row
    left, parents = below(tokens[row.committed_len :], row.node_tokens, row.node_parents)
    return replace(
        row,
        committed_len=len(tokens),
        node_tokens=[row.node_tokens[node] for node in left],
        node_parents=parents,
    )


def _refusal(row: PlannedRow, status: str, known_len: int) -> RowOutcome:
    return RowOutcome(row.request, row.epoch, row.committed_len, status, known_len=known_len)  # type: ignore[arg-type]
