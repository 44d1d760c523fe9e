"""From a target to a draft model: the steps, each of which is skipped where its result is there already.

    answers of the target ─▶ draft vocabulary ─▶ some of its layers ─▶ training ─▶ acceptance ─▶ folder with a card

All that is unfinished lies in a work folder; a run that was killed goes on from there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from outrider.errors import InvalidRequest
from workers.draft_vocab import load_draft_vocab, most_frequent, save_draft_vocab
from workers.engine.checkpoint import Checkpoint, prepare_checkpoint
from workers.engine.device import resolve_device, set_num_threads
from workers.engine.runner import Engine
from workers.training.answering import answer_prompts, pick_as_served, pick_from_kept_laws
from workers.training.card import write_card
from workers.training.evaluate import Acceptance, acceptance
from workers.training.held_out import held_out_prompts
from workers.training.layers import check_layers, save_with_layers
from workers.training.losses import LOSSES
from workers.training.prompts import Prompt, training_prompt
from workers.training.shards import Answer, load_shard, save_shard, shard_path
from workers.training.student import Student
from workers.training.train import Step, TrainConfig, train

ANSWERS_PER_SHARD = 512  # a kill costs so many
_LEARNED = (0.0, 0.0, 0.7, 1.0)  # temperatures of the answers in turn
_EVALUATED = (0.0, 0.7, 1.0)
_FIRST_LAYERS = (0, 1, 2, 3)  # they understand each other, and the head: no others that were tried start as well


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    target: str
    output: Path
    work: Path
    num_tokens: int  # of answers to learn from
    layers: tuple[int, ...] = ()  # of the target's; empty: the first four
    start_from: Path | None = None  # go on with a draft model that was made before, in place of the target's layers
    vocab_tokens: int = 12288  # that the draft can propose
    loss: str = "kl"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "auto"
    threads: int | None = None
    kv_cache_bytes: int | None = None
    cache_dir: Path | None = None
    training: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, slots=True)
class Progress:
    """What is reported while it runs."""

    stage: str
    done: float
    total: float
    detail: str = ""


def distill(config: DistillConfig, report: Callable[[Progress], None]) -> list[Acceptance]:
    """Returns the acceptance of the draft model that `config.output` holds then.

    Raises InvalidRequest, ModelNotFound or Unsupported for what can't be done.
    """
    if config.loss not in LOSSES:
        raise InvalidRequest.of("loss", config.loss, f"it is one of {', '.join(LOSSES)}")
    if config.output.exists():
        raise InvalidRequest.of("output", str(config.output), "it is there already: name a new folder")
    rank, size = _join_ranks(config.device)
    set_num_threads(config.threads)
    checkpoint = prepare_checkpoint(config.target, cache_dir=config.cache_dir)
    if config.start_from is None:
        check_layers(checkpoint.folder, config.layers or _FIRST_LAYERS)
    config.work.mkdir(parents=True, exist_ok=True)
    _make_answers(config, checkpoint, rank, size, report)
    _wait_for_all(size)
    answers = _load_answers(config, checkpoint)
    draft_ids = _draft_ids(config, checkpoint, answers)
    device = resolve_device(config.device, rank)
    student = Student(_first_model(config, checkpoint), draft_ids, config.loss, device)
    train(student, answers, config.work, config.training, lambda step: report(_of_step(step)), rank=rank, size=size)
    student.to("cpu")
    found = _evaluate(config, checkpoint, student, draft_ids, report) if rank == 0 else []
    if rank == 0:
        _save(config, student, draft_ids)
        num_tokens = sum(len(each.tokens) for each in answers)
        settings = asdict(config)
        write_card(
            config.output,
            checkpoint.model,
            settings,
            found,
            num_tokens=num_tokens,
            num_draft_tokens=len(draft_ids),
        )
    _wait_for_all(size)
    return found


def parse_layers(text: str | None) -> tuple[int, ...]:
    """Of "0,1,2,3"; none of None. Raises InvalidRequest."""
    try:
        layers = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        layers = (-1,)
    if list(layers) != sorted(set(layers)) or min(layers, default=0) < 0:
        raise InvalidRequest.of("layers", text, "they are numbers of the target's layers in ascending order: 0,1,2,3")
    return layers


def _join_ranks(device: str) -> tuple[int, int]:
    """This process's rank and the number of ranks; under torchrun they find each other by its variables."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def _wait_for_all(size: int) -> None:
    if size > 1:
        dist.barrier()


