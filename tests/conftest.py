"""Fixtures that every area shares."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from cluster.default_model import fetch_default_model

# Hub names are never resolved here: a test that needs a model makes one, or uses the default one.
os.environ["HF_HUB_OFFLINE"] = "1"
# A shell's background job ignores Ctrl-C, and so would every process that a test starts to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # two threads spin for each other where cores are shared: 13 times slower


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A safetensors folder of the real default model. The first run ever downloads and converts it."""
    from workers.engine.checkpoint import DEFAULT_CACHE_DIR, prepare_checkpoint

    cache_dir = Path(os.environ.get("OUTRIDER_CACHE", DEFAULT_CACHE_DIR)).expanduser()
    gguf = fetch_default_model(cache_dir, print)
    return prepare_checkpoint(str(gguf), cache_dir=cache_dir).folder
