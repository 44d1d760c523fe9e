"""Reports that make no sense: what a defective worker, or another version of it, may send.

Only what scheduler/messages.py lets through: lists of a growth have one length, numbers fit their fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from outrider.draft_law import DraftLaw
from outrider.errors import InternalError, InvalidRequest, NoTokenLeft, OutriderError
from outrider.types import TokenLogprobs
from scheduler.events import Event, Grown, Growth, PassDone, RowOutcome, RowStatus

Excuse = Callable[[int, type[OutriderError]], None]  # the request may end with this error

_HUGE = 2**31 - 1  # fits an i32


def tampered(event: Event, rng: Random, vocab_size: int, excuse: Excuse) -> Event:
    """The event with one part of it spoiled."""
    match event:
        case Grown(growths) if growths:
            index = rng.randrange(len(growths))
            return Grown(
                [_spoil_growth(each, rng, vocab_size) if i == index else each for i, each in enumerate(growths)]
            )
        case PassDone(outcomes=outcomes) if outcomes:
            return replace(event, outcomes=_spoil_outcomes(outcomes, rng, vocab_size, excuse))
    return event


def _spoil_growth(growth: Growth, rng: Random, vocab_size: int) -> Growth:
    num_nodes = len(growth.tokens)
    somewhere = rng.randrange(num_nodes) if num_nodes else 0
    match rng.randrange(9):
        case 0 if num_nodes:
            parent = rng.choice([0, -3, growth.first_node + somewhere, growth.first_node + num_nodes, _HUGE])
            return replace(growth, parents=_with(growth.parents, somewhere, parent))
        case 1 if num_nodes:
            return replace(growth, tokens=_with(growth.tokens, somewhere, _foreign_token(rng, vocab_size)))
        case 2:
            return replace(growth, committed_len=max(0, growth.committed_len + rng.choice([-2, -1, 1, 2, _HUGE])))
        case 3:
            return replace(growth, first_node=rng.choice([0, 1, growth.first_node + 1, _HUGE]))
        case 4:
            return replace(growth, epoch=growth.epoch + rng.choice([-1, 1]))
        case 5:
            return replace(growth, is_prefix_missing=True)
        case 6:
            return replace(growth, is_done=not growth.is_done)
        case 7:
            return replace(
                growth, laws=[rng.choice([None, DraftLaw((0, vocab_size), (0.5, 0.5))]) for _ in growth.tokens]
            )
        case _:
            return replace(growth, request=rng.choice([0, growth.request + 1, _HUGE]))


def _spoil_outcomes(outcomes: Sequence[RowOutcome], rng: Random, vocab_size: int, excuse: Excuse) -> list[RowOutcome]:
    index = rng.randrange(len(outcomes))
    spoiled = list(outcomes)
    outcome = outcomes[index]
    kind = rng.randrange(10)
    if kind <= 2:  # what the core has to see through: the row goes again, and nothing is lost
        spoiled[index] = _made_stale(outcome, rng, kind)
        return spoiled
    if kind == 9:
        excuse(outcome.request, NoTokenLeft)
        spoiled[index] = replace(outcome, status="no_token", tokens=(), detail="spoiled")
        return spoiled
    excuse(outcome.request, InternalError)
    match kind:
        case 3:
            spoiled[index] = replace(outcome, status="prefix_missing", tokens=(), known_len=0)
        case 4:
            spoiled[index] = replace(outcome, request=rng.choice([0, outcome.request + 1000]))
        case 5:
            del spoiled[index]
        case 6:
            status: RowStatus = rng.choice(["invalid", "failed"])
            if status == "invalid":  # which is the client's own fault where it resumes with other tokens
                excuse(outcome.request, InvalidRequest)
            spoiled[index] = replace(outcome, status=status, tokens=(), detail="spoiled")
        case 7:
            spoiled[index] = replace(outcome, logprobs=[*outcome.logprobs, TokenLogprobs(0.0, (), ())])
        case _ if outcome.tokens:
            where = rng.randrange(len(outcome.tokens))
            spoiled[index] = replace(outcome, tokens=_with(outcome.tokens, where, _foreign_token(rng, vocab_size)))
    return spoiled


def _made_stale(outcome: RowOutcome, rng: Random, kind: int) -> RowOutcome:
    match kind:
        case 0:
            return replace(outcome, epoch=outcome.epoch + rng.choice([-1, 1]))
        case 1:
            return replace(outcome, committed_len=max(0, outcome.committed_len + rng.choice([-1, 1, 3])))
        case _:
            return replace(outcome, known_len=rng.choice([0, outcome.known_len + 1, _HUGE]))


def _foreign_token(rng: Random, vocab_size: int) -> int:
    return rng.choice([-1, vocab_size, vocab_size + 5, _HUGE])


def _with(values: Sequence[int], index: int, value: int) -> list[int]:
    return [value if i == index else each for i, each in enumerate(values)]