def _make_answers(
    config: DistillConfig, checkpoint: Checkpoint, rank: int, size: int, report: Callable[[Progress], None]
) -> None:
    """Shards until they hold num_tokens. Each rank makes every size-th, and as many as it takes alone."""
    folder = config.work / "answers"
    folder.mkdir(exist_ok=True)
    wanted = config.num_tokens / size
    done, number = 0, rank
    engine: Engine | None = None
    encode = encoder(checkpoint)
    while done < wanted:
        file = shard_path(folder, number)
        if not file.is_file():
            engine = engine or _engine(config, checkpoint)
            answers = [
                Answer(each, encode(training_prompt(config.seed, each)), _LEARNED[each % len(_LEARNED)])
                for each in range(number * ANSWERS_PER_SHARD, (number + 1) * ANSWERS_PER_SHARD)
            ]
            answer_prompts(engine, answers, pick_from_kept_laws, _Counter(done, wanted, report).add)
            save_shard(file, answers, checkpoint.model)
        done += sum(len(answer.tokens) for answer in load_shard(file, checkpoint.model))
        report(Progress("answers", done, wanted))
        number += size


class _Counter:
    def __init__(self, done: float, total: float, report: Callable[[Progress], None]) -> None:
        self._done, self._total, self._report = done, total, report

    def add(self, num_tokens: int) -> None:
        self._done += num_tokens
        self._report(Progress("answers", self._done, self._total))


def _engine(config: DistillConfig, checkpoint: Checkpoint) -> Engine:
    return Engine(
        checkpoint,
        device=config.device,
        dtype=config.dtype,
        kv_cache_bytes=config.kv_cache_bytes,
        cache_dir=config.cache_dir,
    )


def encoder(checkpoint: Checkpoint) -> Callable[[Prompt], list[int]]:
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)

    def encode(prompt: Prompt) -> list[int]:
        if tokenizer.chat_template is None:
            return list(tokenizer(prompt.text + "\n").input_ids)
        messages = [{"role": "user", "content": prompt.text}]
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])

    return encode


def _load_answers(config: DistillConfig, checkpoint: Checkpoint) -> list[Answer]:
    files = sorted((config.work / "answers").glob("answers-*.safetensors"))
    return [answer for file in files for answer in load_shard(file, checkpoint.model)]


def _draft_ids(config: DistillConfig, checkpoint: Checkpoint, answers: Iterable[Answer]) -> list[int]:
    known = load_draft_vocab(config.start_from) if config.start_from is not None else None
    known = known or load_draft_vocab(config.work)
    if known is None:
        texts = ([*answer.prompt, *answer.tokens] for answer in answers)
        known = most_frequent(texts, config.vocab_tokens, always=_end_token_ids(checkpoint))
        save_draft_vocab(config.work, known)
    return known


def _end_token_ids(checkpoint: Checkpoint) -> list[int]:
    ends: list[int] = []
    for name in ("config.json", "generation_config.json"):
        file = checkpoint.folder / name
        end = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        ends += [end] if isinstance(end, int) else end or []
    return ends


def _first_model(config: DistillConfig, checkpoint: Checkpoint) -> Path:
    if config.start_from is not None:
        return prepare_checkpoint(str(config.start_from), cache_dir=config.cache_dir).folder
    folder = config.work / "first-model"
    if not folder.exists():
        unfinished = config.work / "first-model.incomplete"
        shutil.rmtree(unfinished, ignore_errors=True)
        save_with_layers(checkpoint.folder, unfinished, config.layers or _FIRST_LAYERS)
        os.replace(unfinished, folder)
    return folder


def _of_step(step: Step) -> Progress:
    return Progress("training", step.number, step.num_steps, f"loss {step.loss:.3f}")


def _evaluate(
    config: DistillConfig,
    checkpoint: Checkpoint,
    student: Student,
    draft_ids: Sequence[int],
    report: Callable[[Progress], None],
) -> list[Acceptance]:
    engine = _engine(config, checkpoint)
    prompts = list(map(encoder(checkpoint), held_out_prompts()))
    found = []
    for done, temperature in enumerate(_EVALUATED):
        report(Progress("held-out prompts", done, len(_EVALUATED), f"temperature {temperature:g}"))
        answers = [Answer(number, prompt, temperature) for number, prompt in enumerate(prompts)]
        answer_prompts(engine, answers, pick_as_served, lambda num_tokens: None)
        found.append(acceptance(student, draft_ids, answers))
    return found


def _save(config: DistillConfig, student: Student, draft_ids: Sequence[int]) -> None:
    """The first model's folder with the trained weights in it, in the first model's own dtype of storage."""
    first = config.work / "first-model" if config.start_from is None else None
    source = first or prepare_checkpoint(str(config.start_from), cache_dir=config.cache_dir).folder
    unfinished = config.work / "output.incomplete"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    trained = student.trained()
    for file in unfinished.glob("*.safetensors"):
        stored = load_file(file)
        save_file({name: trained.get(name, each) for name, each in stored.items()}, file, metadata={"format": "pt"})
    save_draft_vocab(unfinished, draft_ids)
    os.replace(unfinished, config.output)
