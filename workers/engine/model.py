"""Loading a model: transformers' own class, unmodified, with our attention function and its own tensor-parallel plan.

Whether our attention serves a model exactly is not looked up in a list of names: the freshly loaded model runs
two tokens through a probe, and what it asks of its attention there decides.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils import logging as transformers_logging

from outrider.errors import InvalidRequest, Unsupported
from workers.engine import attention
from workers.engine.checkpoint import Checkpoint
from workers.engine.device import resolve_dtype
from workers.engine.head_padding import num_kv_heads_of
from workers.engine.kv_store import KVShape

_log = logging.getLogger(__name__)
_SERVED_LAYERS = {"full_attention", "sliding_attention"}  # the latter where the window holds the whole context

_LENGTH_DEPENDENT_ROPES = {"dynamic", "longrope"}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What there is to know of a loaded model. Heads are those of this rank; everything else is the whole model's."""

    name: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    end_token_ids: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class LoadedModel:
    module: PreTrainedModel
    spec: ModelSpec
    kv_shape: KVShape


def load_model(checkpoint: Checkpoint, device: torch.device, dtype: str, tensor_parallel: int) -> LoadedModel:
    """This rank's part of a checkpoint, on its device.

    With tensor_parallel > 1 every rank of the already joined process group calls this at the same time.
    Raises Unsupported, naming the reason, for a model that our attention could not serve exactly.
    """
    attention.register()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    module = _load_module(checkpoint, device, dtype, tensor_parallel)
    config = module.config.get_text_config()
    if num_kv_heads_of(config) % tensor_parallel:
        raise InvalidRequest.of("tensor_parallel", tensor_parallel, "prepare the checkpoint for as many ranks first")
    max_context = getattr(config, "max_position_embeddings", None)
    if max_context is None:
        raise Unsupported(f"{checkpoint.model}: config.json has no max_position_embeddings")
    try:
        num_kv_heads, head_dim = _probe(module, config, max_context)
    except Unsupported as err:
        raise Unsupported(f"{checkpoint.model} ({config.model_type}): {err}") from err
    if num_kv_heads * tensor_parallel != num_kv_heads_of(config):
        raise Unsupported(f"{checkpoint.model} ({config.model_type}): transformers has no plan that divides its heads")
    kv_shape = KVShape(config.num_hidden_layers, num_kv_heads, head_dim, module.dtype)
    spec = ModelSpec(
        name=checkpoint.model,
        num_layers=config.num_hidden_layers,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        max_context=max_context,
        end_token_ids=_end_token_ids(module),
        dtype=str(module.dtype).removeprefix("torch."),
    )
    _log.info("loaded %s: %d layers, %s on %s", spec.name, spec.num_layers, spec.dtype, device)
    return LoadedModel(module, spec, kv_shape)


def _load_module(checkpoint: Checkpoint, device: torch.device, dtype: str, tensor_parallel: int) -> PreTrainedModel:
    placement: dict[str, Any] = {"device_map": device}
    if tensor_parallel > 1:
        if device.type == "cpu" and torch.cuda.is_available():  # transformers takes whatever accelerator it sees
            raise InvalidRequest.of("device", "cpu", "ranks on the CPU must not see a GPU: set CUDA_VISIBLE_DEVICES=")
        os.environ["LOCAL_RANK"] = str(device.index or 0)  # transformers takes the GPU's number from here
        placement = {"distributed_config": DistributedConfig(tp_size=tensor_parallel)}
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained  # its annotation forgets output_loading_info
    try:
        module, info = from_pretrained(
            checkpoint.folder,
            dtype=resolve_dtype(dtype) or "auto",
            attn_implementation=attention.NAME,
            use_safetensors=True,
            output_loading_info=True,
            **placement,
        )
    except (OSError, ValueError, KeyError) as err:
        raise InvalidRequest(f"{checkpoint.model} can't be loaded: {err}") from err
    if info["missing_keys"]:
        raise InvalidRequest(f"{checkpoint.model} can't be loaded: no weights for {sorted(info['missing_keys'])}")
    loaded: PreTrainedModel = module.eval().requires_grad_(False)
    return loaded


@torch.inference_mode()
def _probe(module: PreTrainedModel, config: Any, max_context: int) -> tuple[int, int]:
    """The (num_kv_heads, head_dim) that every layer has here. Raises Unsupported where we would not be exact."""
    if other := set(getattr(config, "layer_types", None) or ()) - _SERVED_LAYERS:
        raise Unsupported(f"layers of type {', '.join(sorted(other))} are not served")
    if depending := _rope_types(module) & _LENGTH_DEPENDENT_ROPES:
        raise Unsupported(f"rotary embeddings of type {depending.pop()} change with the longest row of a pass")
    probe = attention.Probe()
    ids = torch.zeros(1, 2, dtype=torch.int64, device=module.device)
    module(input_ids=ids, position_ids=torch.arange(2, device=module.device)[None], use_cache=False, paged_pass=probe)
    if set(probe.shapes) != set(range(config.num_hidden_layers)):
        raise Unsupported("not every layer takes its attention from transformers' attention interface")
    if probe.window is not None and probe.window < max_context:
        raise Unsupported(f"a sliding window of {probe.window} tokens, shorter than its context of {max_context}")
    if len(shapes := set(probe.shapes.values())) > 1:
        raise Unsupported(f"layers with different (KV heads, head size): {sorted(shapes)}")
    return shapes.pop()


def _rope_types(module: PreTrainedModel) -> set[str]:
    """The kinds of rotary embedding in a model; a family with two kinds of layers may have two."""
    found: set[str] = set()
    for part in module.modules():
        kinds = getattr(part, "rope_type", None)
        if isinstance(kinds, str):
            found.add(kinds)
        elif isinstance(kinds, dict):
            found.update(kinds.values())
    return found


def _end_token_ids(module: PreTrainedModel) -> tuple[int, ...]:
    """The tokens that end an answer, by generation_config.json and config.json together."""
    ends: set[int] = set()
    for config in (module.generation_config, module.config):
        end = getattr(config, "eos_token_id", None)
        if end is not None:
            ends.update([end] if isinstance(end, int) else end)
    return tuple(sorted(ends))
