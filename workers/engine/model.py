"""Loading a model: transformers' own class, unmodified, with our attention function and its own tensor-parallel plan.

Whether our attention serves a model exactly is not looked up in a list of names. The freshly loaded model runs two
tokens through a probe (`probe.py`), and what it asks of its attention decides; then a few more (`self_check.py`),
and what it answers must be what transformers computes. Whatever does not pass is refused, with the reason.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils import logging as transformers_logging

from outrider.errors import InvalidRequest, Unsupported
from workers.draft_vocab import FILE
from workers.engine import attention, self_check
from workers.engine.checkpoint import Checkpoint
from workers.engine.device import INT8, resolve_dtype
from workers.engine.forward import Forward, choose_forward
from workers.engine.head_padding import num_kv_heads_of
from workers.engine.kv_store import KVShape
from workers.engine.probe import probe

_log = logging.getLogger(__name__)


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


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: str,
    tensor_parallel: int,
    *,
    exact: bool,
    cache_dir: Path,
    output_ids: Sequence[int] | None = None,
) -> tuple[ModelSpec, Forward]:
    """This rank's part of a checkpoint on its device, ready to run but for the size of its KV cache.

    With tensor_parallel > 1 every rank of the already joined process group calls this at the same time. `output_ids`:
    the tokens whose logits are computed; None: all.
    Raises Unsupported, naming the reason, for a model that our attention could not serve exactly.
    """
    attention.register()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    module = _load_module(checkpoint, device, dtype, tensor_parallel)
    if output_ids is not None:
        _keep_outputs(module, output_ids, checkpoint.model)
    config = module.config.get_text_config()
    if num_kv_heads_of(config) % tensor_parallel:
        raise InvalidRequest.of("tensor_parallel", tensor_parallel, "prepare the checkpoint for as many ranks first")
    max_context = getattr(config, "max_position_embeddings", None)
    if max_context is None:
        raise Unsupported(f"{checkpoint.model} ({config.model_type}): config.json has no max_position_embeddings")
    try:
        _refuse_changing_rope(module, max_context)
        asked = probe(module, attention.NAME, max_context)[0]  # all layers ask for the same shapes
        if asked.num_kv_heads * tensor_parallel != num_kv_heads_of(config):
            raise Unsupported("transformers has no plan that divides its heads")
        kv_shape = KVShape(config.num_hidden_layers, asked.num_kv_heads, asked.head_dim, module.dtype)
        forward = choose_forward(module, kv_shape, device, exact=exact, in_bytes=dtype == INT8, cache_dir=cache_dir)
        self_check.check(module, forward, config.vocab_size)
    except Unsupported as err:
        raise Unsupported(f"{checkpoint.model} ({config.model_type}): {err}") from err
    spec = ModelSpec(
        name=checkpoint.model,
        num_layers=config.num_hidden_layers,
        num_kv_heads=asked.num_kv_heads,
        head_dim=asked.head_dim,
        vocab_size=config.vocab_size,
        max_context=max_context,
        end_token_ids=_end_token_ids(module),
        dtype=INT8 if dtype == INT8 else str(module.dtype).removeprefix("torch."),
    )
    _log.info("loaded %s: %d layers, %s on %s", spec.name, spec.num_layers, spec.dtype, device)
    return spec, forward


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
            trust_remote_code=False,  # else transformers asks at the terminal
            output_loading_info=True,
            **placement,
        )
    except (OSError, ValueError, KeyError) as err:
        if attention.NAME in str(err):  # older families keep a table of their own attention classes
            raise Unsupported(
                f"{checkpoint.model}: it does not take its attention from transformers' attention interface"
            ) from err
        raise InvalidRequest(f"{checkpoint.model} can't be loaded: {err}") from err
    if info["missing_keys"]:
        raise InvalidRequest(f"{checkpoint.model} can't be loaded: no weights for {sorted(info['missing_keys'])}")
    loaded: PreTrainedModel = module.eval().requires_grad_(False)
    return loaded


def _keep_outputs(module: Any, output_ids: Sequence[int], name: str) -> None:
    """Leave in the model's head only the rows of these tokens."""
    head = module.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or max(output_ids) >= head.out_features:
        raise Unsupported(f"{name}: its head has no row for each token of its {FILE}")
    rows = torch.tensor(output_ids, device=head.weight.device)
    kept = torch.nn.Linear(head.in_features, len(output_ids), bias=head.bias is not None, device="meta")
    kept.weight = torch.nn.Parameter(head.weight[rows].clone(), requires_grad=False)
    if head.bias is not None:
        kept.bias = torch.nn.Parameter(head.bias[rows].clone(), requires_grad=False)
    module.set_output_embeddings(kept)


def _refuse_changing_rope(module: PreTrainedModel, max_context: int) -> None:
    """Raises Unsupported where a token's rotary embedding would depend on how long the other rows of a pass are."""
    for part in module.modules():
        kinds = getattr(part, "rope_type", None)
        for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
            if isinstance(kind, str) and _longest_unchanged(part, kind) < max_context:
                raise Unsupported(f"rotary embeddings of type {kind} change with the longest row of a pass")


def _longest_unchanged(rope: Any, kind: str) -> float:
    """The longest row whose rotary embedding is the usual one: transformers computes it anew for rows beyond."""
    longest: float = math.inf
    if "dynamic" in kind:
        longest = min(rope.max_seq_len_cached, rope.original_max_seq_len)
    if kind == "longrope":
        given = rope.config.rope_parameters
        each = [given, *(one for one in given.values() if isinstance(one, dict))]
        longest = min((one[key] for one in each if (key := "original_max_position_embeddings") in one), default=0)
    return longest


def _end_token_ids(module: PreTrainedModel) -> tuple[int, ...]:
    """The tokens that end an answer, by generation_config.json and config.json together."""
    ends: set[int] = set()
    for config in (module.generation_config, module.config):
        end = getattr(config, "eos_token_id", None)
        if end is not None:
            ends.update([end] if isinstance(end, int) else end)
    return tuple(sorted(ends))
