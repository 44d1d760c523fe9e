"""Our attention function: any Hugging Face causal LM reads and writes our paged KV cache through it.

transformers calls it once a layer with queries, keys and values after the rotary embedding. The name has no entry
in transformers' mask interface on purpose: then no mask is built there, and ours, built once a pass, is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from outrider.errors import Unsupported
from workers.engine.kv_store import KVStore
from workers.engine.layout import Layout
from workers.engine.reference_attention import RowView, row_views

NAME = "outrider_paged"


@dataclass(frozen=True)
class PagedPass:
    """What the function needs of the current pass; handed to the model as the keyword `paged_pass`."""

    layout: Layout
    store: KVStore

    @cached_property
    def rows(self) -> list[RowView]:
        return row_views(self.layout)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Write the pass's keys and values, then let each row attend to its own slots.

        query is [1, num_heads, num_tokens, head_dim]; key and value have num_kv_heads; so does the result, as
        [1, num_tokens, num_heads, head_dim].
        """
        self.store.write(layer, self.layout.slot_mapping, key[0].transpose(0, 1), value[0].transpose(0, 1))
        output = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        for row in self.rows:
            keys, values = self.store.read(layer, row.slots)
            attended = scaled_dot_product_attention(
                query[:, :, row.start : row.end],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                attn_mask=row.seen,
                scale=scaling,
                enable_gqa=True,
            )
            output[:, row.start : row.end] = attended.transpose(1, 2)
        return output


@dataclass(slots=True)
class Probe:
    """Plain causal attention that notes what the model asks for; handed over as `paged_pass` once, at load."""

    shapes: dict[int, tuple[int, int]] = field(default_factory=dict)  # layer → (num_kv_heads, head_dim), local
    window: int | None = None  # the shortest sliding window seen

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        if key.shape != value.shape:
            raise Unsupported(f"keys {list(key.shape)} and values {list(value.shape)} of layer {layer} differ in shape")
        self.shapes[layer] = (key.shape[1], key.shape[3])
        attended = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return attended.transpose(1, 2)


# Keywords by which transformers asks for something other than softmax(q·k·scaling)·v under a causal mask.
_NOT_SERVED = {
    "softcap": "soft-capped attention scores",
    "s_aux": "attention sinks",
    "position_bias": "a position bias on the scores",
    "head_mask": "a head mask",
}


def paged_attention(
    module: nn.Module,
    query: Tensor,  # [1, num_heads, num_tokens, head_dim]
    key: Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
    value: Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    paged_pass: PagedPass | Probe,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """The function behind `NAME`. Its result is [1, num_tokens, num_heads, head_dim].

    Raises Unsupported for what it would otherwise get wrong without a word.
    """
    if attention_mask is not None:
        raise Unsupported("attention with a mask of the model's own is not served")
    for keyword, meaning in _NOT_SERVED.items():
        if kwargs.get(keyword) is not None:
            raise Unsupported(f"{meaning} ({keyword}) are not served")
    if isinstance(paged_pass, Probe) and sliding_window is not None:
        paged_pass.window = min(sliding_window, paged_pass.window or sliding_window)
    layer = module.layer_idx
    assert isinstance(layer, int)
    return paged_pass.attend(layer, query, key, value, scaling), None


def register() -> None:
    """Make `attn_implementation=NAME` known to transformers; doing it twice is harmless."""
    AttentionInterface.register(NAME, paged_attention)
