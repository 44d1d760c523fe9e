"""A draft model with another tokenizer: the text alone connects it with the target."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from outrider.errors import InvalidRequest
from outrider.v1.inference_pb2 import SamplingParams
from tests.draft.drafting import Driver, params_of
from tests.draft.toy_models import TEXT, save_renamed, save_speaking_llama
from tests.draft.toy_tokenizers import byte_level
from tests.target_link import GREEDY, SEEDED, Reference
from tests.tiny import END_TOKEN, save_tiny_llama
from workers.choice.params import ChoiceParams
from workers.draft.drafter import Request, Resources
from workers.draft.retold_chain import Guess
from workers.draft.tokenizer_pair import decode
from workers.draft.universal import UniversalDrafter, load
from workers.engine.batch import Row
from workers.vocabulary import TOKENIZER_FILE

PROMPT = [5, 6, 7, 8, 9]
SAMPLINGS = pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])


def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / TOKENIZER_FILE))


def load_universal(draft: Path, target: Path, kv_cache_bytes: int = 1 << 23) -> UniversalDrafter:
    drafter = load(str(draft), Resources(threads=1, kv_cache_bytes=kv_cache_bytes))
    drafter.take_tokenizer(tokenizer_of(target))
    return drafter


@pytest.fixture(scope="module")
def renamed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_renamed(tmp_path_factory.mktemp("models") / "renamed", tiny)


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models that say the same text, in few tokens and in many."""
    folder = tmp_path_factory.mktemp("speakers")
    return {
        name: save_speaking_llama(folder / name, byte_level(258 + num_merges, corpus=[TEXT] * 3))
        for name, num_merges in (("few", 22), ("many", 9))
    }


def until_end(tokens: Sequence[int]) -> tuple[int, ...]:
    tokens = list(tokens)
    return tuple(tokens[: tokens.index(END_TOKEN) + 1] if END_TOKEN in tokens else tokens)


@SAMPLINGS
def test_the_targets_own_model_under_another_tokenizer_guesses_every_token(
    tiny: Path, renamed: Path, reference: Reference, sampling: SamplingParams
) -> None:
    driver = Driver(load_universal(renamed, tiny))
    for key in range(6):
        prompt = [*PROMPT, key + 1]
        driver.open(key, params_of(sampling), prompt, 24)
        driver.finish()
        assert until_end(reference.decode(prompt, 3, sampling)) in driver.told[key].standing()


def test_without_the_targets_seed_its_sample_is_not_guessed(tiny: Path, renamed: Path, reference: Reference) -> None:
    """The wrong twin of the test above: the noise is carried over by the spelling of tokens."""
    found = dict.fromkeys((1234, 99), 0)
    for seed in found:
        driver = Driver(load_universal(renamed, tiny))
        for key in range(12):
            prompt = [*PROMPT, key + 1]
            driver.open(key, params_of(SamplingParams(temperature=0.8, seed=seed, top_k=60, top_p=0.97)), prompt, 6)
            driver.finish()
            found[seed] += until_end(reference.decode(prompt, 2, SEEDED)) in driver.told[key].standing()
    assert found[1234] == 12
    assert found[99] < 6


@pytest.mark.parametrize(("target", "draft"), [("few", "many"), ("many", "few")])
def test_the_same_text_in_other_tokens_is_drafted_as_the_target_writes_it(
    speakers: dict[str, Path], target: str, draft: str
) -> None:
    tokenizer = tokenizer_of(speakers[target])
    reference = Reference(speakers[target])
    assert len(tokenizer.encode(TEXT).ids) != len(tokenizer_of(speakers[draft]).encode(TEXT).ids)
    driver = Driver(load_universal(speakers[draft], speakers[target]))
    text = TEXT * 2
    for key in range(
        0, len(TEXT), 3
    ):  # wherever the prompt ends: in a word, before and behind characters of several bytes
        prompt = tokenizer.encode(text[: len(TEXT) + key], add_special_tokens=False).ids
        driver.open(key, params_of(GREEDY), prompt, 8)
        driver.finish()
        assert tuple(reference.decode(prompt, 6, GREEDY)) in driver.told[key].standing(), text[: len(TEXT) + key]


