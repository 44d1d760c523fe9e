"""From a pass's logits to what each row commits: bans and penalties, the choices, the walk by the request's rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outrider.errors import NoTokenLeft, OutriderError
from workers.choice.choose import Noise, choose
from workers.choice.errors import UnusableLogits
from workers.choice.logprobs import Logprobs, logprobs_of
from workers.choice.params import ChoiceParams
from workers.choice.paths import Paths
from workers.choice.penalties import edit
from workers.target.walk import Walk, walk


@dataclass(frozen=True, slots=True)
class Draft:
    """One row's tree, and all that the choices after its nodes depend on besides the logits."""

    params: ChoiceParams
    paths: Paths


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a row commits."""

    walk: Walk
    logprobs: Sequence[Logprobs] = ()  # one a token of the walk, where the request asks for them


def verdicts(
    logits: Tensor,  # [num_paths of all drafts, vocab] f32; changed in place
    drafts: Sequence[Draft],
    noise: Noise,
) -> list[Verdict | OutriderError]:
    """One for each draft. An UnusableLogits or NoTokenLeft stands in place of the verdict of a row that has none."""
    if not drafts:
        return []
    parts = torch.split(logits, [1 + len(draft.paths.node_tokens) for draft in drafts])
    unedited = [_edit(part, draft) for part, draft in zip(parts, drafts, strict=True)]
    positions = [position for draft in drafts for position in draft.paths.positions]
    params = [draft.params for draft in drafts for _ in draft.paths.positions]
    chosen = choose(logits, positions, params, noise=noise).tolist()
    results: list[Verdict | OutriderError] = []
    start = 0
    for draft, part, raw in zip(drafts, parts, unedited, strict=True):
        try:
            of_draft = chosen[start : start + len(part)]
            walked = walk(of_draft, draft.paths.node_tokens, draft.paths.node_parents, draft.params.end_token_ids)
            results.append(Verdict(walked, _logprobs(draft, raw, walked)))
        except (UnusableLogits, NoTokenLeft) as err:
            results.append(err)
        start += len(part)
    return results


def _edit(part: Tensor, draft: Draft) -> Tensor:
    """Returns the logits as they were, where the request needs them; otherwise, what they have become."""
    raw = part
    if draft.params.depends_on_path:
        raw = part.clone() if draft.params.num_logprobs is not None else part
        edit(part, draft.params, draft.paths)
    return raw


def _logprobs(draft: Draft, raw: Tensor, walked: Walk) -> list[Logprobs]:
    if draft.params.num_logprobs is None:
        return []
    places = [0, *(node + 1 for node in walked.path)]
    return logprobs_of(raw[places], walked.tokens, draft.params.num_logprobs)
