"""The training loop: warm-up and cosine decay, kept on disk so that a kill costs minutes.

Under torchrun each rank takes its share of the batches and the gradients are averaged (DistributedDataParallel).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from workers.training.batches import Batch, batches
from workers.training.optimizer import Optimizer
from workers.training.shards import Answer
from workers.training.student import Student

_STATE = "training-state.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    epochs: int = 3
    learning_rate: float = 6e-4  # at its highest
    warm_up_steps: int = 100
    batch_tokens: int = 2048  # of one rank's batch, prompts and padding included
    seed: int = 0
    keep_every_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Step:
    """What is reported after a step."""

    number: int  # 1 is the first
    num_steps: int
    loss: float  # smoothed
    num_tokens: int  # that were learned so far, in this run


def train(
    student: Student,
    answers: Sequence[Answer],
    folder: Path,
    config: TrainConfig,
    report: Callable[[Step], None],
    *,
    rank: int = 0,
    size: int = 1,  # ranks of the process group that train it together
) -> None:
    """Train in place. Goes on from what `folder` keeps of a run that was interrupted."""
    model: Any = DistributedDataParallel(student) if size > 1 else student
    device = student.get_buffer("head").device
    optimizer = Optimizer(student.parameters())
    per_epoch = sum(1 for _ in batches(answers, config.batch_tokens, 0)) // size
    num_steps = config.epochs * per_epoch
    done = _load(folder / _STATE, student, optimizer)
    kept_s, smoothed, num_tokens = time.monotonic(), math.nan, 0
    student.train()
    for number, batch in islice(enumerate(_batches(answers, config, rank, size), 1), done, None):
        loss = model(_to(batch, device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step(_learning_rate(config, number - 1, num_steps))
        value = float(loss.detach())
        smoothed = value if math.isnan(smoothed) else 0.98 * smoothed + 0.02 * value
        num_tokens += len(batch.chosen)
        report(Step(number, num_steps, smoothed, num_tokens))
        if rank == 0 and (time.monotonic() - kept_s > config.keep_every_s or number == num_steps):
            _keep(folder / _STATE, student, optimizer, number)
            kept_s = time.monotonic()
    student.eval()


def _batches(answers: Sequence[Answer], config: TrainConfig, rank: int, size: int) -> Iterator[Batch]:
    """This rank's, over all epochs; all ranks have as many."""
    for epoch in range(config.epochs):
        whole = batches(answers, config.batch_tokens, config.seed + epoch)
        while len(group := list(islice(whole, size))) == size:
            yield group[rank]


def _learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    if step < config.warm_up_steps:
        return config.learning_rate * (step + 1) / config.warm_up_steps
    share = (step - config.warm_up_steps) / max(1, num_steps - config.warm_up_steps)
    return config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


def _keep(file: Path, student: Student, optimizer: Optimizer, step: int) -> None:
    state = {
        "step": step,
        "weights": student.trained(),
        "optimizer": optimizer.state_dict(),
    }
    unfinished = file.with_suffix(".incomplete")
    torch.save(state, unfinished)
    os.replace(unfinished, file)


def _load(file: Path, student: Student, optimizer: Optimizer) -> int:
    """Returns the number of steps that are done."""
    if not file.is_file():
        return 0
    state = torch.load(file, weights_only=True)
    for name, weight in student.trained().items():
        weight.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _to(batch: Batch, device: torch.device) -> Batch:
    moved = {each.name: getattr(batch, each.name).to(device) for each in fields(batch)}
    return replace(batch, **moved)
