"""A model drafter whose model is the target's own guesses every token, whatever happens around it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from outrider.errors import InvalidRequest
from outrider.v1 import worker_pb2
from outrider.v1.inference_pb2 import SamplingParams
from tests.target_link import GREEDY, SEEDED, Reference
from tests.tiny import END_TOKEN, save_tiny_llama
from workers.choice.params import ChoiceParams, guess_params
from workers.draft import model
from workers.draft.drafter import NewNodes, Resources
from workers.draft.model import ModelDrafter, load
from workers.engine.batch import Row

VOCAB = 97
PROMPT = [5, 6, 7, 8, 9]
BLOCK_BYTES = 16 * 2 * 2 * 4 * 8 * 4  # tokens, layers, K and V, KV heads, head size, float32
SAMPLINGS = pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])


def params_of(sampling: SamplingParams) -> ChoiceParams:
    return guess_params(worker_pb2.OpenRequest(sampling=sampling))


def load_tiny(folder: Path, num_blocks: int = 64) -> ModelDrafter:
    return load(str(folder), Resources(threads=1, kv_cache_bytes=num_blocks * BLOCK_BYTES))


@pytest.fixture
def drafter(tiny: Path) -> ModelDrafter:
    return load_tiny(tiny)


def draft(drafter: ModelDrafter) -> dict[int, NewNodes]:
    """All that is drafted until everything is done, each request's steps put together."""
    found: dict[int, NewNodes] = {}
    while any(request.is_live for request in drafter._requests.values()):
        for new in drafter.step():
            so_far = found.setdefault(new.key, NewNodes(new.key, [], [], [], is_done=False))
            assert not so_far.is_done
            found[new.key] = NewNodes(
                new.key,
                [*so_far.tokens, *new.tokens],
                [*so_far.parents, *new.parents],
                [*so_far.scores, *new.scores],
                new.is_done,
                [*so_far.laws, *new.laws],
            )
    assert all(nodes.is_done for nodes in found.values())
    return found


def draft_below(drafter: ModelDrafter, tokens: Sequence[int], max_nodes: int, key: int = 1) -> list[int]:
    """Commit tokens and draft below them."""
    drafter.extend(key, tokens)
    drafter.begin(key, max_nodes)
    nodes = draft(drafter)[key]
    assert list(nodes.parents) == list(range(-1, len(nodes.tokens) - 1))
    return list(nodes.tokens)


def until_end(tokens: list[int]) -> list[int]:
    """Behind an end token nothing is drafted."""
    return tokens[: tokens.index(END_TOKEN) + 1] if END_TOKEN in tokens else tokens


@SAMPLINGS
def test_the_targets_own_model_guesses_every_token(
    drafter: ModelDrafter, reference: Reference, sampling: SamplingParams
) -> None:
    drafter.open(1, params_of(sampling))

    assert draft_below(drafter, PROMPT, 6) == reference.decode(PROMPT, 6, sampling)


def test_without_the_targets_seed_its_sample_is_not_guessed(drafter: ModelDrafter, reference: Reference) -> None:
    """The wrong twin of the test above."""
    drafter.open(1, params_of(SamplingParams(temperature=0.8, seed=99, top_k=60, top_p=0.97)))

    assert draft_below(drafter, PROMPT, 6) != reference.decode(PROMPT, 6, SEEDED)


def test_requests_are_drafted_for_in_one_batch(drafter: ModelDrafter, reference: Reference) -> None:
    rng = random.Random(4)
    prompts = {key: [rng.randrange(1, VOCAB) for _ in range(3 + key)] for key in range(5)}
    for key, prompt in prompts.items():
        drafter.open(key, params_of(SEEDED))
        drafter.extend(key, prompt)
        drafter.begin(key, 4)

    first_step = drafter.step()

    assert [len(new.tokens) for new in first_step] == [1] * 5
    rest = draft(drafter)
    for new in first_step:
        expected = reference.decode(prompts[new.key], 4, SEEDED)
        assert [*new.tokens, *rest[new.key].tokens] == until_end(expected)


