"""What the target knows of its requests, and how a pass over them is carried out.

What is known of a request is a prefix of its committed tokens; what is cached is a prefix of that:

    committed tokens   0 ........... num_cached ......... known_len ......... committed_len
                       | KV is here  | computed next     | the row has to bring these

Between passes at most one known token is not cached: the last one, which the target chose itself. A row brings the
two ends to committed_len, or says from where on tokens are missing; what the prefix cache has of its tokens is not
computed again, save the root, whose logits are needed. Whatever goes wrong with a row is undone for that row, and the
others are computed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch

from outrider.errors import InvalidRequest, NoTokenLeft, OutriderError, Unsupported
from outrider.packing import pack_f32, pack_i32
from outrider.tree import TreeError
from outrider.v1 import target_pb2, worker_pb2
from workers.choice.choose import Noise
from workers.choice.grammar import Grammars, GrammarState
from workers.choice.params import ChoiceParams
from workers.choice.paths import Paths
from workers.engine.batch import Row
from workers.engine.demand import Demand
from workers.engine.runner import Engine
from workers.prefix import common_len
from workers.target.rows import ParsedRow, parse_row
from workers.target.verdicts import Draft, Verdict, verdicts

_STATUSES: dict[type[OutriderError], target_pb2.RowStatus] = {
    NoTokenLeft: target_pb2.ROW_STATUS_NO_TOKEN,
    InvalidRequest: target_pb2.ROW_STATUS_INVALID,
}


@dataclass(slots=True)
class _Request:
    key: int  # the engine's, unique over all sessions
    epoch: int
    params: ChoiceParams
    grammar: GrammarState | None
    known: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Session:
    """What one scheduler has opened."""

    requests: dict[int, _Request] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Work:
    """A row that can be served, and what to go back to if it fails."""

    index: int
    parsed: ParsedRow
    request: _Request
    row: Row  # without tokens for a prompt chunk that is there already
    known_before: int
    cached_before: int
    num_found: int  # tokens of the prompt that came out of the prefix cache

    def draft(self) -> Draft:
        paths = Paths(self.request.known, self.parsed.node_tokens, self.parsed.node_parents)
        return Draft(self.request.params, paths, self.request.grammar, self.parsed.drawn_from)


class _RowRefused(Exception):
    """A row that can't be computed. Nothing that it asked for has been done."""

    def __init__(self, status: target_pb2.RowStatus, detail: str = "", known_len: int = 0) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.known_len = known_len


