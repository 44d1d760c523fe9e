"""From a target to a draft model, on a target small enough for all of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from outrider.errors import InvalidRequest
from tests.draft.drafting import Driver, load_tiny
from tests.tiny import save_tiny_llama
from workers.choice.params import ChoiceParams
from workers.draft_vocab import load_draft_vocab, most_frequent
from workers.training import distill as distilling
from workers.training.batches import batches
from workers.training.distill import DistillConfig, Progress, distill, parse_layers
from workers.training.evaluate import _num_passes
from workers.training.held_out import held_out_prompts
from workers.training.losses import kl, total_variation
from workers.training.prompts import Prompt, training_prompt
from workers.training.shards import NUM_TOP, Answer, load_shard, save_shard, shard_path
from workers.training.train import TrainConfig

VOCAB = 97


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "target", num_layers=4, max_context=48)


@pytest.fixture(scope="module", autouse=True)
def few_prompts() -> Iterator[None]:
    """The tiny tokenizer knows no English."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distilling, "encoder", lambda _checkpoint: encode)
        patch.setattr(distilling, "ANSWERS_PER_SHARD", 8)
        patch.setattr(distilling, "held_out_prompts", lambda: held_out_prompts()[::9])
        yield


@pytest.fixture(scope="module")
def draft(target: Path, few_prompts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a draft model that was trained without a break."""
    config = config_of(target, tmp_path_factory.mktemp("whole"))
    distill(config, ignore)
    return config.output


def encode(prompt: Prompt) -> list[int]:
    return [1 + ord(letter) % (VOCAB - 1) for letter in prompt.text[-6:]]


def config_of(target: Path, folder: Path, **changes: object) -> DistillConfig:
    config = DistillConfig(
        target=str(target),
        output=folder / "draft",
        work=folder / "work",
        num_tokens=1500,
        layers=(0, 1),
        vocab_tokens=60,
        threads=1,
        kv_cache_bytes=1 << 25,
        training=TrainConfig(epochs=2, batch_tokens=256, learning_rate=3e-3, warm_up_steps=2, keep_every_s=0.0),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def ignore(_progress: Progress) -> None:
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_draft_model_learns_from_its_target_and_serves(target: Path, tmp_path: Path) -> None:
    stages: Counter[str] = Counter()
    losses: list[float] = []

    def report(progress: Progress) -> None:
        stages[progress.stage] += 1
        if progress.detail.startswith("loss"):
            losses.append(float(progress.detail.split()[1]))

    config = config_of(target, tmp_path, training=TrainConfig(epochs=12, batch_tokens=256, learning_rate=3e-3))
    found = distill(config, report)

    assert list(stages) == ["answers", "training", "held-out prompts"]
    assert losses[-1] < losses[0]
    assert [each.temperature for each in found] == [0.0, 0.7, 1.0]
    assert found[0].first_token > 0.1, "one token of sixty is right by chance"
    assert "| 0.7 |" in (config.output / "README.md").read_text()
    assert len(load_draft_vocab(config.output) or []) == 60
    driver = Driver(load_tiny(config.output))
    driver.open(1, ChoiceParams(temperature=0), [5, 6, 7], 6)
    driver.finish()
    assert len(driver.told[1].standing()) == 6


def test_only_layers_and_the_last_norm_are_trained(target: Path, draft: Path) -> None:
    before, after = weights(target), weights(draft)
    changed = {name for name, each in after.items() if not torch.equal(each, before[name])}
    assert "model.embed_tokens.weight" in after
    assert changed == {name for name in after if name.startswith("model.layers") or name == "model.norm.weight"}


@pytest.mark.parametrize("stage", ["answers", "training"])
def test_a_run_that_was_interrupted_comes_to_the_same_model(
    target: Path, draft: Path, tmp_path: Path, stage: str
) -> None:
    interrupted = config_of(target, tmp_path)
    num_reports = 0

    def interrupt(progress: Progress) -> None:
        nonlocal num_reports
        num_reports += progress.stage == stage
        if num_reports == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(interrupted, interrupt)
    assert not interrupted.output.exists()
    distill(interrupted, ignore)

    ours = weights(interrupted.output)
    for name, each in weights(draft).items():
        assert torch.allclose(each, ours[name], atol=1e-5), name


def test_a_draft_model_can_be_trained_on(target: Path, draft: Path, tmp_path: Path) -> None:
    second = config_of(target, tmp_path, start_from=draft)
    distill(second, ignore)

    assert load_draft_vocab(second.output) == load_draft_vocab(draft)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights(draft)[name], weights(second.output)[name])
    assert json.loads((second.output / "config.json").read_text())["num_hidden_layers"] == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"loss": "mse"}, "kl, tv, both"),
        ({"layers": (0, 9)}, "the model has 4"),
        ({"num_tokens": 10, "output": Path()}, "name a new folder"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason_before_any_answer_is_made(
    target: Path, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        distill(config_of(target, tmp_path, **changes), ignore)
    assert list(tmp_path.iterdir()) == []


def test_answers_of_another_target_are_refused(tmp_path: Path) -> None:
    file = shard_path(tmp_path, 3)
    save_shard(file, [answer(0, [1, 2], [3, 4, 5])], "one")
    with pytest.raises(InvalidRequest, match="'one': name another folder"):
        list(load_shard(file, "another"))


def answer(number: int, prompt: list[int], tokens: list[int]) -> Answer:
    ids = [torch.arange(NUM_TOP, dtype=torch.int32) + token for token in tokens]
    logprobs = [torch.full((NUM_TOP,), -4.0).half() for _ in tokens]
    return Answer(number, prompt, 0.5, tokens, ids, logprobs)


def test_answers_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    answers = [answer(7, [1, 2], [3, 4, 5]), answer(8, [6], [9])]
    file = shard_path(tmp_path, 0)
    save_shard(file, answers, "target")

    for ours, theirs in zip(load_shard(file, "target"), answers, strict=True):
        assert (ours.number, ours.prompt, ours.temperature, ours.tokens) == (
            theirs.number,
            theirs.prompt,
            theirs.temperature,
            theirs.tokens,
        )
        assert torch.equal(torch.stack(ours.top_ids), torch.stack(theirs.top_ids))


def test_an_epoch_learns_every_token_once_behind_its_own_text() -> None:
    answers = [answer(n, list(range(1, 2 + n % 5)), list(range(10, 11 + n % 7))) for n in range(40)]
    learned: list[tuple[int, int]] = []
    for batch in batches(answers, 64, seed=1):
        rows = batch.answer_rows
        assert batch.attention_mask[rows[:, 0], rows[:, 1]].all()
        before = batch.input_ids[rows[:, 0], rows[:, 1]].tolist()
        learned += zip(before, batch.chosen.tolist(), strict=True)
    expected = [pair for each in answers for pair in zip([each.prompt[-1], *each.tokens], each.tokens, strict=False)]
    assert Counter(learned) == Counter(expected)


def by_definition(draft: list[Fraction], target: list[Fraction]) -> Fraction:
    return sum((abs(a - b) for a, b in zip(draft, target, strict=True)), Fraction(0)) / 2


@pytest.mark.parametrize("loss", [kl, total_variation])
def test_a_loss_is_least_where_the_draft_is_the_target(loss: Callable[..., torch.Tensor]) -> None:
    target = torch.tensor([[0.5, 0.3, 0.1]])  # 0.1 is on other tokens
    places = torch.tensor([[2, 0, 3]])
    best = torch.tensor([[0.3, 0.06, 0.5, 0.1, 0.04]])
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = torch.rand(1, 5, generator=generator)
        assert loss(best.log(), target, places) <= loss((other / other.sum()).log(), target, places) + 1e-6


def test_total_variation_is_one_minus_what_rejection_accepts_of_the_known_tokens() -> None:
    target, draft = [Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)], [Fraction(1, 4), Fraction(1, 2), Fraction(1, 4)]
    value = total_variation(
        torch.tensor([[float(share) for share in draft]]).log(),
        torch.tensor([[float(share) for share in target]]),
        torch.tensor([[0, 1, 2]]),
    )
    assert float(value) == pytest.approx(float(by_definition(draft, target)))


def test_the_commonest_tokens_are_kept_and_those_that_end_an_answer() -> None:
    assert most_frequent([[5, 5, 5, 7, 7, 9], [7, 2, 9]], 3, always=[2]) == [2, 5, 7]


@pytest.mark.parametrize(
    ("hits", "num_passes"), [("", 0), ("0", 1), ("1", 1), ("11110", 1), ("111110", 2), ("0101", 3)]
)
def test_passes_take_right_drafts_up_to_a_chain_and_one_token_more(hits: str, num_passes: int) -> None:
    assert _num_passes([hit == "1" for hit in hits]) == num_passes


@pytest.mark.parametrize("text", ["a", "1,0", "2,2", "-1"])
def test_layers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="layers"):
        parse_layers(text)


def test_held_out_prompts_are_no_training_prompts() -> None:
    held_out = {prompt.text for prompt in held_out_prompts()}
    assert len(held_out) == 52
    assert not held_out & {training_prompt(0, number).text for number in range(4000)}


def test_a_training_prompt_is_a_function_of_seed_and_number() -> None:
    assert [training_prompt(1, n) for n in range(20)] == [training_prompt(1, n) for n in range(20)]
    assert [training_prompt(1, n) for n in range(20)] != [training_prompt(2, n) for n in range(20)]
    assert {training_prompt(0, n).kind for n in range(60)} == {"chat", "code", "edit", "summarise"}
