"""What a layer asks of its attention, beyond queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer scores a key that a query sees: softcap * tanh(q·k * scaling / softcap), q·k * scaling without one.

    A layer may also have sinks, one number a head, that take part in the softmax and bear no value; they are weights
    of the model and travel beside this.
    """

    scaling: float
    window: int | None = None  # a key is seen iff query position - key position < window, as in transformers' masks
    softcap: float | None = None
