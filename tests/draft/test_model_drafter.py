"""A model drafter whose model is the target's own: its likeliest path is the answer, whatever happens around it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from outrider.errors import InvalidRequest, Unsupported
from outrider.v1.inference_pb2 import LogitBias, SamplingParams
from outrider.v1.worker_pb2 import OpenRequest
from tests.draft.drafting import BLOCK_BYTES, Driver, load_tiny, params_of
from tests.target_link import GREEDY, SEEDED, Reference
from tests.tiny import END_TOKEN, save_tiny_llama
from workers.choice.params import guess_params
from workers.draft import model
from workers.draft.drafter import Resources
from workers.draft.model import ModelDrafter, load, load_engine
from workers.draft_vocab import save_draft_vocab
from workers.engine.batch import Row

VOCAB = 97
PROMPT = [5, 6, 7, 8, 9]
SAMPLINGS = pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])


@pytest.fixture
def drafter(tiny: Path) -> ModelDrafter:
    return load_tiny(tiny)


@pytest.fixture
def driver(drafter: ModelDrafter) -> Driver:
    return Driver(drafter)


def until_end(tokens: Sequence[int]) -> tuple[int, ...]:
    """Behind an end token nothing is drafted."""
    tokens = list(tokens)
    return tuple(tokens[: tokens.index(END_TOKEN) + 1] if END_TOKEN in tokens else tokens)


def is_drafted(driver: Driver, path: Sequence[int], key: int = 1) -> bool:
    return tuple(path) in driver.told[key].standing()


@SAMPLINGS
def test_the_targets_own_model_guesses_every_token(
    driver: Driver, reference: Reference, sampling: SamplingParams
) -> None:
    driver.open(1, params_of(sampling), PROMPT, 40)
    driver.finish()

    assert is_drafted(driver, until_end(reference.decode(PROMPT, 4, sampling)))
    assert len(driver.told[1].standing()) == 40


def test_without_the_targets_seed_its_sample_is_not_guessed(drafter: ModelDrafter, reference: Reference) -> None:
    """The wrong twin of the test above: over several prompts, far less is found with another seed."""
    found = dict.fromkeys((1234, 99), 0)
    for seed in found:
        driver = Driver(drafter)
        for key in range(12):
            prompt = [*PROMPT, key]
            params = params_of(SamplingParams(temperature=0.8, seed=seed, top_k=60, top_p=0.97))
            driver.open(key, params, prompt, 12)
            driver.finish()
            found[seed] += is_drafted(driver, until_end(reference.decode(prompt, 2, SEEDED)), key)
            driver.close(key)
        driver.step()
    assert found[1234] == 12
    assert found[99] < 6


def test_a_first_child_is_the_choice_and_its_siblings_are_the_runners_up(driver: Driver, reference: Reference) -> None:
    driver.open(1, params_of(SEEDED), PROMPT, 3)
    driver.finish()

    told = driver.told[1]
    first = next(
        number for number, text in told.nodes.items() if text == (*PROMPT, *reference.decode(PROMPT, 1, SEEDED))
    )
    assert told.scores[first] > 0
    assert all(score <= 0 for number, score in told.scores.items() if len(told.nodes[number]) == 6 and number != first)


def test_requests_are_drafted_for_in_one_batch(driver: Driver, reference: Reference) -> None:
    rng = random.Random(4)
    prompts = {key: [rng.randrange(1, VOCAB) for _ in range(3 + key)] for key in range(5)}
    for key, prompt in prompts.items():
        driver.open(key, params_of(SEEDED), prompt, 8)

    assert {new.key for new in driver.step()} == set(prompts)

    driver.finish()
    for key, prompt in prompts.items():
        assert is_drafted(driver, until_end(reference.decode(prompt, 2, SEEDED)), key)


@pytest.mark.parametrize("num_agreeing", [0, 1, 2])
@pytest.mark.parametrize("num_others", [1, 3])  # that follow: the target's own, or another drafter's branch
@SAMPLINGS
def test_drafting_goes_on_after_a_verdict_as_if_it_had_begun_there(
    driver: Driver, reference: Reference, sampling: SamplingParams, num_agreeing: int, num_others: int
) -> None:
    driver.open(1, params_of(sampling), PROMPT, 20)
    driver.finish()
    verdict = [*reference.decode(PROMPT, num_agreeing, sampling), *range(20, 20 + num_others)]

    driver.order(1, verdict, 20)
    driver.finish()

    assert is_drafted(driver, until_end(reference.decode([*PROMPT, *verdict], 3, sampling)))


def count_tokens(drafter: ModelDrafter, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each forward from now on."""
    computed: list[int] = []
    forward = drafter._engine.forward_packed

    def counting(rows: Sequence[Row]) -> Tensor:
        computed.append(sum(row.num_tokens for row in rows))
        return forward(rows)

    monkeypatch.setattr(drafter._engine, "forward_packed", counting)
    return computed


