"""Our attention function: any Hugging Face causal LM reads and writes our paged KV cache through it.

transformers calls it once a layer with queries, keys and values after the rotary embedding. The name has no entry
in transformers' mask interface on purpose: then no mask is built there, and who sees whom follows from the layout.

    paged_attention ─▶ PagedPass.attend ─▶ KVStore.write, then the device's implementation
    (or, once at load, the probe: `probe.py`)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from outrider.errors import Unsupported
from workers.engine.flex_attention import FlexAttention
from workers.engine.kv_store import KVStore
from workers.engine.layout import Layout
from workers.engine.reference_attention import ReferenceAttention
from workers.engine.scoring import Scoring

NAME = "outrider_paged"


class Implementation(Protocol):
    """Attention over the KV pool for one pass. It is made anew for each, with the pass's layout and the store."""

    def attend(
        self,
        layer: int,
        query: Tensor,  # [num_heads, num_tokens, head_dim]
        scoring: Scoring,
        sinks: Tensor | None,  # [num_heads]
    ) -> Tensor:
        """What each query gathers, [num_tokens, num_heads, head_dim]. The pass's own keys are in the store already."""


@dataclass(frozen=True)
class PagedPass:
    """What the function needs of the current pass; handed to the model as the keyword `paged_pass`."""

    layout: Layout
    store: KVStore

    @cached_property
    def implementation(self) -> Implementation:
        return _implementation(self.layout, self.store)

    def attend(
        self,
        layer: int,
        query: Tensor,  # [1, num_heads, num_tokens, head_dim]
        key: Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
        value: Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
        scoring: Scoring,
        sinks: Tensor | None,  # [num_heads]
    ) -> Tensor:
        """Write the pass's keys and values, then let each query attend: [1, num_tokens, num_heads, head_dim]."""
        self.store.write(layer, self.layout.slot_mapping, key[0].transpose(0, 1), value[0].transpose(0, 1))
        return self.implementation.attend(layer, query[0], scoring, sinks)[None]


def _implementation(layout: Layout, store: KVStore) -> Implementation:
    """The one place that chooses how attention is computed on a device."""
    if layout.input_ids.device.type == "cuda":
        return FlexAttention(layout, store)
    return ReferenceAttention(layout, store)


def paged_attention(
    module: nn.Module,
    query: Tensor,  # [1, num_heads, num_tokens, head_dim]
    key: Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
    value: Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    paged_pass: PagedPass,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,  # [num_heads]; transformers' word for sinks
    **kwargs: object,
) -> tuple[Tensor, None]:
    """The function behind `NAME`. Its result is [1, num_tokens, num_heads, head_dim].

    Other keywords don't bear on the result: the probe has seen to that at load.
    """
    if attention_mask is not None:
        raise Unsupported("attention with a mask of the model's own is not served")
    layer = module.layer_idx
    assert isinstance(layer, int)
    scoring = Scoring(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap)
    return paged_pass.attend(layer, query, key, value, scoring, s_aux), None


def register() -> None:
    """Make `attn_implementation=NAME` known to transformers; doing it twice is harmless."""
    AttentionInterface.register(NAME, paged_attention)
