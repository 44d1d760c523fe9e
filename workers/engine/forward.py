"""How a model's forward is run on a device: what stands between a layout and its logits.

TorchForward    any device: transformers' modules as they are, attention in torch (`attention.py`)
KernelForward   CPU: packed linear layers and one attention operator in C++ (`kernels/`), and the rest of a layer
                fused by torch's compiler, which compiles one layer and uses it for all
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._inductor import config as inductor_config
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from transformers import AttentionInterface, PreTrainedModel

from outrider.errors import Unsupported
from workers.engine.attention import PagedPass
from workers.engine.device import has_matrix_units
from workers.engine.kv_store import KVShape, KVStore, PanelStore
from workers.engine.layout import Layout
from workers.engine.linear import PACKED_DTYPES, pack_linear_layers
from workers.kernels.build import load_kernels

_COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"
KERNEL_ATTENTION = "outrider_kernels"
_LEAST_LOGITS = 2  # sizes of 0 and 1 are compiled apart; of the head's rows there are two at least, so it is not


class Forward(Protocol):
    """A loaded model with its part of the KV cache."""

    kv_shape: KVShape

    @property
    def is_compiled(self) -> bool: ...

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make the KV cache, in place of what there was."""

    def run(self, layout: Layout) -> Tensor:
        """Carry out the layout's moves, then the pass: [num_logits, vocab] f32."""


def choose_forward(
    module: PreTrainedModel, shape: KVShape, device: torch.device, *, exact: bool, in_bytes: bool, cache_dir: Path
) -> Forward:
    """The fastest forward that this machine can run; with `exact`, of those whose logits are the same in any pass;
    with `in_bytes`, of those that round weights to 8 bits.

    Raises Unsupported where there is none.
    """
    if device.type == "cpu" and load_kernels(cache_dir) and shape.dtype in PACKED_DTYPES:  # of any dtype, the choice's
        return KernelForward(module, shape, exact=exact, in_bytes=in_bytes)
    if exact:
        raise Unsupported("exact is for CPUs with our kernels, in float32 or bfloat16")
    if in_bytes:
        raise Unsupported("int8 is for CPUs with our kernels")
    return TorchForward(module, shape, device)


class TorchForward:
    """See `Forward`. Flex attention compiles itself on CUDA; the rest runs as transformers wrote it."""

    is_compiled = False

    def __init__(self, module: PreTrainedModel, shape: KVShape, device: torch.device) -> None:
        self._module = module
        self.kv_shape = shape
        self._device = device
        self._store: KVStore

    def allocate(self, num_blocks: int, block_size: int) -> None:
        self._store = KVStore(self.kv_shape, num_blocks * block_size, self._device)

    @torch.no_grad()  # not inference_mode: whoever chooses edits the logits in place
    def run(self, layout: Layout) -> Tensor:
        self._store.move(layout.moves)
        output = self._module(
            input_ids=layout.input_ids,
            position_ids=layout.positions,
            use_cache=False,
            logits_to_keep=layout.logits_rows,
            paged_pass=PagedPass(layout, self._store),
        )
        logits: Tensor = output.logits[0].float()
        return logits


