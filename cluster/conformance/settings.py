"""The sampling settings under which drafts must not change a token.

Some need token ids or words that matter. The suite has no tokenizer of the server's, so it takes them from an
answer of the target: what the target says of itself is what a bias or a ban bears on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from outrider.types import Answer, SamplingParams

Item = TypeVar("Item")

# Answers that repeat themselves, so that prompt lookup has something to find.
_SCHEMA = json.dumps(
    {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "blue"]}, "is_warm": {"type": "boolean"}},
            "required": ["colour", "is_warm"],
            "additionalProperties": False,
        },
        "minItems": 2,
        "maxItems": 4,
    }
)
_CHOICES = ["yes yes yes yes yes yes yes yes", "no no no no no no no no", "perhaps"]
_GRAMMAR = 'start: (word " ")+ "."\nword: /[a-z]{1,8}/'


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    sampling: SamplingParams
    # Whether a choice is the largest of log-probability + temperature × noise: then a client can tell how close it was.
    has_plain_choice: bool = False

    def with_seed(self, seed: int, max_tokens: int) -> SamplingParams:
        return replace(self.sampling, seed=seed, max_tokens=max_tokens)


def all_settings(words: Answer, max_tokens: int) -> tuple[Setting, ...]:
    """`words`: an answer of the target, for the settings that are about tokens."""
    ids = _distinct(words.token_ids)
    texts = _distinct([word for word in words.text.split() if word.isascii()]) or ["the"]
    warm = SamplingParams(temperature=0.8)
    return (
        Setting("greedy", SamplingParams(temperature=0), has_plain_choice=True),
        Setting("temperature 0.7", SamplingParams(temperature=0.7), has_plain_choice=True),
        Setting("temperature 1", SamplingParams(temperature=1.0), has_plain_choice=True),
        Setting("top_k", replace(warm, top_k=20)),
        Setting("top_p", replace(warm, top_p=0.9)),
        Setting("min_p", replace(warm, min_p=0.1)),
        Setting("typical_p", replace(warm, typical_p=0.8)),
        Setting("repetition_penalty", replace(warm, repetition_penalty=1.2)),
        Setting("presence, frequency_penalty", replace(warm, presence_penalty=0.5, frequency_penalty=0.3)),
        Setting("logit_bias", replace(warm, logit_bias={token: 1.5 - 3.0 * (i % 2) for i, token in enumerate(ids)})),
        Setting("bad_words", replace(warm, bad_words=texts[:4])),
        Setting("allowed_token_ids", replace(warm, allowed_token_ids=ids)),
        Setting("min_tokens", replace(warm, min_tokens=max_tokens // 2)),
        Setting("stop", replace(warm, stop=[texts[-1]])),
        Setting("logprobs", replace(warm, logprobs=3)),
        Setting("n", replace(warm, n=3)),
        Setting("json_schema", replace(warm, json_schema=_SCHEMA)),
        Setting("regex", replace(warm, regex=r"(yes|no|perhaps)( (yes|no|perhaps)){2,6}\.")),
        Setting("grammar", replace(warm, grammar=_GRAMMAR)),
        Setting("choice", replace(warm, choice=_CHOICES)),
    )


def _distinct(items: Sequence[Item]) -> list[Item]:
    return list(dict.fromkeys(items))
