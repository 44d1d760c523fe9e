"""How often a draft's first token is accepted: coupled with one to four children, against rejection.

For each temperature the target writes answers to a few prompts, one seed a prompt. At every position of them, given
the same text, the draft model proposes. Counted is whether the target's own choice is among the draft's best noisy
scores (coupled); the rate of rejection is computed from both laws, 1 - TV, and has no sampling error of its own.
Nothing is timed. The last line is one JSON object.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.decoding import PROMPTS
from benchmarks.measure import checkpoint_of, rounded, show
from cluster.default_model import DEFAULT_DRAFT
from workers.choice.choose import choose, laws, noisy_scores
from workers.choice.params import ChoiceParams
from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint, prepare_checkpoint
from workers.engine.runner import Engine
from workers.training.layers import save_with_layers

MAX_CHILDREN = 4
GAP_BORDERS = (0.5, 1.0, 2.0, 4.0, 8.0, math.inf)
KV_CACHE_BYTES = 256_000_000


@dataclass
class Counts:
    """Over all positions of one drafter at one temperature."""

    num_positions: int = 0
    rejection: float = 0.0  # sum of 1 - TV
    without_noise: int = 0  # the draft's likeliest token was the choice
    coupled: list[int] = field(default_factory=lambda: [0] * MAX_CHILDREN)
    in_bin: list[int] = field(default_factory=lambda: [0] * len(GAP_BORDERS))
    accepted_in_bin: list[int] = field(default_factory=lambda: [0] * len(GAP_BORDERS))

    def add(self, chosen: int, target_law: Tensor, draft_law: Tensor, draft_scores: Tensor) -> None:
        """One position; laws and scores are [vocab]."""
        self.num_positions += 1
        self.rejection += float(torch.minimum(target_law, draft_law).sum())
        self.without_noise += chosen == int(draft_law.argmax())
        best = draft_scores.topk(MAX_CHILDREN)
        for rank, child in enumerate(best.indices.tolist()):
            if child == chosen:
                for num_children in range(rank, MAX_CHILDREN):
                    self.coupled[num_children] += 1
        gap = float(best.values[0] - best.values[1])
        where = next(i for i, border in enumerate(GAP_BORDERS) if gap < border or border == math.inf)
        self.in_bin[where] += 1
        self.accepted_in_bin[where] += int(best.indices[0]) == chosen

    def row(self, drafter: str, temperature: float) -> dict[str, object]:
        total = self.num_positions
        return {
            "drafter": drafter,
            "temperature": temperature,
            "num_positions": total,
            "rejection": self.rejection / total,
            "without_noise": self.without_noise / total,
            "coupled": [count / total for count in self.coupled],
            "gap_bins": [
                {
                    "below": None if border == math.inf else border,
                    "num": num,
                    "accepted": accepted / num if num else None,
                }
                for border, num, accepted in zip(GAP_BORDERS, self.in_bin, self.accepted_in_bin, strict=True)
            ],
        }


def main(
    model: Annotated[str, typer.Option(help="The target: folder, GGUF file or hub name. Default: SmolLM2-135M.")] = "",
    draft: Annotated[list[str] | None, typer.Option(help="NAME=folder, file or hub name of a draft model.")] = None,
    skipped: Annotated[list[int] | None, typer.Option(help="Layers left out of the target's middle.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="May be repeated.")] = None,
    num_tokens: Annotated[int, typer.Option(help="Of each answer.")] = 96,
    num_seeds: Annotated[int, typer.Option(help="Answers to each prompt, each with its own seed.")] = 3,
) -> None:
    """Show the table for each draft model: by default the default model's, and the target less some middle layers."""
    checkpoint = checkpoint_of(model)
    target = _engine(checkpoint)
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS.values()]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        drafts = {name: path for name, _, path in (entry.partition("=") for entry in draft or ())}
        if not draft and not model:
            drafts["default draft"] = str(DEFAULT_DRAFT)
        drafts |= dict(_skipping(checkpoint, Path(folder), skipped or ([] if draft else [2, 4, 8])))
        for name, path in drafts.items():
            engine = _engine(prepare_checkpoint(path))
            for degree in temperature or [0.0, 0.6, 1.0]:
                counts = Counts()
                for seed in range(num_seeds):
                    params = ChoiceParams(temperature=degree, seed=seed)
                    for prompt in prompts:
                        _count(counts, target, engine, prompt, params, num_tokens)
                rows.append(counts.row(name, degree))
                _show(rows[-1])
    print(json.dumps(rounded({"model": target.spec.name, "rows": rows})))


def _skipping(checkpoint: Checkpoint, folder: Path, skipped: Sequence[int]) -> Iterator[tuple[str, str]]:
    num_layers = json.loads((checkpoint.folder / "config.json").read_text())["num_hidden_layers"]
    for num in skipped:
        first = (num_layers - num) // 2
        layers = [layer for layer in range(num_layers) if not first <= layer < first + num]
        yield f"skip {num}", str(save_with_layers(checkpoint.folder, folder / str(num), layers))


def _engine(checkpoint: Checkpoint) -> Engine:
    return Engine(checkpoint, dtype="float32", kv_cache_bytes=KV_CACHE_BYTES)


def _count(
    counts: Counts, target: Engine, draft: Engine, prompt: Sequence[int], params: ChoiceParams, num_tokens: int
) -> None:
    answer = _answer(target, prompt, params, num_tokens)
    positions = range(len(prompt), len(prompt) + len(answer))
    asked = [params] * len(answer)
    of_target, of_draft = _score(target, prompt, answer), _score(draft, prompt, answer)
    entries = zip(
        answer,
        laws(of_target, asked),
        laws(of_draft, asked),
        noisy_scores(of_draft, positions, asked),
        strict=True,
    )
    for chosen, target_law, draft_law, draft_scores in entries:
        counts.add(chosen, target_law, draft_law, draft_scores)


def _answer(engine: Engine, prompt: Sequence[int], params: ChoiceParams, num_tokens: int) -> list[int]:
    """The target's own choices, the end token included."""
    answer: list[int] = []
    fresh = list(prompt)
    engine.open(0)
    while len(answer) < num_tokens and not (answer and answer[-1] in engine.spec.end_token_ids):
        (logits,) = engine.forward([Row(0, fresh)])
        assert logits is not None
        fresh = choose(logits, [len(prompt) + len(answer)], [params]).tolist()
        answer += fresh
    engine.close(0)
    return answer


def _score(engine: Engine, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """The logits where each token of the answer was chosen, [len(answer), vocab] f32, in one pass."""
    engine.open(0)
    chain = answer[:-1]
    (logits,) = engine.forward([Row(0, prompt, chain, range(-1, len(chain) - 1))])
    engine.close(0)
    assert logits is not None
    return logits


def _show(row: dict[str, object]) -> None:
    coupled, bins = row["coupled"], row["gap_bins"]
    assert isinstance(coupled, list)
    assert isinstance(bins, list)
    show(
        f"{row['drafter']}, temperature {row['temperature']}, {row['num_positions']} positions",
        [
            ("rejection", row["rejection"]),
            ("no noise", row["without_noise"]),
            ("coupled", *coupled),
            ("gap below", *(float(each["below"] or math.inf) for each in bins)),
            ("positions", *(each["num"] for each in bins)),
            ("accepted", *(math.nan if each["accepted"] is None else each["accepted"] for each in bins)),
        ],
    )


if __name__ == "__main__":
    typer.run(main)