class KernelForward:
    """See `Forward`."""

    device = torch.device("cpu")

    def __init__(self, module: PreTrainedModel, shape: KVShape, *, exact: bool, in_bytes: bool) -> None:
        AttentionInterface.register(KERNEL_ATTENTION, _kernel_attention)
        keep_weights = has_matrix_units(shape.dtype) and not exact
        pack_linear_layers(module, keep_weights=keep_weights, in_bytes=in_bytes)
        self._module = module
        self.kv_shape = shape
        self._call: Any = module
        self._store: PanelStore

    def allocate(self, num_blocks: int, block_size: int) -> None:
        self._store = PanelStore(self.kv_shape, num_blocks, block_size, self.device)
        self._module.set_attn_implementation(KERNEL_ATTENTION)
        for part in self._module.modules():
            layer = getattr(part, "layer_idx", None)
            if isinstance(layer, int):
                part.kv_keys, part.kv_values = self._store.keys[layer], self._store.values[layer]
                for held in (part.kv_keys, part.kv_values):
                    torch._dynamo.mark_static(held)

    @property
    def is_compiled(self) -> bool:
        return self._call is not self._module

    def compile(self, cache_dir: Path) -> None:
        """Have torch compile what it can, each time that a graph is first run."""
        if os.environ.get(_COMPILER_CACHE) in (None, default_cache_dir()):  # where torch takes it from, and puts it
            os.environ[_COMPILER_CACHE] = str(cache_dir / "inductor")
        dynamo_config.automatic_dynamic_shapes = False  # a second model's sizes are no reason to leave any open
        dynamo_config.recompile_limit = 256  # it counts the graphs of all engines in the process together
        inductor_config.size_asserts = False  # a thousand a pass, of what cannot change
        inductor_config.compile_threads = 1  # more would be processes that outlive us by a while
        for layer in self._layers():
            region: Any = torch.compiler.nested_compile_region(type(layer).forward)
            layer.forward = types.MethodType(region, layer)
        self._call = torch.compile(self._module, fullgraph=True)

    def run_uncompiled(self) -> None:
        """Take `compile` back."""
        for layer in self._layers():
            layer.__dict__.pop("forward", None)
        self._call = self._module

    def _layers(self) -> Iterator[nn.Module]:
        for part in self._module.modules():
            if isinstance(part, nn.ModuleList) and len(part) == self.kv_shape.num_layers:
                yield from part

    @torch.no_grad()
    def run(self, layout: Layout) -> Tensor:
        self._store.move(layout.moves)
        num_logits = len(layout.logits_rows)
        missing = max(0, _LEAST_LOGITS - num_logits)
        inputs = {
            "input_ids": layout.input_ids,
            "position_ids": layout.positions,
            "logits_to_keep": torch.cat([layout.logits_rows, layout.logits_rows.new_zeros(missing)]),
            "packed_layout": pack_layout(layout),
        }
        if self.is_compiled:
            _declare_sizes(inputs)
        output = self._call(use_cache=False, **inputs)
        logits: Tensor = output.logits[0, :num_logits].float()
        return logits


def pack_layout(layout: Layout) -> Tensor:
    """The layout as `kernels/attention.cpp` reads it: [num_values] i32."""
    counts = (len(layout.context_lens), layout.input_ids.shape[1], len(layout.block_tables))
    return torch.cat(
        [
            torch.tensor(counts, dtype=torch.int32),
            layout.cu_queries,
            layout.context_lens,
            layout.num_linear,
            layout.cu_blocks,
            layout.block_tables,
            layout.parents,
            layout.slot_mapping.int(),
        ]
    )


def _kernel_attention(
    module: Any,  # with the layer's part of the cache as kv_keys and kv_values
    query: Tensor,  # [1, num_heads, num_tokens, head_dim]
    key: Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
    value: Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed_layout: Tensor,  # [num_values] i32
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,  # [num_heads]
    **kwargs: object,
) -> tuple[Tensor, None]:
    """`attention.paged_attention` as one operator. Its result is [1, num_tokens, num_heads, head_dim]."""
    output = torch.ops.outrider.paged_attention(
        query,
        key,
        value,
        module.kv_keys,
        module.kv_values,
        packed_layout,
        scaling if scaling is not None else query.shape[-1] ** -0.5,
        sliding_window or 0,
        softcap or 0.0,
        None if s_aux is None else s_aux.float(),
    )
    return output, None


def _declare_sizes(inputs: dict[str, Tensor]) -> None:
    """Tell the compiler which sizes differ from pass to pass. A pass of one token has a graph of its own."""
    torch._dynamo.mark_dynamic(inputs["packed_layout"], 0)
    if inputs["input_ids"].shape[1] > 1:
        torch._dynamo.mark_dynamic(inputs["input_ids"], 1)
        torch._dynamo.mark_dynamic(inputs["position_ids"], 1)
        torch._dynamo.mark_dynamic(inputs["logits_to_keep"], 0)
