"""A row as it came over the wire, checked in full before anything is changed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from outrider.draft_law import DraftLaw
from outrider.errors import InvalidRequest
from outrider.packing import unpack_i32
from outrider.tree import ROOT, below, check_parents
from outrider.v1 import target_pb2
from workers.choice.params import ChoiceParams, check_tokens, choice_params
from workers.target.rules.laws import laws_of_nodes


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """One request's part of a pass, with its numbers unpacked."""

    request: int
    epoch: int
    committed_len: int
    params: ChoiceParams | None  # of a row that opens an epoch
    start: int  # tokens are the committed ones [start, start + len(tokens))
    tokens: Sequence[int]
    node_tokens: Sequence[int]  # [num_nodes]
    node_parents: Sequence[int]  # [num_nodes]
    drawn_from: Sequence[DraftLaw]  # [num_nodes]
    is_ahead: bool

    def behind(self, known: Sequence[int]) -> ParsedRow:
        """A row that was sent ahead, behind the tokens that are known by now: of its nodes those below the last one."""
        if len(known) <= self.committed_len:
            return self
        left, parents = below(known[self.committed_len :], self.node_tokens, self.node_parents)
        return replace(
            self,
            committed_len=len(known),
            node_tokens=[self.node_tokens[node] for node in left],
            node_parents=parents,
            drawn_from=[self.drawn_from[node] for node in left],
        )


def parse_row(row: target_pb2.Row, *, vocab_size: int, max_context: int) -> ParsedRow:
    """Raises InvalidRequest, Unsupported or TreeError, each naming what makes no sense."""
    tokens = _token_ids("tokens.ids", row.tokens.ids, vocab_size)
    node_tokens = _token_ids("node_tokens", row.node_tokens, vocab_size)
    node_parents = _unpack("node_parents", row.node_parents)
    if not 1 <= row.committed_len <= max_context:
        raise InvalidRequest.of("committed_len", row.committed_len, f"it is between 1 and {max_context}")
    end = row.tokens.start + len(tokens)
    if tokens and end > row.committed_len:
        raise InvalidRequest.of("tokens", end, f"they end at or before committed_len, {row.committed_len}")
    if len(node_parents) != len(node_tokens):
        raise InvalidRequest.of("node_parents", node_parents, f"there are {len(node_tokens)} node_tokens")
    check_parents(node_parents)
    deepest = row.committed_len + max(_depths(node_parents))
    if deepest > max_context:
        raise InvalidRequest.of("node_parents", deepest, f"no node lies behind the context's {max_context} tokens")
    return ParsedRow(
        request=row.ref.request,
        epoch=row.ref.epoch,
        committed_len=row.committed_len,
        params=_params(row, vocab_size) if row.HasField("open") else None,
        start=row.tokens.start,
        tokens=tokens,
        node_tokens=node_tokens,
        node_parents=node_parents,
        drawn_from=laws_of_nodes(row.laws, node_tokens, node_parents, vocab_size),
        is_ahead=row.is_ahead,
    )


def _params(row: target_pb2.Row, vocab_size: int) -> ChoiceParams:
    params = choice_params(row.open)
    check_tokens(params, vocab_size)
    if not 1 <= params.num_prompt_tokens <= row.committed_len:
        limit = f"it is between 1 and committed_len, {row.committed_len}"
        raise InvalidRequest.of("num_prompt_tokens", params.num_prompt_tokens, limit)
    return params


def _unpack(field: str, data: bytes) -> list[int]:
    try:
        return unpack_i32(data)
    except InvalidRequest as err:
        raise InvalidRequest(f"{field}: {err.message}") from err


def _token_ids(field: str, data: bytes, vocab_size: int) -> list[int]:
    ids = _unpack(field, data)
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InvalidRequest.of(field, token, f"the vocabulary has {vocab_size} tokens")
    return ids


def _depths(parents: Sequence[int]) -> list[int]:
    depths = [0]
    for parent in parents:
        depths.append(1 if parent == ROOT else depths[parent + 1] + 1)
    return depths
