"""GGUF to safetensors, once: ranks and restarts then map the same file instead of unpacking it again."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from outrider.errors import InvalidRequest

_log = logging.getLogger(__name__)


def convert_gguf(
    file: Path,
    folder: Path,  # an empty folder
) -> None:
    """Write the model and tokenizer of a GGUF file as a safetensors folder.

    The weights are unpacked to float32, so that none of what the file says is rounded away.
    """
    _log.info("converting %s (%.0f MB) to safetensors", file.name, file.stat().st_size / 1e6)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    vars(modeling_gguf_pytorch_utils)["tqdm"] = transformers_logging.tqdm  # the one bar that the line above misses
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        module = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            trust_remote_code=False,
            dtype=torch.float32,
            quantization_config=GgufConfig(
                dequantize=True
            ),  # without it the model counts as quantized and can't be saved
        )
    except (OSError, ValueError, KeyError) as err:
        raise InvalidRequest(f"{file.name} can't be converted: {err}") from err
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers saves a model on rank 0 alone, and says nothing on the others.
    assert any(folder.glob("*.safetensors")), "convert before the process joins a group of ranks"