def test_a_character_that_the_target_has_begun_is_finished(speakers: dict[str, Path]) -> None:
    tokenizer = tokenizer_of(speakers["many"])
    before = tokenizer.encode(" abcdefghé", add_special_tokens=False).ids
    smile = tokenizer.encode(" abcdefghé🙂", add_special_tokens=False).ids[len(before) :]
    assert len(smile) == 4
    driver = Driver(load_universal(speakers["few"], speakers["many"]))
    for num_begun in range(4):
        driver.open(num_begun, params_of(GREEDY), [*before, *smile[:num_begun]], 6)
        driver.finish()
        assert tuple(smile[num_begun:]) in driver.told[num_begun].standing()


def count_tokens(drafter: UniversalDrafter, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each forward from now on."""
    computed: list[int] = []
    forward = drafter._engine.forward_packed

    def counting(rows: Sequence[Row]) -> Tensor:
        computed.append(sum(row.num_tokens for row in rows))
        return forward(rows)

    monkeypatch.setattr(drafter._engine, "forward_packed", counting)
    return computed


def test_what_the_target_agrees_with_is_neither_told_nor_computed_again(
    speakers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of(speakers["many"])
    reference = Reference(speakers["many"])
    drafter = load_universal(speakers["few"], speakers["many"])
    driver = Driver(drafter)
    prompt = tokenizer.encode(TEXT * 4, add_special_tokens=False).ids
    driver.open(1, params_of(GREEDY), prompt, 12)
    driver.finish()
    computed = count_tokens(drafter, monkeypatch)

    for _ in range(8):
        agreed = reference.decode(driver.told[1].text, 3, GREEDY)
        assert tuple(agreed) in driver.told[1].standing()
        driver.order(1, agreed, 12)  # a node that stands told twice would fail in the driver
        driver.finish()
    assert set(computed) == {1}

    computed.clear()
    driver.order(1, tokenizer.encode(" xyz", add_special_tokens=False).ids, 12)
    driver.finish()
    assert computed[0] <= 12  # of a text of more than a hundred tokens
    assert set(computed[1:]) == {1}


def test_whatever_happens_the_model_sees_what_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models, random verdicts, hardly any room: each forward's logits are those of its ids from the start."""
    target = save_speaking_llama(tmp_path / "target", byte_level(330))
    draft = save_tiny_llama(tmp_path / "draft", vocab=300, max_context=96, with_tokenizer=False)
    byte_level(300, controls=["<s>", "<turn>"]).save(str(draft / TOKENIZER_FILE))
    drafter, judge = load_universal(draft, target, 1 << 17), load_universal(draft, target)
    num_blocks = drafter._engine.num_free_blocks
    seen: list[tuple[list[int], Tensor]] = []
    guesses = drafter._guesses

    def watching(logits: Tensor, asked: Sequence[Request]) -> list[list[Guess]]:
        said = [list(drafter._states[request.key].chain.ids) for request in asked]
        seen.extend(zip(said, logits.clone(), strict=True))
        return guesses(logits, asked)

    monkeypatch.setattr(drafter, "_guesses", watching)
    driver, rng = Driver(drafter, may_forget=True), random.Random(3)  # under the rejection rule, at every verdict
    params = [ChoiceParams(temperature=0), ChoiceParams(seed=4), ChoiceParams(seed=4, rule="rejection")]
    for turn in range(200):
        key = rng.randrange(4)
        if key not in driver.told:
            tokens = [rng.randrange(330) for _ in range(rng.randrange(1, 40))]
            driver.open(key, rng.choice(params), tokens, 6)
        elif turn % 10 == 9:
            driver.close(key)
        else:
            path = list(rng.choice([(), *driver.told[key].standing()]))
            others = [rng.randrange(330) for _ in range(rng.randrange(0 if path else 1, 3))]
            driver.order(key, [*path, *others], rng.randrange(12), rng.choice([0.0, 0.3]))
        for _ in range(rng.randrange(4)):
            driver.step()
        drafter._engine.check_integrity()
    for key in list(driver.told):
        driver.close(key)
    driver.step()

    assert drafter._engine.num_free_blocks == num_blocks
    assert len(seen) > 100
    for number, (ids, logits) in enumerate(seen[::8]):
        judge._engine.open(number)
        torch.testing.assert_close(judge._engine.forward_packed([Row(number, ids)])[0], logits, atol=2e-3, rtol=0)
        judge._engine.close(number)


def test_nodes_continue_the_targets_text(tmp_path: Path) -> None:
    """Whatever a random model says, in tokens that end anywhere."""
    target = save_speaking_llama(tmp_path / "target", byte_level(330))
    draft = save_tiny_llama(tmp_path / "draft", vocab=300, with_tokenizer=False)
    byte_level(300, controls=["<s>", "<turn>"]).save(str(draft / TOKENIZER_FILE))
    tokenizer = tokenizer_of(target)
    driver, rng = Driver(load_universal(draft, target)), random.Random(4)
    num_nodes = 0
    for key in range(40):
        tokens = [rng.randrange(2, 330) for _ in range(8)]
        driver.open(key, ChoiceParams(seed=key), tokens, 12)
        driver.finish()
        text = decode(tokenizer, tokens).rstrip("\ufffd")
        for path in driver.told[key].standing():
            assert decode(tokenizer, [*tokens, *path]).startswith(text)
            num_nodes += 1
    assert num_nodes > 100


def test_a_control_token_that_the_draft_model_lacks_is_left_out(speakers: dict[str, Path], tmp_path: Path) -> None:
    target = byte_level(280, controls=["<end>", "<turn>", "<never heard of>"], corpus=[TEXT])
    target.save(str(tmp_path / TOKENIZER_FILE))
    driver = Driver(load_universal(speakers["few"], tmp_path))
    tokens = target.encode(" abc<never heard of>", add_special_tokens=False).ids
    driver.open(1, params_of(GREEDY), tokens, 4)
    driver.finish()

    assert tuple(target.encode("def", add_special_tokens=False).ids[:1]) in driver.told[1].standing()


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param([2], id="a text of nothing"),
        pytest.param([0, 0, 0], id="control tokens alone"),
        pytest.param([329] * 600, id="context full"),
        pytest.param([50_000], id="no token"),
        pytest.param([200, 201, 202, 203, 204], id="no characters"),
    ],
)
def test_where_nothing_can_be_said_nothing_is(speakers: dict[str, Path], tokens: list[int]) -> None:
    driver = Driver(load_universal(speakers["few"], speakers["many"]))
    driver.open(1, params_of(SEEDED), tokens, 4)
    driver.finish()
    driver.order(1, tokens, 4)
    driver.finish()


