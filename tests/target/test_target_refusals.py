"""What goes wrong with a row is that row's alone, and says what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from outrider.packing import pack_i32
from outrider.v1 import inference_pb2 as inference
from outrider.v1 import target_pb2
from tests.target_link import GREEDY, SEEDED, Link, Reference, make_row, serving, tokens_of
from tests.tiny import save_tiny_llama
from workers.target.server import TargetConfig

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]
NAN_TOKEN = 13


def spoiled(**fields: object) -> target_pb2.Row:
    row = make_row(1, PROMPT, open_with=GREEDY)
    row.MergeFrom(target_pb2.Row(**fields))  # type: ignore[arg-type]
    return row


def opened_with(
    rule: inference.AcceptanceRule = inference.ACCEPTANCE_RULE_COUPLED, **sampling: object
) -> target_pb2.Row:
    row = make_row(1, PROMPT, open_with=inference.SamplingParams(seed=1, **sampling))  # type: ignore[arg-type]
    row.open.acceptance_rule = rule
    return row


def longer_prompt() -> target_pb2.Row:
    row = opened_with()
    row.open.num_prompt_tokens = len(PROMPT) + 1
    return row


MALFORMED: dict[str, tuple[Callable[[], target_pb2.Row], str]] = {
    "half a token": (lambda: spoiled(node_tokens=b"\1\2\3", node_parents=b""), "node_tokens"),
    "half a parent": (lambda: spoiled(node_tokens=pack_i32([1]), node_parents=b"\1"), "node_parents"),
    "parents missing": (lambda: spoiled(node_tokens=pack_i32([1, 2]), node_parents=pack_i32([-1])), "node_parents"),
    "parent after node": (lambda: spoiled(node_tokens=pack_i32([1, 2]), node_parents=pack_i32([1, -1])), "parents"),
    "parent below root": (lambda: spoiled(node_tokens=pack_i32([1]), node_parents=pack_i32([-2])), "parents"),
    "node out of vocabulary": (lambda: spoiled(node_tokens=pack_i32([97]), node_parents=pack_i32([-1])), "97"),
    "negative node": (lambda: spoiled(node_tokens=pack_i32([-1]), node_parents=pack_i32([-1])), "node_tokens"),
    "token out of vocabulary": (lambda: make_row(1, [5, 97], open_with=GREEDY), "97"),
    "negative token": (lambda: make_row(1, [-1, 5], open_with=GREEDY), "tokens"),
    "no token committed": (lambda: make_row(1, [], open_with=GREEDY), "committed_len"),
    "context overrun": (lambda: make_row(1, [5] * 129, open_with=GREEDY), "committed_len is 129"),
    "span beyond committed_len": (lambda: spoiled(committed_len=3), "tokens"),
    "node beyond the context": (
        lambda: make_row(1, [5] * 127, open_with=GREEDY, nodes=([1, 2], [-1, 0])),
        "context",
    ),
    "too many tokens for a pass": (lambda: make_row(1, [5] * 120, open_with=GREEDY), "max_pass_tokens"),
    "text instead of tokens": (lambda: opened_with(bad_words=["x"]), "bad_words"),
    "unknown acceptance rule": (lambda: opened_with(9), "acceptance_rule is 9"),  # type: ignore[arg-type]
    "token without a logit": (lambda: opened_with(allowed_token_ids=[97]), "97"),
    "prompt longer than the text": (longer_prompt, "num_prompt_tokens is 9"),
    "value out of range": (lambda: opened_with(top_p=2.0), "top_p"),
}


@pytest.fixture
async def narrow_link(tiny: Path):  # type: ignore[no-untyped-def]
    """To a target with room for 100 tokens a pass."""
    config = TargetConfig(model=str(tiny), kv_cache_bytes=1 << 20, threads=1, max_pass_tokens=100, profile_s=0)
    async with serving(config) as (_, stub):
        yield Link(stub)


@pytest.mark.parametrize("kind", MALFORMED)
async def test_a_malformed_row_fails_alone_and_names_its_fault(
    narrow_link: Link, reference: Reference, kind: str
) -> None:
    make_malformed, named = MALFORMED[kind]

    result = await narrow_link.ask(
        make_row(7, PROMPT, open_with=GREEDY), make_malformed(), make_row(8, PROMPT, open_with=SEEDED)
    )

    assert result.rows[1].status == target_pb2.ROW_STATUS_INVALID
    assert named in result.rows[1].detail
    assert result.rows[1].known_len == 0
    assert tokens_of(result.rows[0]) == reference.decode(PROMPT, 1, GREEDY)
    assert tokens_of(result.rows[2]) == reference.decode(PROMPT, 1, SEEDED)


async def test_a_malformed_row_leaves_what_was_known_as_it_was(link: Link, reference: Reference) -> None:
    expected = reference.decode(PROMPT, 2, GREEDY)
    await link.ask_one(make_row(1, PROMPT, open_with=GREEDY))
    committed = [*PROMPT, expected[0]]

    refused = await link.ask_one(make_row(1, committed, start=len(committed), nodes=([5], [3])))
    result = await link.ask_one(make_row(1, committed, start=len(committed)))

    assert (refused.status, refused.known_len) == (target_pb2.ROW_STATUS_INVALID, len(committed))
    assert tokens_of(result) == expected[1:]


async def test_a_request_has_one_row_in_a_pass(link: Link) -> None:
    result = await link.ask(make_row(1, PROMPT, open_with=GREEDY), make_row(1, PROMPT, open_with=GREEDY))

    assert [row.status for row in result.rows] == [target_pb2.ROW_STATUS_OK, target_pb2.ROW_STATUS_INVALID]
    assert "two rows" in result.rows[1].detail


async def test_an_open_epoch_keeps_its_parameters(link: Link) -> None:
    await link.ask_one(make_row(1, PROMPT, open_with=GREEDY))

    result = await link.ask_one(make_row(1, PROMPT, open_with=SEEDED))

    assert result.status == target_pb2.ROW_STATUS_INVALID
    assert "other parameters" in result.detail


def assert_missing(result: target_pb2.RowResult, known_len: int) -> None:
    assert (result.status, result.known_len) == (target_pb2.ROW_STATUS_PREFIX_MISSING, known_len)
    assert result.tokens == b""


async def test_an_unknown_request_is_asked_for_from_its_start(link: Link) -> None:
    assert_missing(await link.ask_one(make_row(1, PROMPT)), 0)


async def test_a_stale_epoch_is_refused_with_and_without_open(link: Link, reference: Reference) -> None:
    await link.ask_one(make_row(1, PROMPT, epoch=5, open_with=GREEDY))

    assert_missing(await link.ask_one(make_row(1, PROMPT, epoch=4)), 0)
    assert_missing(await link.ask_one(make_row(1, PROMPT, epoch=4, open_with=GREEDY)), 0)
    assert_missing(await link.ask_one(make_row(1, PROMPT, epoch=6)), 0)
    # Epoch 5 has seen nothing of this.
    after = await link.ask_one(make_row(1, PROMPT, epoch=5, start=len(PROMPT)))
    assert tokens_of(after) == reference.decode(PROMPT, 1, GREEDY)


async def test_a_gap_in_the_tokens_is_asked_for_from_where_it_begins(link: Link, reference: Reference) -> None:
    await link.ask_one(make_row(1, PROMPT, end=4, open_with=GREEDY))

    assert_missing(await link.ask_one(make_row(1, PROMPT, start=5)), 4)
    assert_missing(await link.ask_one(make_row(1, PROMPT, start=len(PROMPT))), 4)
    result = await link.ask_one(make_row(1, PROMPT, start=4))
    assert tokens_of(result) == reference.decode(PROMPT, 1, GREEDY)


async def test_a_late_release_of_an_older_epoch_does_nothing(link: Link) -> None:
    await link.ask_one(make_row(1, PROMPT, epoch=2, open_with=GREEDY))

    await link.release(1, epoch=1)

    tokens_of(await link.ask_one(make_row(1, PROMPT, epoch=2, start=len(PROMPT))))


async def test_a_release_gives_the_blocks_back(link: Link) -> None:
    total = (await link.ask()).num_free_kv_blocks
    assert (await link.ask(make_row(1, PROMPT, open_with=GREEDY))).num_free_kv_blocks < total

    await link.release(1, epoch=1)

    assert (await link.ask()).num_free_kv_blocks == total
    assert_missing(await link.ask_one(make_row(1, PROMPT)), 0)


async def test_a_row_without_room_is_refused_and_the_rows_after_it_get_what_there_is(
    tiny: Path, reference: Reference
) -> None:
    block_bytes = 16 * 2 * 2 * 4 * 8 * 4  # tokens, layers, K and V, KV heads, head size, float32
    config = TargetConfig(model=str(tiny), kv_cache_bytes=3 * block_bytes, threads=1, profile_s=0)
    async with serving(config) as (_, stub):
        link = Link(stub)
        long = [5] * 40
        result = await link.ask(
            make_row(1, PROMPT, open_with=GREEDY),
            make_row(2, long, open_with=GREEDY),
            make_row(3, PROMPT, open_with=SEEDED),
        )

        assert result.rows[1].status == target_pb2.ROW_STATUS_NO_CAPACITY
        assert result.rows[1].known_len == 0
        assert "KV blocks" in result.rows[1].detail
        assert tokens_of(result.rows[0]) == reference.decode(PROMPT, 1, GREEDY)
        assert tokens_of(result.rows[2]) == reference.decode(PROMPT, 1, SEEDED)

        await link.release(1, epoch=1)
        await link.release(3, epoch=1)
        now = await link.ask_one(make_row(2, long))
        assert tokens_of(now) == reference.decode(long, 1, GREEDY)


async def test_nan_logits_fail_their_row_and_leave_the_others(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "nan", nan_token=NAN_TOKEN)
    poisoned = [*PROMPT, NAN_TOKEN]
    async with serving(TargetConfig(model=str(folder), kv_cache_bytes=1 << 20, threads=1, profile_s=0)) as (_, stub):
        link = Link(stub)
        result = await link.ask(
            make_row(1, PROMPT, open_with=SEEDED), make_row(2, poisoned, open_with=SEEDED, nodes=([5], [-1]))
        )

        expected = Reference(folder).decode(PROMPT, 1, SEEDED)
        assert tokens_of(result.rows[0]) == expected
        assert result.rows[1].status == target_pb2.ROW_STATUS_FAILED
        assert "NaN" in result.rows[1].detail
        assert result.rows[1].known_len == 0
        # What was computed for it is gone: with another last token the request goes on.
        tokens_of(await link.ask_one(make_row(2, [*PROMPT, 5])))


async def test_a_node_without_a_choice_matters_only_where_the_walk_comes_to_it(
    link: Link, reference: Reference
) -> None:
    sampling = inference.SamplingParams(temperature=0, allowed_token_ids=[40, 41])
    first, second = reference.decode(PROMPT, 2, sampling)
    row = make_row(1, PROMPT, open_with=sampling, nodes=([first, first + 1], [-1, -1]))
    # After `first`, and after the token that is not allowed, each continuation of the two is a bad word.
    for before in (first + 1, 39):
        row.open.bad_words.add(ids=[before, 40])
        row.open.bad_words.add(ids=[before, 41])

    assert tokens_of(await link.ask_one(row)) == [first, second]

    stuck = make_row(2, PROMPT, open_with=sampling, nodes=([first], [-1]))
    for word in (40, 41):
        stuck.open.bad_words.add(ids=[first, word])
    result, other = (await link.ask(stuck, make_row(3, PROMPT, open_with=GREEDY))).rows

    assert result.status == target_pb2.ROW_STATUS_NO_TOKEN
    assert "leave no token" in result.detail
    assert tokens_of(other) == reference.decode(PROMPT, 1, GREEDY)


async def test_a_nan_beside_the_walk_fails_nothing(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "nan", nan_token=NAN_TOKEN)
    expected = Reference(folder).decode(PROMPT, 3, GREEDY)
    async with serving(TargetConfig(model=str(folder), kv_cache_bytes=1 << 20, threads=1, profile_s=0)) as (_, stub):
        link = Link(stub)
        tree = ([expected[0], expected[1], NAN_TOKEN], [-1, 0, -1])
        result = await link.ask_one(make_row(1, PROMPT, open_with=GREEDY, nodes=tree))

    assert tokens_of(result) == expected
