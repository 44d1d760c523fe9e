"""What the scheduler knows of the model that it serves."""

from __future__ import annotations

from dataclasses import dataclass

from outrider.v1.target_pb2 import TargetDescription
from scheduler.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the target said of itself, and its tokenizer."""

    description: TargetDescription
    tokenizer: Tokenizer


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
