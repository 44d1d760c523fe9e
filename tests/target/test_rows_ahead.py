"""Rows that are sent before the verdict that they build on: the same tokens, and nothing computed that can't count."""

from __future__ import annotations

import random

import pytest

from outrider.v1 import target_pb2
from outrider.v1.inference_pb2 import SamplingParams
from tests.target_link import GREEDY, SEEDED, Link, Reference, make_row, random_tree, tokens_of

VOCAB = 97
PROMPT = [5, 6, 7, 8, 9, 10, 11]
OK = target_pb2.ROW_STATUS_OK


def ahead(row: target_pb2.Row) -> target_pb2.Row:
    row.is_ahead = True
    return row


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_with_the_next_pass_always_ahead_the_tokens_are_those_of_plain_decoding(
    link: Link, reference: Reference, sampling: SamplingParams
) -> None:
    rng = random.Random(3)
    expected = PROMPT + reference.decode(PROMPT, 80, sampling)
    committed = list(PROMPT)
    num_tokens: list[int] = []
    num_committed: list[int] = []

    await link.send(make_row(1, committed, open_with=sampling))
    while len(committed) < 60:
        tree = random_tree(rng, expected[len(committed) :], VOCAB, 12)
        await link.send(ahead(make_row(1, committed, start=len(committed), nodes=tree)))
        verdict = await link.receive()
        [row] = verdict.rows
        committed += tokens_of(row)
        num_tokens.append(verdict.num_tokens)
        num_committed.append(len(tokens_of(row)))
        assert (row.status, row.known_len) == (OK, len(committed))

    assert committed == expected[: len(committed)]
    # Some drafts were there and right, some were right in a part, and of some nothing was left.
    assert {1, 2, 3} <= set(num_committed)
    assert 1 in num_tokens[1:]
    assert max(num_tokens[1:]) > 1


async def test_only_what_lies_below_the_chosen_tokens_is_computed(link: Link, reference: Reference) -> None:
    expected = reference.decode(PROMPT, 8, SEEDED)
    wrong = (expected[1] + 1) % VOCAB
    await link.send(make_row(1, PROMPT, open_with=SEEDED, nodes=(expected[:1], [-1])))
    #    0 ─┬─ wrong ── 3      the first pass comes to two tokens: below them are two nodes, 5 and 6, and 7 beside them
    tokens = [expected[0], wrong, expected[1], expected[2], 1, expected[2], expected[3], wrong]
    parents = [-1, 0, 0, 1, -1, 2, 5, 2]
    await link.send(ahead(make_row(1, PROMPT, start=len(PROMPT), nodes=(tokens, parents))))

    first, second = await link.receive(), await link.receive()

    assert tokens_of(first.rows[0]) == expected[:2]
    assert second.rows[0].committed_len == len(PROMPT) + 2
    assert tokens_of(second.rows[0]) == expected[2:5]
    assert second.num_tokens == 1 + 3


async def test_a_row_ahead_of_a_verdict_that_chose_nothing_is_like_any_other(link: Link, reference: Reference) -> None:
    """Behind a chunk of the prompt, the rest of it; and what is lacking then is asked for."""
    await link.send(make_row(1, PROMPT, end=3, open_with=GREEDY))
    await link.send(ahead(make_row(1, PROMPT, start=3)))
    await link.send(ahead(make_row(2, PROMPT, start=3)))

    chunk, rest, unknown = [(await link.receive()).rows[0] for _ in range(3)]

    assert (chunk.known_len, tokens_of(chunk)) == (3, [])
    assert (rest.committed_len, tokens_of(rest)) == (len(PROMPT), reference.decode(PROMPT, 1, GREEDY))
    assert unknown.status == target_pb2.ROW_STATUS_PREFIX_MISSING


async def test_a_row_ahead_that_comes_out_behind_the_context_is_refused_alone(link: Link) -> None:
    max_context = 128
    long = [1 + i % 90 for i in range(max_context)]
    await link.send(make_row(1, long, open_with=GREEDY), make_row(2, PROMPT, open_with=GREEDY))
    rows = [ahead(make_row(number, tokens, start=len(tokens))) for number, tokens in ((1, long), (2, PROMPT))]
    await link.send(*rows)

    first, second = await link.receive(), await link.receive()

    assert [row.status for row in first.rows] == [OK, OK]
    assert [row.status for row in second.rows] == [target_pb2.ROW_STATUS_INVALID, OK]
    assert f"is_ahead: {max_context + 1} tokens" in second.rows[0].detail
