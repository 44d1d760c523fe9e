"""Zero heads, so that tensor parallelism divides a model's attention heads.

Nine query heads over three KV heads can't be split on two ranks. Twelve over four can, and if the added heads'
rows in q, k, v and columns in o are zero, the model computes the very same function: an added head's values are
zero, and so is what it contributes to the output.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from outrider.errors import InvalidRequest, Unsupported

_log = logging.getLogger(__name__)
_PROJECTION = re.compile(r"\.self_attn\.([qkvo])_proj\.(weight|bias)$")
_HEAD_NORM = re.compile(r"\.self_attn\.[qk]_norm\.weight$")
_OTHER = re.compile(r"\.self_attn\.(?!rotary_emb\.)")
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


@dataclass(frozen=True, slots=True)
class HeadPadding:
    """Heads before and after; the number of query heads per KV head stays."""

    num_heads: int
    num_kv_heads: int
    num_padded_heads: int
    num_padded_kv_heads: int
    head_dim: int


def num_kv_heads_of(config: PreTrainedConfig) -> int:
    """KV heads of the whole model; older families have one a query head and don't name them."""
    num_kv_heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return num_kv_heads


def padding_for(folder: Path, tensor_parallel: int) -> HeadPadding | None:
    """The padding that lets tensor_parallel ranks share a model; None where its heads divide as they are."""
    whole = _read_config(folder)
    config = whole.get_text_config()
    num_heads = config.num_attention_heads
    num_kv_heads = num_kv_heads_of(config)
    if num_kv_heads % tensor_parallel == 0:
        return None
    if config is not whole:
        raise _refusal(config, tensor_parallel, "it is a part of a larger model")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    _check_layout(folder, config, tensor_parallel, head_dim)
    padded = _padded_kv_heads(config, tensor_parallel, head_dim)
    if padded is None:
        more = [size for size in range(1, tensor_parallel) if _padded_kv_heads(config, size, head_dim) is not None]
        raise _refusal(config, tensor_parallel, "no padded number of heads fits its hidden size", more)
    return HeadPadding(num_heads, num_kv_heads, padded * (num_heads // num_kv_heads), padded, head_dim)


def pad_heads(
    folder: Path,
    target: Path,  # an empty folder
    padding: HeadPadding,
) -> None:
    """Write a copy of a safetensors folder with padded heads, one shard in memory at a time."""
    _log.info(
        "padding heads %d/%d -> %d/%d of %s",
        padding.num_heads,
        padding.num_kv_heads,
        padding.num_padded_heads,
        padding.num_padded_kv_heads,
        folder.name,
    )
    for file in folder.iterdir():
        if file.is_file() and file.suffix not in _WEIGHT_SUFFIXES:
            shutil.copyfile(file, target / file.name)
    changes = {
        "num_attention_heads": padding.num_padded_heads,
        "num_key_value_heads": padding.num_padded_kv_heads,
        "head_dim": padding.head_dim,
    }
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as tensors:
            padded = {name: _pad(name, tensors.get_tensor(name), padding) for name in tensors.keys()}  # noqa: SIM118
        save_file(padded, target / shard.name, metadata={"format": "pt"})


def _pad(
    name: str,
    tensor: Tensor,  # q, k, v: [num_heads * head_dim, …]; o: [hidden, num_heads * head_dim]; or anything else
    padding: HeadPadding,
) -> Tensor:
    projection = _PROJECTION.search(name)
    if projection is None or projection.groups() == ("o", "bias"):
        return tensor
    which = projection.group(1)
    num_heads = padding.num_padded_kv_heads if which in "kv" else padding.num_padded_heads
    axis = 1 if which == "o" else 0
    size = list(tensor.shape)
    size[axis] = num_heads * padding.head_dim - size[axis]
    return torch.cat([tensor, tensor.new_zeros(size)], dim=axis)


def _read_config(folder: Path) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as err:
        raise InvalidRequest.of("model", str(folder), f"its config.json can't be read: {err}") from err
    return config


def _padded_kv_heads(config: PreTrainedConfig, tensor_parallel: int, head_dim: int) -> int | None:
    """The least number of KV heads that these ranks divide and the model may have; None where there is none."""
    num_kv_heads = num_kv_heads_of(config)
    group = config.num_attention_heads // num_kv_heads
    first = -(-num_kv_heads // tensor_parallel) * tensor_parallel
    sizes = range(first, 2 * first + 1, tensor_parallel)
    return next((size for size in sizes if _accepts(config, size * group, size, head_dim)), None)


def _accepts(config: PreTrainedConfig, num_heads: int, num_kv_heads: int, head_dim: int) -> bool:
    """Whether transformers would load a config with these heads; some families want hidden_size to be a multiple."""
    changed: Any = copy.deepcopy(config)
    changed.num_attention_heads, changed.num_key_value_heads, changed.head_dim = num_heads, num_kv_heads, head_dim
    try:
        changed.validate_architecture()
    except ValueError:
        return False
    return True


def _check_layout(folder: Path, config: PreTrainedConfig, tensor_parallel: int, head_dim: int) -> None:
    """Raises Unsupported unless q, k, v and o are tensors of their own, nothing is normed across heads, and there is
    nothing else a head, such as a sink."""
    num_projections = 0
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                num_projections += bool(_PROJECTION.search(name)) and name.endswith(".weight")
                if _HEAD_NORM.search(name):
                    if tensors.get_slice(name).get_shape() != [head_dim]:
                        raise _refusal(config, tensor_parallel, "its queries are normed across heads")
                elif _OTHER.search(name) and not _PROJECTION.search(name):
                    raise _refusal(config, tensor_parallel, f"it has {name} beside four plain projections a layer")
    if num_projections != 4 * config.num_hidden_layers:
        raise _refusal(config, tensor_parallel, "its attention weights are not four plain projections a layer")


def _refusal(
    config: PreTrainedConfig, tensor_parallel: int, reason: str, padded_sizes: Sequence[int] = ()
) -> Unsupported:
    """`padded_sizes`: of the group, beyond those that divide the KV heads."""
    num_kv_heads = num_kv_heads_of(config)
    works = sorted({size for size in range(1, num_kv_heads + 1) if num_kv_heads % size == 0} | {*padded_sizes})
    return Unsupported(
        f"{config.model_type} with {num_kv_heads} KV heads can't be padded for {tensor_parallel} ranks: {reason}; "
        f"tensor_parallel may be one of {works}"
    )