@pytest.mark.parametrize("num_agreeing", [0, 1, 3, 5])
@pytest.mark.parametrize("num_others", [0, 3])  # that follow the first disagreement: another drafter's branch
@SAMPLINGS
def test_drafting_goes_on_after_a_verdict_as_if_it_had_begun_there(
    drafter: ModelDrafter, reference: Reference, sampling: SamplingParams, num_agreeing: int, num_others: int
) -> None:
    drafter.open(1, params_of(sampling))
    drafted = draft_below(drafter, PROMPT, 5)
    wrong = (drafted[min(num_agreeing, 4)] + 1) % VOCAB
    verdict = [*drafted[:num_agreeing], wrong, *range(20, 20 + num_others)]

    below = draft_below(drafter, verdict, 4)

    assert below == until_end(reference.decode([*PROMPT, *verdict], 4, sampling))


def test_what_stands_after_a_verdict_is_told_again_and_not_computed_again(
    drafter: ModelDrafter, reference: Reference
) -> None:
    drafter.open(1, params_of(SEEDED))
    drafted = draft_below(drafter, PROMPT, 5)
    drafter.extend(1, drafted[:2])
    drafter.begin(1, 4)

    (first,) = drafter.step()

    # Three of the five nodes stand; one forward adds the fourth.
    assert first.is_done
    assert [*drafted[:2], *first.tokens] == reference.decode(PROMPT, 6, SEEDED)
    assert drafter.step() == []


def test_a_new_order_for_the_same_root_goes_on_where_the_old_one_stopped(
    drafter: ModelDrafter, reference: Reference
) -> None:
    drafter.open(1, params_of(SEEDED))
    drafter.extend(1, PROMPT)
    drafter.begin(1, 6)
    drafter.step()
    drafter.begin(1, 3)

    nodes = draft(drafter)[1]

    assert list(nodes.tokens) == reference.decode(PROMPT, 3, SEEDED)
    assert draft_below(drafter, [], 2) == list(nodes.tokens)[:2]


def test_a_drafter_told_everything_at_once_drafts_like_one_told_step_by_step(tiny: Path, reference: Reference) -> None:
    expected = reference.decode(PROMPT, 12, SEEDED)
    told_once, told_stepwise = load_tiny(tiny), load_tiny(tiny)
    for drafter in (told_once, told_stepwise):
        drafter.open(1, params_of(SEEDED))
    draft_below(told_stepwise, PROMPT, 3)
    for token in expected[:7]:
        last = draft_below(told_stepwise, [token], 3)

    assert draft_below(told_once, [*PROMPT, *expected[:7]], 3) == last == expected[7:10]


def test_a_long_prompt_is_taken_in_several_steps(
    drafter: ModelDrafter, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "MAX_STEP_TOKENS", 7)
    prompt = list(range(1, 40))
    drafter.open(1, params_of(SEEDED))

    assert draft_below(drafter, prompt, 3) == reference.decode(prompt, 3, SEEDED)


def test_a_full_cache_forgets_who_is_not_waited_for(tiny: Path, reference: Reference) -> None:
    drafter = load_tiny(tiny, num_blocks=3)
    prompts = {key: [key] * 20 for key in range(1, 5)}  # two blocks each
    for key in prompts:
        drafter.open(key, params_of(SEEDED))

    first = {key: draft_below(drafter, prompt, 2, key) for key, prompt in prompts.items()}
    again = {key: draft_below(drafter, first[key][:1], 2, key) for key in prompts}

    for key, prompt in prompts.items():
        expected = reference.decode(prompt, 3, SEEDED)
        assert (first[key], again[key]) == (expected[:2], expected[1:])


