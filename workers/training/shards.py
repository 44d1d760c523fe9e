"""Answers on disk: pieces of a data set, each whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from outrider.errors import InvalidRequest

NUM_TOP = 32  # likeliest tokens that are kept of a law; the rest is kept as one mass


@dataclass(slots=True)
class Answer:
    """One of the target's answers, with its law at temperature 1 where each token was chosen."""

    number: int  # of the prompt; its seed too
    prompt: Sequence[int]
    temperature: float  # that it was drawn at; 0: greedy
    tokens: list[int] = field(default_factory=list)
    top_ids: list[Tensor] = field(default_factory=list)  # [num_tokens], each [NUM_TOP] i32; the likeliest first
    top_logprobs: list[Tensor] = field(default_factory=list)  # [num_tokens], each [NUM_TOP] f16


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"answers-{number:05d}.safetensors"


def save_shard(file: Path, answers: Sequence[Answer], target: str) -> None:
    """`target`: the model whose answers these are."""
    tensors = {
        "numbers": torch.tensor([answer.number for answer in answers]),
        "prompt_lens": torch.tensor([len(answer.prompt) for answer in answers], dtype=torch.int32),
        "answer_lens": torch.tensor([len(answer.tokens) for answer in answers], dtype=torch.int32),
        "temperatures": torch.tensor([answer.temperature for answer in answers]),
        "tokens": torch.tensor(
            [token for answer in answers for token in (*answer.prompt, *answer.tokens)], dtype=torch.int32
        ),
        "top_ids": torch.stack([ids for answer in answers for ids in answer.top_ids]),
        "top_logprobs": torch.stack([logprobs for answer in answers for logprobs in answer.top_logprobs]),
    }
    unfinished = file.with_suffix(".incomplete")
    save_file(tensors, unfinished, metadata={"target": target})
    os.replace(unfinished, file)


def load_shard(file: Path, target: str) -> Iterator[Answer]:
    """Raises InvalidRequest where the answers are another model's."""
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata() or {}
        if metadata.get("target") != target:
            limit = f"the answers in {file} are those of {metadata.get('target')!r}: name another folder"
            raise InvalidRequest.of("target", target, limit)
        parts = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    about = (parts[name].tolist() for name in ("numbers", "prompt_lens", "answer_lens", "temperatures"))
    start = first = 0
    for number, prompt_len, answer_len, temperature in zip(*about, strict=True):
        tokens = parts["tokens"][start : start + prompt_len + answer_len].tolist()
        own = slice(first, first + answer_len)
        yield Answer(
            number=number,
            prompt=tokens[:prompt_len],
            temperature=temperature,
            tokens=tokens[prompt_len:],
            top_ids=list(parts["top_ids"][own]),
            top_logprobs=list(parts["top_logprobs"][own]),
        )
        start, first = start + prompt_len + answer_len, first + answer_len
