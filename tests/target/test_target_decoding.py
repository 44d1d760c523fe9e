"""Decoding over the target's stream gives the model's own tokens, whatever is drafted and however rows are cut."""

from __future__ import annotations

import random

import pytest

from outrider.v1.inference_pb2 import SamplingParams
from tests.target_link import GREEDY, SEEDED, Link, Reference, make_row, random_tree, tokens_of

VOCAB = 97
SAMPLINGS = pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])


def prompts(num: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB) for _ in range(rng.randrange(1, 30))] for _ in range(num)]


@SAMPLINGS
@pytest.mark.parametrize("max_nodes", [0, 6])
async def test_drafted_trees_give_the_tokens_of_plain_decoding(
    link: Link, reference: Reference, sampling: SamplingParams, max_nodes: int
) -> None:
    num_tokens = 24
    rng = random.Random(1)
    committed = dict(enumerate(prompts(4)))
    expected = {r: prompt + reference.decode(prompt, num_tokens + 8, sampling) for r, prompt in committed.items()}
    num_accepted = num_passes = 0

    is_open = False
    while any(len(expected[r]) - len(tokens) > 8 for r, tokens in committed.items()):
        rows = []
        for request, tokens in committed.items():
            tree = random_tree(rng, expected[request][len(tokens) :], VOCAB, max_nodes)
            span_start = len(tokens) if is_open else 0
            rows.append(
                make_row(request, tokens, start=span_start, open_with=None if is_open else sampling, nodes=tree)
            )
        is_open = True
        result = await link.ask(*rows)
        for request, row in enumerate(result.rows):
            committed[request] = committed[request] + tokens_of(row)
            num_accepted += len(tokens_of(row)) - 1
            num_passes += 1
            assert row.known_len == len(committed[request])

    for request, tokens in committed.items():
        num = min(len(tokens), len(expected[request]))
        assert tokens[:num] == expected[request][:num]
    # Both kinds of node were there: a test in which nothing, or everything, is accepted proves little.
    assert (num_accepted == 0) is (max_nodes == 0)
    assert num_accepted < 6 * num_passes


async def test_the_seed_decides_the_tokens(reference: Reference) -> None:
    prompt = prompts(1)[0]
    others = SamplingParams(temperature=0.8, seed=1235, top_k=60, top_p=0.97)

    assert reference.decode(prompt, 20, SEEDED) != reference.decode(prompt, 20, others)
    assert reference.decode(prompt, 20, SEEDED) != reference.decode(prompt, 20, GREEDY)


async def test_what_is_accepted_is_not_computed_again(link: Link, reference: Reference) -> None:
    prompt = prompts(1)[0]
    expected = reference.decode(prompt, 8, SEEDED)
    wrong = (expected[0] + 1) % VOCAB
    tree = ([wrong, *expected[:3], wrong], [-1, -1, 1, 2, 3])
    await link.ask_one(make_row(1, prompt, open_with=SEEDED, nodes=tree))
    committed = [*prompt, *expected[:4]]

    result = await link.ask(make_row(1, committed, start=len(committed), nodes=(expected[4:6], [-1, 0])))

    assert tokens_of(result.rows[0]) == expected[4:7]
    assert result.num_tokens == 3  # the root and two nodes


@SAMPLINGS
async def test_a_prompt_in_chunks_gives_what_it_gives_at_once(
    link: Link, reference: Reference, sampling: SamplingParams
) -> None:
    prompt = prompts(3)[2] * 2

    first = await link.ask_one(make_row(1, prompt, end=5, open_with=sampling))
    second = await link.ask_one(make_row(1, prompt, start=5, end=len(prompt) - 1))
    last = await link.ask_one(make_row(1, prompt, start=len(prompt) - 1))

    assert (tokens_of(first), first.known_len) == ([], 5)
    assert (tokens_of(second), second.known_len) == ([], len(prompt) - 1)
    assert tokens_of(last) == reference.decode(prompt, 1, sampling)


