"""What a request's parameters make of the logits before anything is compared: bans, biases and penalties.

    allowed_token_ids → bad_words → min_tokens → grammar → logit_bias → repetition → frequency → presence

Each is computed on the path of the very node whose logits it changes, so a draft makes no difference. The penalties
are those of vLLM and, before it, of CTRL (arXiv 1909.05858, repetition) and OpenAI's API: repetition looks at prompt
and answer, frequency and presence at the answer alone.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outrider.tree import ROOT
from workers.choice.params import ChoiceParams
from workers.choice.paths import Paths


def edit(
    logits: Tensor,  # [1 + num_nodes, vocab] f32, changed in place; the model's answer after each path
    params: ChoiceParams,
    paths: Paths,
    allowed: Tensor | None = None,  # [1 + num_nodes, vocab] bool; what a grammar allows after each path
) -> None:
    """Nothing is done, and nothing read, where `params.depends_on_path` is false."""
    if params.allowed_token_ids:
        _keep_only(logits, params.allowed_token_ids)
    if params.bad_words:
        _ban_bad_words(logits, params.bad_words, paths)
    if params.min_tokens:
        _ban_early_ends(logits, params, paths)
    if allowed is not None:
        logits.masked_fill_(~allowed, -math.inf)
    if params.logit_bias:
        tokens, biases = zip(*params.logit_bias, strict=True)
        logits[:, list(tokens)] += torch.tensor(biases, dtype=logits.dtype, device=logits.device)
    if params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty:
        _penalise(logits, params, paths)


def _keep_only(logits: Tensor, token_ids: tuple[int, ...]) -> None:
    columns = torch.tensor(token_ids, device=logits.device)
    kept = logits[:, columns]
    logits.fill_(-math.inf)
    logits[:, columns] = kept


def _ban_bad_words(logits: Tensor, bad_words: tuple[tuple[int, ...], ...], paths: Paths) -> None:
    """The last token of a bad word can't come where the tokens before it stand, be it in the prompt or in a draft."""
    longest = max(map(len, bad_words)) - 1
    tail = tuple(paths.committed[-longest:]) if longest else ()
    for row, behind_root in zip(logits, paths.behind_root(), strict=True):
        history = tail + behind_root
        banned = [word[-1] for word in bad_words if len(word) == 1 or history[-(len(word) - 1) :] == word[:-1]]
        if banned:
            row[banned] = -math.inf


def _ban_early_ends(logits: Tensor, params: ChoiceParams, paths: Paths) -> None:
    if not params.end_token_ids:
        return
    ends = list(params.end_token_ids)
    for row, position in zip(logits, paths.positions, strict=True):
        if position - params.num_prompt_tokens < params.min_tokens:
            row[ends] = -math.inf


def _penalise(logits: Tensor, params: ChoiceParams, paths: Paths) -> None:
    tokens, is_seen, counts = _occurrences(params.num_prompt_tokens, paths)
    columns = torch.from_numpy(tokens).to(logits.device)
    values = logits[:, columns]
    if params.repetition_penalty != 1:
        penalised = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        values = torch.where(torch.from_numpy(is_seen).to(logits.device), penalised, values)
    if params.frequency_penalty or params.presence_penalty:
        counted = torch.from_numpy(counts).to(logits.device)
        values = values - params.frequency_penalty * counted
        values = values - params.presence_penalty * (counted > 0)
    logits[:, columns] = values


def _occurrences(
    num_prompt_tokens: int, paths: Paths
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """The tokens that occur anywhere, [num_tokens], and for each path whether it holds them, prompt included, and how
    often its answer does, [1 + num_nodes, num_tokens] each."""
    committed = np.asarray(paths.committed, np.int64)
    tokens, where = np.unique(np.concatenate([committed, np.asarray(paths.node_tokens, np.int64)]), return_inverse=True)
    num_nodes = len(paths.node_tokens)
    is_seen = np.zeros((1 + num_nodes, len(tokens)), np.bool_)
    counts = np.zeros((1 + num_nodes, len(tokens)), np.float32)
    is_seen[0, where[: len(committed)]] = True
    np.add.at(counts[0], where[num_prompt_tokens : len(committed)], 1)
    for node, parent in enumerate(paths.node_parents, 1):
        before = 0 if parent == ROOT else parent + 1
        is_seen[node], counts[node] = is_seen[before], counts[before]
        column = where[len(committed) + node - 1]
        is_seen[node, column] = True
        counts[node, column] += 1
    return tokens, is_seen, counts