def test_closing_gives_all_blocks_back_however_often(tiny: Path, renamed: Path) -> None:
    drafter = load_universal(renamed, tiny)
    driver = Driver(drafter)
    total = drafter._engine.num_free_blocks
    for key in range(40):
        driver.open(key, params_of(SEEDED), [*PROMPT, key % 97], 6)
        driver.step()
        driver.step()
        driver.close(key)
    driver.step()

    assert drafter._engine.num_free_blocks == total
    assert not drafter._states
    drafter._engine.check_integrity()


def test_a_model_that_answers_nan_drafts_nothing_and_lives_on(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Driver(load_universal(save_tiny_llama(tmp_path / "nan", nan_token=13), tiny))
    driver.open(1, params_of(SEEDED), [5, 13], 3)
    driver.finish()
    driver.open(2, params_of(SEEDED), PROMPT, 3)
    driver.finish()

    assert driver.told[1].standing() == []
    assert len(driver.told[2].standing()) == 3
    assert "NaN" in caplog.text


def test_a_universal_drafter_needs_its_model_named_and_a_tokenizer_in_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="universal:PATH_OR_NAME"):
        load("", Resources())
    mute = save_tiny_llama(tmp_path / "mute", with_tokenizer=False)
    with pytest.raises(InvalidRequest, match=r"mute': the model has no tokenizer\.json"):
        load(str(mute), Resources(threads=1, kv_cache_bytes=1 << 20))