async def test_a_chunk_and_a_tree_share_a_pass(link: Link, reference: Reference) -> None:
    prompt, other = prompts(2)
    expected = reference.decode(prompt, 5, GREEDY)

    result = await link.ask(
        make_row(1, prompt, open_with=GREEDY, nodes=(expected[:3], [-1, 0, 1])),
        make_row(2, [*other, 1], end=len(other), open_with=GREEDY),
    )

    assert tokens_of(result.rows[0]) == expected[:4]
    assert tokens_of(result.rows[1]) == []
    assert result.num_tokens == len(prompt) + 3 + len(other)


async def test_a_scheduler_that_knows_less_than_the_target_is_the_truth(link: Link, reference: Reference) -> None:
    prompt = prompts(1)[0]
    expected = reference.decode(prompt, 6, SEEDED)
    await link.ask_one(make_row(1, prompt, open_with=SEEDED, nodes=(expected[:5], [-1, 0, 1, 2, 3])))

    shorter = [*prompt, *expected[:2]]
    again = await link.ask_one(make_row(1, shorter, start=len(shorter)))

    assert tokens_of(again) == expected[2:3]
    assert again.known_len == len(shorter) + 1


async def test_asking_twice_gives_the_same_answer(link: Link, reference: Reference) -> None:
    prompt = prompts(1)[0]
    first = await link.ask_one(make_row(1, prompt, open_with=SEEDED))

    again = await link.ask_one(make_row(1, prompt, start=len(prompt)))
    opened_again = await link.ask_one(make_row(1, prompt, open_with=SEEDED))

    assert tokens_of(first) == tokens_of(again) == tokens_of(opened_again) == reference.decode(prompt, 1, SEEDED)


@pytest.mark.parametrize("changed_at", [0, 4, 7])
async def test_tokens_that_disagree_replace_what_was_known(link: Link, reference: Reference, changed_at: int) -> None:
    prompt = [5, 6, 7, 8, 9, 10, 11, 12]
    await link.ask_one(make_row(1, prompt, open_with=GREEDY))
    changed = list(prompt)
    changed[changed_at] = 90

    result = await link.ask_one(make_row(1, changed, start=max(0, changed_at - 2)))

    assert tokens_of(result) == reference.decode(changed, 1, GREEDY)
    assert result.known_len == len(prompt) + 1


async def test_a_disagreeing_span_that_ends_early_is_a_chunk(link: Link, reference: Reference) -> None:
    prompt = [5, 6, 7, 8, 9, 10, 11, 12]
    await link.ask_one(make_row(1, prompt, open_with=GREEDY))
    changed = [5, 6, 90, 8, 9, 10, 11, 12]

    chunk = await link.ask_one(make_row(1, changed, start=1, end=4))
    rest = await link.ask_one(make_row(1, changed, start=4))

    assert (tokens_of(chunk), chunk.known_len) == ([], 4)
    assert tokens_of(rest) == reference.decode(changed, 1, GREEDY)


async def test_a_new_epoch_starts_over(link: Link, reference: Reference) -> None:
    one, other = prompts(2)
    await link.ask_one(make_row(1, one, open_with=GREEDY))

    result = await link.ask_one(make_row(1, other, epoch=2, open_with=SEEDED))

    assert tokens_of(result) == reference.decode(other, 1, SEEDED)


async def test_the_last_token_of_the_context_can_be_chosen(link: Link, reference: Reference) -> None:
    prompt = [token % VOCAB for token in range(128)]

    result = await link.ask_one(make_row(1, prompt, open_with=GREEDY))

    assert tokens_of(result) == reference.decode(prompt, 1, GREEDY)


async def test_passes_that_are_sent_ahead_are_answered_in_order(link: Link, reference: Reference) -> None:
    both = prompts(2)
    for request, prompt in enumerate(both):
        await link.send(make_row(request, prompt, open_with=GREEDY))

    results = [await link.receive() for _ in both]

    assert [result.pass_id for result in results] == [1, 2]
    for result, prompt in zip(results, both, strict=True):
        assert tokens_of(result.rows[0]) == reference.decode(prompt, 1, GREEDY)


async def test_a_pass_without_rows_is_answered(link: Link) -> None:
    result = await link.ask()

    assert (len(result.rows), result.num_tokens, result.idle_ms) == (0, 0, 0)
