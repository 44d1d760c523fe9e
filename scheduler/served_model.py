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
