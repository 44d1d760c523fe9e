"""The one place that knows devices: where tensors live, their dtype, the backend of a group, the KV budget."""

from __future__ import annotations

from pathlib import Path

import torch

from outrider.errors import InvalidRequest
from workers.kernels.build import load_kernels

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT8 = "int8"  # of a draft model on a CPU: the weights of its linear layers; all else is bfloat16
_CPU_KV_CACHE_BYTES = 1 << 30
_CUDA_KV_CACHE_SHARE = 0.85  # of what is free once the model is loaded; the rest is for activations


def resolve_device(name: str, rank: int = 0) -> torch.device:
    """ "cpu"; "cuda", which is the GPU with this rank's number on the machine; or one GPU such as "cuda:1"."""
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise InvalidRequest.of("device", name, 'it is "cpu", "cuda" or "cuda:<number>"')
    if not torch.cuda.is_available():
        raise InvalidRequest.of("device", name, 'no CUDA device is visible here; use "cpu"')
    return torch.device("cuda", int(index) if index else rank % torch.cuda.device_count())


def resolve_dtype(name: str) -> torch.dtype | None:
    """The dtype of weights and KV cache; None for "auto", the dtype that the checkpoint was saved in."""
    if name == "auto":
        return None
    if name == INT8:
        return torch.bfloat16
    if name not in DTYPES:
        raise InvalidRequest.of("dtype", name, f"it is one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def draft_dtype(name: str, device: torch.device, cache_dir: Path) -> str:
    """Of a draft model: "auto" is int8 on a CPU with our kernels. A draft is never the truth: what rounding its weights
    costs is guesses, and it saves much of a step's time."""
    return INT8 if name == "auto" and device.type == "cpu" and load_kernels(cache_dir) else name


def group_backend(device: torch.device) -> str:
    """The torch.distributed backends of a group: batches always travel on the CPU, sums where the tensors are."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def kv_cache_budget_bytes(device: torch.device, requested: int | None) -> int:
    """Bytes for keys and values on this rank; ask once the model is loaded."""
    if requested is not None:
        return requested
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _CUDA_KV_CACHE_SHARE)
    return _CPU_KV_CACHE_BYTES


def set_num_threads(num_threads: int | None) -> None:
    """Threads of this process's arithmetic; None leaves torch's choice. Workers that share cores must divide them."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def has_matrix_units(dtype: torch.dtype) -> bool:
    """Whether this machine's CPU multiplies whole tiles of this dtype (AMX), which torch's own kernels use."""
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether training is faster there when its products are of bfloat16; weights and sums stay float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_matrix_units(torch.bfloat16)
