"""What a freshly loaded model asks of its attention, layer by layer, found out by running two tokens through it.

A list of names would go stale with every release of transformers. Instead the model runs once with an attention
function that takes notes, and with a mask function that does, too: transformers describes each mask as a rule of
(query position, key position), and that rule is held against "all before, or the last `window` of them". So a window
is known from what the model does, whatever its config or its keywords say, and all that we know of must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from outrider.errors import Unsupported

NAME = "outrider_probe"

# Keywords that layers pass along and that don't change what attention computes without padding, dropout and cache.
_HARMLESS = {
    "cache_position",
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "deterministic",
    "logits_to_keep",
    "max_length_k",
    "max_length_q",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}
_SERVED_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What one layer asked. Heads are those of this rank."""

    num_kv_heads: int
    head_dim: int
    window: int | None  # None: the whole context


@torch.inference_mode()
def probe(module: PreTrainedModel, attention: str, max_context: int) -> list[Asked]:
    """What each layer asks. Raises Unsupported, naming the reason, where our attention would not be exact.

    `attention` is the attention implementation that the model has, and has again afterwards.
    """
    config = module.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or []
    if other := set(layer_types) - _SERVED_LAYERS:
        raise Unsupported(f"layers of type {', '.join(sorted(other))} are not served")
    notes = _Notes(max_context, layer_types)
    AttentionInterface.register(NAME, _take_notes)
    AttentionMaskInterface.register(NAME, _describe_mask)
    module.set_attn_implementation(NAME)
    ids = torch.zeros(1, 2, dtype=torch.int64, device=module.device)
    positions = torch.arange(2, device=module.device)[None]
    module(input_ids=ids, position_ids=positions, use_cache=False, paged_pass=notes)
    module.set_attn_implementation(attention)
    if set(notes.asked) != set(range(config.num_hidden_layers)):
        raise Unsupported("not every layer takes its attention from transformers' attention interface")
    asked = [notes.asked[layer] for layer in range(config.num_hidden_layers)]
    if len(shapes := {(one.num_kv_heads, one.head_dim) for one in asked}) > 1:
        raise Unsupported(f"layers with different (KV heads, head size): {sorted(shapes)}")
    return asked


class _Notes:
    """Handed to the model as `paged_pass`; each layer's call ends here."""

    def __init__(self, max_context: int, layer_types: list[str]) -> None:
        self.asked: dict[int, Asked] = {}
        self._max_context = max_context
        self._layer_types = layer_types

    def take(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        keywords: dict[str, Any],
    ) -> None:
        layer: Any = getattr(module, "layer_idx", None)
        if not isinstance(layer, int) or layer in self.asked:
            raise Unsupported(f"attention that runs more than once in a pass, or outside of a layer ({layer})")
        if key.shape != value.shape:
            raise Unsupported(f"keys {list(key.shape)} and values {list(value.shape)} of layer {layer} differ in shape")
        _refuse_what_we_do_not_know(module, keywords)
        sinks = keywords.get("s_aux")
        if sinks is not None and sinks.numel() != query.shape[1]:
            raise Unsupported(f"attention sinks of shape {list(sinks.shape)} for {query.shape[1]} heads")
        window = self._window(layer, mask, keywords.get("sliding_window"))
        self.asked[layer] = Asked(key.shape[1], key.shape[3], window)

    def _window(self, layer: int, mask: Tensor | None, passed: int | None) -> int | None:
        """The window of a layer, on which its mask, its keyword and its type must agree."""
        if passed is not None and passed >= self._max_context:
            passed = None
        masked = passed if mask is None else _window_of(mask, self._max_context)
        if masked != passed:
            raise Unsupported(
                f"layer {layer} has {_named(masked)} in its mask, and tells its attention of {_named(passed)}"
            )
        if mask is None and passed is None and self._layer_types[layer : layer + 1] == ["sliding_attention"]:
            raise Unsupported(f"layer {layer} is of type sliding_attention, and its attention is not told the window")
        return passed


def _take_notes(
    module: nn.Module,
    query: Tensor,  # [1, num_heads, num_tokens, head_dim]
    key: Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
    value: Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
    attention_mask: Tensor | None,  # as `_describe_mask` made it, or something of the model's own
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    paged_pass: _Notes | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Stands in for attention: the result has its shape and means nothing."""
    if paged_pass is None:
        raise Unsupported("it does not pass keywords on to its attention")
    paged_pass.take(module, query, key, value, attention_mask, keywords)
    return torch.zeros_like(query.transpose(1, 2)), None


def _refuse_what_we_do_not_know(module: nn.Module, keywords: dict[str, Any]) -> None:
    is_causal = keywords.get("is_causal")
    if is_causal is False or (is_causal is None and not getattr(module, "is_causal", True)):
        raise Unsupported("attention that is not causal")
    known = {"is_causal", "sliding_window", "softcap", "s_aux"} | _HARMLESS
    for keyword in sorted(set(keywords) - known):
        if keywords[keyword] is not None:
            raise Unsupported(f"its attention asks for {keyword}, which is not served")


def _describe_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    mask_function: Callable[..., Tensor],
    config: Any,
    device: torch.device,
    **kwargs: object,
) -> Tensor:
    """In place of a mask its rule, as a tensor of a mask's shape: the window everywhere, 0 for none.

    Raises Unsupported for a rule that is neither causal nor a sliding window.
    """
    max_context: int = config.max_position_embeddings
    keys = torch.arange(max_context, device=device)
    first = keys.new_zeros(())
    last = max_context - 1

    def seen_by(query: int) -> Tensor:
        return mask_function(first, first, keys[query], keys).expand(max_context)

    window = int(seen_by(last).sum())
    for query in (0, last // 3, last // 2, last - 1, last):
        if not torch.equal(seen_by(query), (keys <= query) & (query - keys < window)):
            raise Unsupported("a mask that is neither causal nor a sliding window")
    window = 0 if window == max_context else window
    return torch.full((batch_size, 1, q_length, kv_length), window, device=device)


def _window_of(mask: Tensor, max_context: int) -> int | None:
    """What `_describe_mask` said, unless the model made a mask of its own."""
    windows = set(mask.flatten().tolist())
    if mask.dtype != torch.int64 or len(windows) != 1 or not 0 <= (window := windows.pop()) <= max_context:
        raise Unsupported("attention with a mask of the model's own is not served")
    return window or None


def _named(window: int | None) -> str:
    return "no sliding window" if window is None else f"a sliding window of {window}"