class Passes:
    """The passes of all sessions on one engine. Used by the engine's thread alone."""

    def __init__(self, engine: Engine, noise: Noise | None, grammars: Grammars, max_pass_tokens: int) -> None:
        self._engine = engine
        self._noise = noise
        self._grammars = grammars
        self._max_pass_tokens = max_pass_tokens
        self._keys = count()
        self._idle_since: float | None = None

    def run(self, session: Session, asked: target_pb2.Pass) -> target_pb2.PassResult:
        """One result for each row, in order."""
        started = time.perf_counter()
        idle_s = 0.0 if self._idle_since is None else started - self._idle_since
        results: list[target_pb2.RowResult] = [
            target_pb2.RowResult(ref=row.ref, committed_len=row.committed_len) for row in asked.rows
        ]
        works = self._prepare(session, asked.rows, results)
        rows = [work.row for work in works if work.row.tokens]
        logits = self._engine.forward_packed(rows) if rows else torch.empty(0)
        judged = iter(verdicts(logits, [work.draft() for work in works if work.row.wants_logits], self._noise))
        for work in works:
            self._finish(work, next(judged) if work.row.wants_logits else None, results[work.index])
        self._idle_since = time.perf_counter()
        return target_pb2.PassResult(
            pass_id=asked.pass_id,
            rows=results,
            pass_ms=1000 * (self._idle_since - started),
            idle_ms=1000 * idle_s,
            num_tokens=sum(row.num_tokens for row in rows),
            num_free_kv_blocks=self._engine.num_free_blocks,
        )

    def release(self, session: Session, ref: worker_pb2.RequestRef) -> None:
        """Forget a request. A release of an older epoch than the one that is open is late, and does nothing."""
        request = session.requests.get(ref.request)
        if request is not None and ref.epoch >= request.epoch:
            self._forget(session, ref.request)

    def close(self, session: Session) -> None:
        for number in list(session.requests):
            self._forget(session, number)

    def _prepare(
        self, session: Session, rows: Iterable[target_pb2.Row], results: Sequence[target_pb2.RowResult]
    ) -> list[_Work]:
        """The rows that can be served; the results of the others are complete."""
        works: list[_Work] = []
        num_tokens, demand = 0, self._engine.demand()
        seen: set[int] = set()
        for index, (row, result) in enumerate(zip(rows, results, strict=True)):
            try:
                if row.ref.request in seen:
                    detail = f"request {row.ref.request} has two rows in one pass"
                    raise _RowRefused(target_pb2.ROW_STATUS_INVALID, detail)
                seen.add(row.ref.request)
                parsed = self._parse(session, row)
                request = self._request(session, parsed)
                if parsed.is_ahead:
                    parsed = self._behind(parsed, request)
                    result.committed_len = parsed.committed_len
                work = self._plan(index, parsed, request)
                num_tokens = self._admit(work, num_tokens, demand)
                works.append(work)
            except _RowRefused as refusal:
                result.status, result.detail = refusal.status, refusal.detail
                result.known_len = refusal.known_len
        return works

    def _parse(self, session: Session, row: target_pb2.Row) -> ParsedRow:
        spec = self._engine.spec
        try:
            return parse_row(row, vocab_size=spec.vocab_size, max_context=spec.max_context)
        except (InvalidRequest, Unsupported, TreeError) as err:
            known = session.requests.get(row.ref.request)
            known_len = len(known.known) if known is not None and known.epoch == row.ref.epoch else 0
            raise _RowRefused(target_pb2.ROW_STATUS_INVALID, err.message, known_len) from err

    def _request(self, session: Session, parsed: ParsedRow) -> _Request:
        """The request in the row's epoch; opened, in place of an older epoch, where the row says so."""
        request = session.requests.get(parsed.request)
        if request is not None and request.epoch == parsed.epoch:
            if parsed.params not in (None, request.params):
                detail = f"open: epoch {parsed.epoch} is open with other parameters"
                raise _RowRefused(target_pb2.ROW_STATUS_INVALID, detail, len(request.known))
            return request
        if parsed.params is None or (request is not None and request.epoch > parsed.epoch):
            raise _RowRefused(target_pb2.ROW_STATUS_PREFIX_MISSING, f"epoch {parsed.epoch} is not open here")
        self._forget(session, parsed.request)
        grammar = self._open_grammar(parsed.params)
        request = session.requests[parsed.request] = _Request(next(self._keys), parsed.epoch, parsed.params, grammar)
        self._engine.open(request.key)
        return request

    def _behind(self, parsed: ParsedRow, request: _Request) -> ParsedRow:
        """A row that was sent ahead, where it is by now."""
        parsed = parsed.behind(request.known)
        max_context = self._engine.spec.max_context
        if parsed.committed_len > max_context:
            detail = f"is_ahead: {parsed.committed_len} tokens are committed, the context holds {max_context}"
            raise _RowRefused(target_pb2.ROW_STATUS_INVALID, detail, len(request.known))
        return parsed

    def _open_grammar(self, params: ChoiceParams) -> GrammarState | None:
        try:
            return self._grammars.open(params.grammar) if params.grammar else None
        except (InvalidRequest, Unsupported) as err:
            raise _RowRefused(target_pb2.ROW_STATUS_INVALID, err.message) from err

    def _plan(self, index: int, parsed: ParsedRow, request: _Request) -> _Work:
        """What to compute for the row: nothing for a prompt chunk that is there already."""
        known_before = self._learn(parsed, request)
        cached_before = self._engine.num_cached(request.key)
        is_found = self._engine.reuse(request.key, request.known[cached_before:]) > cached_before
        is_chunk = len(request.known) < parsed.committed_len
        if not is_chunk:
            # The root has to be computed, whatever is cached: its logits are where the walk starts.
            self._truncate(request, parsed.committed_len - 1)
        cached = self._engine.num_cached(request.key)
        num_found = max(0, min(cached, request.params.num_prompt_tokens) - cached_before)
        nodes = ((), ()) if is_chunk else (parsed.node_tokens, parsed.node_parents)
        row = Row(request.key, request.known[cached:], *nodes, wants_logits=not is_chunk)
        # What was found may stand in place of a block of the request's own, and is not kept if the row is undone:
        # the rows before it count on these blocks being free.
        kept = cached_before - (cached_before % self._engine.block_size if is_found else 0)
        return _Work(index, parsed, request, row, known_before, kept, num_found)

    def _learn(self, parsed: ParsedRow, request: _Request) -> int:
        """Make what is known agree with the row, which is the truth. Returns what was known of that before it."""
        known = request.known
        if parsed.tokens and parsed.start > len(known):
            detail = f"the tokens start at {parsed.start}"
            raise _RowRefused(target_pb2.ROW_STATUS_PREFIX_MISSING, detail, len(known))
        if not parsed.tokens and len(known) < parsed.committed_len:
            raise _RowRefused(target_pb2.ROW_STATUS_PREFIX_MISSING, "the row brings no tokens", len(known))
        overlap = known[parsed.start : parsed.start + len(parsed.tokens)]
        num_agreeing = common_len(overlap, parsed.tokens)
        if num_agreeing < len(overlap):
            del known[parsed.start + num_agreeing :]
        del known[parsed.committed_len :]
        known_before = len(known)
        self._truncate(request, known_before)
        known += parsed.tokens[len(known) - parsed.start :] if parsed.tokens else ()
        return known_before

    def _admit(self, work: _Work, num_tokens: int, demand: Demand) -> int:
        """The tokens that the pass takes with this row as well; its blocks are added to the demand.

        A row that there is no room for is undone and refused: rows that come first are served first. Also a row that
        computes nothing can leave too little for those before it, by what it found in the prefix cache.
        """
        num_tokens += work.row.num_tokens
        if num_tokens > self._max_pass_tokens:
            detail = f"the pass has {num_tokens} tokens with this row: max_pass_tokens is {self._max_pass_tokens}"
            raise _RowRefused(target_pb2.ROW_STATUS_INVALID, detail, self._undo(work))
        growth = self._engine.growth(work.row)
        demand.add(growth)
        if not demand.is_met:
            num_free = self._engine.num_free_blocks
            detail = f"the pass needs {demand.num_blocks} KV blocks with this row, {num_free} are free"
            demand.remove(growth)
            raise _RowRefused(target_pb2.ROW_STATUS_NO_CAPACITY, detail, self._undo(work))
        return num_tokens

    def _finish(self, work: _Work, verdict: Verdict | OutriderError | None, result: target_pb2.RowResult) -> None:
        """Commit what the walk came to; there is no verdict on a prompt chunk."""
        if isinstance(verdict, OutriderError):
            result.status = _STATUSES.get(type(verdict), target_pb2.ROW_STATUS_FAILED)
            result.detail = verdict.message
            if result.status == target_pb2.ROW_STATUS_FAILED:
                # A NaN may be in all that it holds: attention spreads it over the tokens of a pass, also before it.
                self._engine.disown(work.request.key)
            result.known_len = self._undo(work)
            return
        result.status = target_pb2.ROW_STATUS_OK
        if verdict is not None:
            self._engine.accept(work.request.key, verdict.walk.path)
            work.request.known += verdict.walk.tokens
            result.tokens = pack_i32(verdict.walk.tokens)
            result.logprobs.extend(
                target_pb2.TokenLogprobsPacked(ids=pack_i32(entry.ids), logprobs=pack_f32(entry.logprobs))
                for entry in verdict.logprobs
            )
        result.known_len = len(work.request.known)
        result.num_cached_tokens = work.num_found

    def _undo(self, work: _Work) -> int:
        """Forget what the row brought and what was computed for it. Returns what is known then."""
        del work.request.known[work.known_before :]
        self._truncate(work.request, work.cached_before)
        return len(work.request.known)

    def _truncate(self, request: _Request, num_tokens: int) -> None:
        self._engine.truncate(request.key, min(num_tokens, self._engine.num_cached(request.key)))

    def _forget(self, session: Session, number: int) -> None:
        request = session.requests.pop(number, None)
        if request is not None:
            self._engine.close(request.key)