def test_a_request_that_comes_back_is_filled_from_the_prefix_cache_and_drafts_the_same(
    drafter: ModelDrafter, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = list(range(1, 33))  # two whole blocks: its last token is computed though its KV is there
    expected = reference.decode(prompt, 3, SEEDED)
    drafter.open(1, params_of(SEEDED))
    assert draft_below(drafter, prompt, 3) == expected
    drafter.close(1)
    computed: list[int] = []
    forward = drafter._engine.forward

    def counting(rows: Sequence[Row]) -> list[Tensor | None]:
        computed.append(sum(row.num_tokens for row in rows))
        return forward(rows)

    monkeypatch.setattr(drafter._engine, "forward", counting)
    drafter.open(2, params_of(SEEDED))

    assert draft_below(drafter, prompt, 3, key=2) == expected
    assert computed == [1, 1, 1]
    drafter._engine.check_integrity()


def test_a_request_that_has_to_wait_does_not_hold_what_it_found_in_the_prefix_cache(
    tiny: Path, reference: Reference
) -> None:
    drafter = load_tiny(tiny, num_blocks=3)
    shared = list(range(1, 17))
    drafter.open(1, params_of(SEEDED))
    draft_below(drafter, shared, 1)
    drafter.close(1)
    prompts = {2: [7] * 40, 3: [*shared, *[9] * 8]}  # the first takes all three blocks
    for key, prompt in prompts.items():
        drafter.open(key, params_of(SEEDED))
        drafter.extend(key, prompt)
        drafter.begin(key, 2)

    found = draft(drafter)

    for key, prompt in prompts.items():
        assert list(found[key].tokens) == until_end(reference.decode(prompt, 2, SEEDED))


def test_requests_that_do_not_fit_together_draft_nothing_rather_than_fail(tiny: Path, reference: Reference) -> None:
    drafter = load_tiny(tiny, num_blocks=3)
    for key in (1, 2):
        drafter.open(key, params_of(GREEDY))
        drafter.extend(key, [key] * 20)
        drafter.begin(key, 2)
    drafter.open(3, params_of(GREEDY))
    drafter.extend(3, [3] * 60)
    drafter.begin(3, 2)

    found = draft(drafter)

    assert list(found[1].tokens) == reference.decode([1] * 20, 2, GREEDY)
    assert list(found[2].tokens) in ([], reference.decode([2] * 20, 2, GREEDY))
    assert list(found[3].tokens) == []


@pytest.mark.parametrize(
    ("tokens", "max_nodes"),
    [
        pytest.param(PROMPT, 0, id="no nodes asked for"),
        pytest.param([5] * 128, 4, id="context full"),
        pytest.param([5, 97], 4, id="token beyond the drafter's vocabulary"),
    ],
)
def test_where_nothing_can_be_drafted_the_drafter_says_so(
    drafter: ModelDrafter, tokens: list[int], max_nodes: int
) -> None:
    drafter.open(1, params_of(SEEDED))

    assert draft_below(drafter, tokens, max_nodes) == []


def test_drafts_end_with_the_context(drafter: ModelDrafter) -> None:
    drafter.open(1, params_of(SEEDED))

    assert len(draft_below(drafter, [5] * 126, 9)) == 2


def test_nothing_is_drafted_behind_an_end_token(drafter: ModelDrafter) -> None:
    ends = 0
    for seed in range(30):
        drafter.open(seed, params_of(SamplingParams(temperature=3.0, seed=seed)))
        drafted = draft_below(drafter, PROMPT, 12, key=seed)
        assert END_TOKEN not in drafted[:-1]
        ends += END_TOKEN in drafted
        assert len(drafted) == 12 or drafted[-1] == END_TOKEN
        drafter.close(seed)
    assert 0 < ends < 30


def test_a_model_that_answers_nan_drafts_nothing_and_lives_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny_llama(tmp_path / "nan", nan_token=13)
    drafter = load_tiny(folder)
    drafter.open(1, params_of(SEEDED))
    drafter.open(2, params_of(SEEDED))

    assert draft_below(drafter, [5, 13], 3) == []
    assert draft_below(drafter, [], 3) == []
    assert "NaN" in caplog.text
    assert draft_below(drafter, PROMPT, 3, key=2) == Reference(folder).decode(PROMPT, 3, SEEDED)


def test_scores_are_finite_gaps_to_the_runner_up(drafter: ModelDrafter) -> None:
    drafter.open(1, params_of(SEEDED))
    drafter.open(2, params_of(SamplingParams(temperature=1, seed=1, top_k=1)))
    for key in (1, 2):
        drafter.extend(key, PROMPT)
        drafter.begin(key, 4)

    found = draft(drafter)

    assert all(0 <= score < 50 for score in found[1].scores)
    assert all(math.isfinite(score) and score > 50 for score in found[2].scores)


def test_closing_gives_all_blocks_back(drafter: ModelDrafter) -> None:
    total = drafter._engine.num_free_blocks
    for key in range(4):
        drafter.open(key, params_of(SEEDED))
        draft_below(drafter, PROMPT, 3, key)
    assert drafter._engine.num_free_blocks < total

    for key in range(4):
        drafter.close(key)

    assert drafter._engine.num_free_blocks == total
    drafter._engine.check_integrity()


def test_a_model_drafter_needs_its_model_named() -> None:
    with pytest.raises(InvalidRequest, match="model:PATH_OR_NAME"):
        load("", Resources())