def test_what_survives_a_verdict_is_neither_told_nor_computed_again(
    driver: Driver, drafter: ModelDrafter, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.open(1, params_of(SEEDED), PROMPT, 30)
    driver.finish()
    answer = reference.decode(PROMPT, 3, SEEDED)
    told, computed = len(driver.told[1].nodes), count_tokens(drafter, monkeypatch)

    driver.order(1, answer[:1], 0)
    driver.finish()
    assert computed == []
    assert is_drafted(driver, answer[1:3])

    survivors = len(driver.told[1].standing())
    driver.order(1, [], survivors + 4)
    driver.finish()
    assert len(driver.told[1].nodes) == told + 4  # a node that stands told twice would fail in the driver
    assert sum(computed) <= 3 * 8


def test_a_larger_order_for_the_same_root_goes_on_where_the_old_one_stopped(
    driver: Driver, reference: Reference
) -> None:
    driver.open(1, params_of(SEEDED), PROMPT, 4)
    driver.finish()
    driver.order(1, [], 20)
    driver.finish()

    assert len(driver.told[1].standing()) == 20
    assert is_drafted(driver, until_end(reference.decode(PROMPT, 3, SEEDED)))


def test_a_drafter_told_everything_at_once_drafts_like_one_told_step_by_step(tiny: Path, reference: Reference) -> None:
    answer = reference.decode(PROMPT, 7, SEEDED)
    once, stepwise = Driver(load_tiny(tiny)), Driver(load_tiny(tiny))
    once.open(1, params_of(SEEDED), [*PROMPT, *answer], 10)
    stepwise.open(1, params_of(SEEDED), PROMPT, 0)
    for token in answer:
        stepwise.order(1, [token], 0)
        stepwise.step()
    stepwise.order(1, [], 10)
    for driver in (once, stepwise):
        driver.finish()

    assert once.told[1].standing() == stepwise.told[1].standing()


def test_a_long_prompt_is_taken_in_several_steps(
    driver: Driver, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "MAX_STEP_TOKENS", 7)
    prompt = list(range(1, 40))
    driver.open(1, params_of(SEEDED), prompt, 12)
    driver.finish()

    assert is_drafted(driver, until_end(reference.decode(prompt, 3, SEEDED)))


def test_a_full_cache_forgets_who_is_not_waited_for(tiny: Path, reference: Reference) -> None:
    driver = Driver(load_tiny(tiny, num_blocks=8), may_forget=True)
    prompts = {key: [key] * 20 for key in range(1, 5)}
    for key, prompt in prompts.items():
        driver.open(key, params_of(SEEDED), prompt, 4)
        driver.finish()
    for key, prompt in prompts.items():
        verdict = reference.decode(prompt, 1, SEEDED)
        driver.order(key, verdict, 4)
        driver.finish()
        assert is_drafted(driver, until_end(reference.decode([*prompt, *verdict], 1, SEEDED)), key)


def test_a_request_that_comes_back_is_filled_from_the_prefix_cache(
    driver: Driver, drafter: ModelDrafter, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = list(range(1, 33))  # two whole blocks: its last token is computed though its KV is there
    driver.open(1, params_of(SEEDED), prompt, 2)
    driver.finish()
    driver.close(1)
    driver.step()
    computed = count_tokens(drafter, monkeypatch)

    driver.open(2, params_of(SEEDED), prompt, 2)
    driver.finish()

    assert computed[0] == 1
    assert is_drafted(driver, reference.decode(prompt, 1, SEEDED), key=2)
    drafter._engine.check_integrity()


def test_a_request_that_does_not_fit_drafts_nothing_rather_than_fail(tiny: Path) -> None:
    driver = Driver(load_tiny(tiny, num_blocks=3))
    driver.open(1, params_of(GREEDY), [3] * 60, 2)
    driver.finish()

    assert driver.told[1].standing() == []


@pytest.mark.parametrize(
    ("tokens", "max_nodes"),
    [
        pytest.param(PROMPT, 0, id="no nodes asked for"),
        pytest.param([5] * 128, 4, id="context full"),
        pytest.param([5, 97], 4, id="token beyond the drafter's vocabulary"),
    ],
)
def test_where_nothing_can_be_drafted_the_drafter_says_so(driver: Driver, tokens: list[int], max_nodes: int) -> None:
    driver.open(1, params_of(SEEDED), tokens, max_nodes)
    [new] = driver.step()

    assert (list(new.tokens), new.is_done) == ([], True)


def test_drafts_end_with_the_context(driver: Driver) -> None:
    driver.open(1, params_of(SEEDED), [5] * 126, 60)
    driver.finish()

    assert max(map(len, driver.told[1].standing())) == 2


def test_nothing_is_drafted_behind_an_end_token(driver: Driver) -> None:
    ends = 0
    for seed in range(12):
        driver.open(seed, params_of(SamplingParams(temperature=3.0, seed=seed)), PROMPT, 12)
        driver.finish()
        for path in driver.told[seed].standing():
            assert END_TOKEN not in path[:-1]
            ends += END_TOKEN in path
        driver.close(seed)
    assert ends > 0


def test_nodes_below_the_price_are_not_drafted(driver: Driver) -> None:
    driver.open(1, params_of(SEEDED), PROMPT, 40)
    driver.order(1, [], 40, min_survival=0.2)
    driver.finish()

    assert 0 < len(driver.told[1].standing()) < 12


def test_a_model_that_answers_nan_drafts_nothing_and_lives_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny_llama(tmp_path / "nan", nan_token=13)
    driver = Driver(load_tiny(folder))
    driver.open(1, params_of(SEEDED), [5, 13], 3)
    driver.finish()
    driver.open(2, params_of(SEEDED), PROMPT, 3)
    driver.finish()

    assert driver.told[1].standing() == []
    assert "NaN" in caplog.text
    assert is_drafted(driver, Reference(folder).decode(PROMPT, 1, SEEDED), key=2)


def test_closing_gives_all_blocks_back_however_often(drafter: ModelDrafter, driver: Driver) -> None:
    total = drafter._engine.num_free_blocks
    for key in range(200):
        driver.open(key, params_of(SEEDED), [*PROMPT, key % VOCAB], 6)
        driver.step()
        driver.step()
        driver.close(key)
    driver.step()

    assert drafter._engine.num_free_blocks == total
    drafter._engine.check_integrity()


@pytest.mark.parametrize("is_asked_of_all_ids", [True, False])
@pytest.mark.parametrize("sampling", [{"temperature": 0.8, "seed": 4}, {"temperature": 1.0, "top_p": 0.8}, {}])
def test_a_reduced_vocabulary_drafts_its_own_tokens_only_and_the_same_scores(
    tiny: Path, tmp_path: Path, sampling: dict[str, Any], is_asked_of_all_ids: bool
) -> None:
    folder = save_tiny_llama(tmp_path / "reduced")
    ids = range(0, VOCAB, 2)
    save_draft_vocab(folder, ids)
    whole, reduced = load_tiny(tiny), load_tiny(folder)
    drivers = [Driver(whole), Driver(reduced)]
    for driver, allowed in zip(drivers, (ids, ids if is_asked_of_all_ids else ()), strict=True):
        driver.open(1, params_of(SamplingParams(**sampling, allowed_token_ids=allowed)), PROMPT, 12)
        driver.finish()

    assert drivers[0].told[1].standing() == drivers[1].told[1].standing()
    assert list(drivers[0].told[1].scores.values()) == pytest.approx(list(drivers[1].told[1].scores.values()), abs=1e-3)
    assert reduced._engine.forward_packed([Row(_opened(reduced), [5])]).shape == torch.Size([1, 49])


def _opened(drafter: ModelDrafter) -> int:
    key = next(drafter._keys)
    drafter._engine.open(key)
    return key


BEYOND = {
    "bias": SamplingParams(temperature=0, logit_bias=[LogitBias(token_id=VOCAB, bias=9.0)]),
    "allowed": SamplingParams(temperature=0, allowed_token_ids=[*range(VOCAB), VOCAB + 6]),
    "early ends": SamplingParams(temperature=0, min_tokens=50),
}


@pytest.mark.parametrize("name", BEYOND)
def test_tokens_beyond_the_models_vocabulary_are_left_to_the_target(
    drafter: ModelDrafter, driver: Driver, reference: Reference, name: str
) -> None:
    """The target's may be padded further than the drafter's."""
    opening = OpenRequest(sampling=BEYOND[name], end_token_ids=[VOCAB + 1], num_prompt_tokens=len(PROMPT))
    opening.bad_words.add(ids=[PROMPT[-1], VOCAB])
    driver.open(1, guess_params(opening), PROMPT, 40)
    driver.finish()

    assert is_drafted(driver, until_end(reference.decode(PROMPT, 3, GREEDY)))


def test_where_only_tokens_beyond_the_models_vocabulary_are_allowed_nothing_is_drafted(driver: Driver) -> None:
    driver.open(1, params_of(SamplingParams(temperature=0, allowed_token_ids=[VOCAB, VOCAB + 1])), PROMPT, 40)
    driver.finish()

    assert driver.told[1].standing() == []


@pytest.mark.parametrize("ids", [[], [3, 2], [-1, 2], ["a"]])
def test_a_draft_vocabulary_that_makes_no_sense_is_refused(tmp_path: Path, ids: list[int]) -> None:
    folder = save_tiny_llama(tmp_path / "model")
    save_draft_vocab(folder, ids)
    with pytest.raises(InvalidRequest, match=r"draft_vocab\.json"):
        load_tiny(folder)


def test_a_draft_vocabulary_beyond_the_models_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "model")
    save_draft_vocab(folder, [3, 97])
    with pytest.raises(Unsupported, match=r"draft_vocab\.json"):
        load_tiny(folder)


@pytest.mark.parametrize(("asked", "found"), [("auto", "int8"), ("int8", "int8"), ("float32", "float32")])
def test_a_draft_models_weights_are_rounded_unless_the_configuration_says_otherwise(
    tiny: Path, asked: str, found: str
) -> None:
    _, engine = load_engine(str(tiny), Resources(dtype=asked, kv_cache_bytes=64 * BLOCK_BYTES))

    assert engine.spec.dtype == found


def test_a_model_drafter_needs_its_model_named() -> None:
    with pytest.raises(InvalidRequest, match="model:PATH_OR_NAME"):
        load("", Resources())
