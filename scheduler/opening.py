"""What the workers must know to choose a request's tokens: its sampling parameters in the vocabulary's terms."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from outrider.v1 import inference_pb2 as pb
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.tokenizer import Tokenizer

_COPIED = ("top_k", "min_p", "presence_penalty", "frequency_penalty", "min_tokens")  # unset means zero
_ONE_IF_UNSET = ("temperature", "top_p", "typical_p", "repetition_penalty")


def opening_of(
    request: pb.GenerateRequest,
    *,
    seed: int,
    num_prompt_tokens: int,
    end_token_ids: Collection[int],  # those that end this answer
    tokenizer: Tokenizer,
    grammar: str,
) -> OpenRequest:
    """CPU work, of the tokenizer: call it in a thread."""
    sampling = request.sampling
    for_workers = pb.SamplingParams(
        seed=seed, logit_bias=sampling.logit_bias, allowed_token_ids=sampling.allowed_token_ids
    )
    for field in _COPIED:
        setattr(for_workers, field, getattr(sampling, field))
    for field in _ONE_IF_UNSET:
        setattr(for_workers, field, getattr(sampling, field) if sampling.HasField(field) else 1.0)
    if sampling.HasField("logprobs"):
        for_workers.logprobs = sampling.logprobs
    return OpenRequest(
        sampling=for_workers,
        acceptance_rule=request.speculation.acceptance_rule or pb.ACCEPTANCE_RULE_COUPLED,
        num_prompt_tokens=num_prompt_tokens,
        end_token_ids=sorted(end_token_ids),
        bad_words=[pb.TokenIds(ids=ids) for ids in spellings(sampling.bad_words, tokenizer)],
        grammar=grammar,
    )


def spellings(words: Sequence[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The words as tokens: each as it stands at the beginning of a text and behind a space. Blanks only as they stand.

    Other ways to write the same letters, with tokens that the tokenizer would not use for them, are not among these.
    """
    forms = [form for word in words for form in ((word,) if word.isspace() else (word, f" {word.lstrip()}"))]
    written = [tokenizer.encode_word(form) for form in forms]
    return sorted({tuple(ids) for ids in written if ids})
