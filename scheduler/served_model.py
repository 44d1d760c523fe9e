"""What the scheduler knows of the model that it serves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from outrider.v1.target_pb2 import TargetDescription
from scheduler.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the target said of itself, and its tokenizer."""

    description: TargetDescription
    tokenizer: Tokenizer


def nonsense(own: TargetDescription) -> str:
    """What keeps anybody from being served by a target that says so of itself; empty where nothing does."""
    counts = {name: getattr(own, name) for name in ("max_context", "block_size", "num_kv_blocks", "max_pass_tokens")}
    for name, count in {"vocabulary.size": own.vocabulary.size, **counts}.items():
        if count < 1:
            return f"its {name} is {count}: it must be at least 1"
    for i, cost in enumerate(own.pass_costs):
        if not math.isfinite(cost.pass_ms):
            return f"its pass_costs[{i}].pass_ms is {cost.pass_ms}: it must be a finite number"
    return ""


def difference(own: TargetDescription, served: TargetDescription) -> str:
    """What keeps a target group from going on with answers of one that serves this; empty where nothing does."""
    for field in ("model", "dtype", "max_context", "vocabulary", "end_token_ids"):
        ours, theirs = getattr(own, field), getattr(served, field)
        if ours != theirs:
            if field == "vocabulary":
                return f"its vocabulary of {ours.size} tokens is not the one of {theirs.size} tokens which is served"
            return f"its {field} is {_shown(ours)}, not {_shown(theirs)} as is served"
    return ""


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, (str, int)) else str(value)
