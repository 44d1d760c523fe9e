"""Whole answers: plain, with prompt lookup, and by transformers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from benchmarks.measure import medians, show
from outrider.tree import pack_nodes
from workers.choice.params import ChoiceParams
from workers.draft.drafter import Request, Resources
from workers.draft.ngram import load as load_ngram
from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint
from workers.engine.device import resolve_dtype
from workers.engine.runner import Engine
from workers.target.walk import walk

GREEDY = ChoiceParams(temperature=0)
PROMPTS = {
    "chat": "<|im_start|>user\nExplain to a child why the sky is blue.<|im_end|>\n<|im_start|>assistant\n",
    "code": "<|im_start|>user\nWrite a Python function that reverses a linked list.<|im_end|>\n<|im_start|>assistant\n",
    "copy": "<|im_start|>user\nRepeat word for word: The lighthouse keeper climbed the ninety-two steps every evening "
    "at dusk. He lit the lamp, wound the clockwork, and wrote the weather into the log. Then he sat by the window and "
    "counted the ships until morning.<|im_end|>\n<|im_start|>assistant\n",
}


def against_transformers(
    folder: Path,
    dtype: str,
    engine: Engine,
    our_forward: Callable[[], object],  # over one token behind 256
    rounds: int,
    num_generated: int,
) -> dict[str, float]:
    """Milliseconds a token of transformers' generate and of our plain decoding; of both forwards over one token."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, engine.spec.vocab_size, (256,), generator=generator).tolist()
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=resolve_dtype(dtype) or "auto").eval()
    prompt = tokens[:64]
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": num_generated, "min_new_tokens": num_generated, "do_sample": False}

    def hf_generate() -> None:
        hf.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)

    def ours() -> None:
        decode(engine, prompt, num_generated, with_drafts=False, ignore_end=True)

    with torch.inference_mode():
        cache = hf(input_ids=torch.tensor([tokens]), use_cache=True).past_key_values

        def hf_forward() -> None:
            hf(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
            cache.crop(-1)

        spent = medians(
            {
                "hf_generate": hf_generate,
                "ours": ours,
                "hf_forward": hf_forward,
                "our_forward": our_forward,
            },
            rounds,
        )
    return {name: ms / num_generated if name in ("hf_generate", "ours") else ms for name, ms in spent.items()}


def decode(
    engine: Engine, prompt: Sequence[int], max_tokens: int, *, with_drafts: bool, ignore_end: bool = False
) -> tuple[list[int], int]:
    """A greedy answer and the number of passes that it took, the prompt's aside."""
    key, drafter = 1 << 20, load_ngram("", Resources())
    request = Request(key, GREEDY)
    engine.open(key)
    drafter.open(request)
    tokens, passes = list(prompt), -1
    ends = () if ignore_end else engine.spec.end_token_ids
    while len(tokens) < len(prompt) + max_tokens and not (passes >= 0 and tokens[-1] in ends):
        nodes: Sequence[int] = ()
        parents: Sequence[int] = ()
        if with_drafts:
            committed = tokens[len(request.tokens) :]
            drafter.commit(request, committed)
            request.tree.advance(committed)
            request.tokens += committed
            request.max_nodes, request.is_live = 8, True
            drafter.step([request])
            nodes, parents = pack_nodes(request.tree.ranked()[:8])
        (logits,) = engine.forward([Row(key, tokens[engine.num_cached(key) :], nodes, parents)])
        assert logits is not None
        walked = walk(logits.argmax(-1).tolist(), nodes, parents)
        engine.accept(key, walked.path)
        tokens += walked.tokens
        passes += 1
    engine.close(key)
    answer = tokens[len(prompt) : len(prompt) + max_tokens]
    end = next((index for index, token in enumerate(answer) if token in ends), len(answer))
    return answer[: end + 1], passes  # a walk may go on behind the end


def whole_answers(checkpoint: Checkpoint, engine: Engine, max_tokens: int = 128) -> dict[str, list[float]]:
    """Tokens a second of whole answers, plain and with prompt lookup, prompts included; plain and drafted in turn."""
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    answers: dict[str, list[float]] = {}
    table: list[tuple[object, ...]] = [("prompt", "plain", "lookup", "a pass", "equal")]
    for name, text in PROMPTS.items():
        prompt = tokenizer.encode(text).ids
        rates: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(3):
            texts = {}
            for with_drafts in (False, True):
                started = time.perf_counter()
                tokens, passes = decode(engine, prompt, max_tokens, with_drafts=with_drafts)
                rates[with_drafts].append(len(tokens) / (time.perf_counter() - started))
                texts[with_drafts] = tokens
        answers[name] = [statistics.median(rates[with_drafts]) for with_drafts in (False, True)]
        table.append((name, *answers[name], len(texts[True]) / max(1, passes), str(texts[False] == texts[True])))
    show("whole answers: tokens/s plain and with prompt lookup, tokens a pass with it, same tokens", table)
    return answers
