"""The card of a draft model: how it was made, and how far it is accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from workers.training.evaluate import CHAIN_LEN, Acceptance
from workers.training.held_out import held_out_prompts


def write_card(
    folder: Path,
    target: str,
    settings: Mapping[str, object],
    found: Sequence[Acceptance],
    *,
    num_tokens: int,  # of the answers that were learned from
    num_draft_tokens: int,  # that it can propose
) -> None:
    training = settings["training"]
    assert isinstance(training, Mapping)
    layers = settings["layers"] or "the first four"
    origin = "a draft model made before" if settings["start_from"] else f"layers of the target: {layers}"
    depths = "".join(f" token {depth} |" for depth in range(1, CHAIN_LEN + 1))
    rows = "\n".join(
        f"| {each.temperature:g} |"
        + "".join(f" {share:.3f} |" for share in each.by_depth)
        + f" {each.tokens_per_pass:.2f} |"
        for each in found
    )
    (folder / "README.md").write_text(
        f"""---
library_name: transformers
tags: [speculative-decoding, draft-model, outrider]
---
# A draft model for {target}

Made by `outriderd distill`. It guesses what {target} says next; it is no model to talk to.

- It starts from {origin}. The embedding and the head are the target's own and were not trained.
- It learned from {num_tokens:,} tokens of the target's own answers, {training["epochs"]} times over, by the loss
  `{settings["loss"]}`, with seed {settings["seed"]}. The prompts are templates of Outrider's and quotations from the
  sources and the documentation of Python's standard library.
- `draft_vocab.json` names the {num_draft_tokens:,} tokens that it can propose. Other programs may ignore it.

## Acceptance

On {len(held_out_prompts())} held-out prompts, chains of {CHAIN_LEN}: how often each token is the target's own choice
where those before it were. Above temperature 0, with the noise that Outrider's drafters share with the target.

| temperature |{depths} tokens per pass |
|---|{"---|" * CHAIN_LEN}---|
{rows}
"""
    )
