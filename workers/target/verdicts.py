"""From a pass's logits to what each row commits: bans and penalties, the choices, the walk by the request's rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outrider.draft_law import DraftLaw
from outrider.errors import InvalidRequest, NoTokenLeft, OutriderError
from workers.choice.choose import UNUSABLE, Noise, choose, laws
from workers.choice.errors import UnusableLogits
from workers.choice.grammar import GrammarState
from workers.choice.logprobs import Logprobs, logprobs_of
from workers.choice.params import ChoiceParams
from workers.choice.paths import Paths
from workers.choice.penalties import edit
from workers.target.rules.block import is_chain, walk_by_blocks
from workers.target.rules.draws import StreamDraws
from workers.target.rules.rejection import walk_by_rejection
from workers.target.rules.typical import walk_if_typical
from workers.target.walk import Walk, check_choice, walk


@dataclass(frozen=True, slots=True)
class Draft:
    """One row's tree, and all that the choices after its nodes depend on besides the logits."""

    params: ChoiceParams
    paths: Paths
    grammar: GrammarState | None = None  # the request's place in its grammar
    drawn_from: Sequence[DraftLaw] = ()  # [num_nodes]; for the rejection rule


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a row commits."""

    walk: Walk
    logprobs: Sequence[Logprobs] = ()  # one a token of the walk, where the request asks for them


def verdicts(
    logits: Tensor,  # [num_paths of all drafts, vocab] f32; changed in place
    drafts: Sequence[Draft],
    noise: Noise | None = None,
) -> list[Verdict | OutriderError]:
    """One for each draft. An error stands in place of the verdict of a row that has none: UnusableLogits,
    NoTokenLeft, or InvalidRequest where committed tokens contradict the request's grammar."""
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
            if isinstance(raw, OutriderError):
                raise raw
            walked = _walk(draft, part, chosen[start : start + len(part)])
            results.append(Verdict(walked, _logprobs(draft, raw, walked)))
        except (UnusableLogits, NoTokenLeft, InvalidRequest) as err:
            results.append(err)
        start += len(part)
    return results


def _edit(part: Tensor, draft: Draft) -> Tensor | OutriderError:
    """Returns the logits as they were, where the request needs them; otherwise, what they have become."""
    if not draft.params.depends_on_path:
        return part
    raw = part.clone() if draft.params.num_logprobs is not None else part
    allowed = None
    if draft.grammar is not None:
        completion = draft.paths.committed[draft.params.num_prompt_tokens :]
        try:
            masks = draft.grammar.masks(completion, draft.paths.node_tokens, draft.paths.node_parents)
        except (NoTokenLeft, InvalidRequest) as err:
            return err
        allowed = torch.from_numpy(masks).to(part.device)
    edit(part, draft.params, draft.paths, allowed)
    return raw


def _walk(
    draft: Draft,
    logits: Tensor,  # [1 + num_nodes, vocab] f32, edited
    chosen: Sequence[int],  # [1 + num_nodes]
) -> Walk:
    """By the request's rule. At temperature 0, and without a draft, all rules are the same."""
    params, tokens, parents = draft.params, draft.paths.node_tokens, draft.paths.node_parents
    ends = params.end_token_ids
    if params.rule == "coupled" or params.temperature == 0 or not tokens:
        return walk(chosen, tokens, parents, ends)
    for choice in (chosen[0], *(choice for choice in chosen[1:] if choice == UNUSABLE)):
        check_choice(choice)
    of_target = laws(logits, [params] * len(logits)).cpu().numpy()
    # A place without a token is behind a node that the target can't choose: what stands there is never looked at.
    of_target[[choice < 0 for choice in chosen]] = 1 / logits.shape[-1]
    if params.rule == "typical":
        return walk_if_typical(of_target, chosen, tokens, parents, ends)
    draws = StreamDraws(params.seed, len(draft.paths.committed))
    if is_chain(parents):
        walked = walk_by_blocks(of_target, tokens, draft.drawn_from, draws, ends)
    else:
        walked = walk_by_rejection(of_target, tokens, parents, draft.drawn_from, draws, ends)
    check_choice(chosen[walked.path[-1] + 1 if walked.path else 0])
    return walked


def _logprobs(draft: Draft, raw: Tensor, walked: Walk) -> list[Logprobs]:
    if draft.params.num_logprobs is None:
        return []
    places = [0, *(node + 1 for node in walked.path)]
    return logprobs_of(raw[places], walked.tokens, draft.params.num_logprobs)
