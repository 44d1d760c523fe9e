"""Fixtures that every area shares, and how tests share a machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cluster.default_model import fetch_default_model

# Hub names are never resolved here: a test that needs a model makes one, or uses the default one.
os.environ["HF_HUB_OFFLINE"] = "1"
# Two processes of tests share the cores, and each starts servers: a thread that waits for another must not spin.
os.environ["OMP_WAIT_POLICY"] = "passive"
# A shell's background job ignores Ctrl-C, and so would every process that a test starts to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kill-seconds", type=float, default=25.0, help="how long tests/cluster/test_kills.py goes on")
    parser.addoption("--nodes", action="store_true", help="run tests/cluster/nodes too: minutes, on several Ray nodes")


def pytest_configure() -> None:
    import torch  # it reads the policy above, so not before

    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files that start cells or load the default model come first: were one of these the last, one process of tests
    would be busy with it for minutes while the other has nothing to do."""
    long = {item.path for item in items if item.get_closest_marker("model") or item.get_closest_marker("cluster")}
    if not config.getoption("--nodes"):
        for item in items:
            if item.get_closest_marker("nodes"):
                item.add_marker(pytest.mark.skip("make cluster-test runs it"))
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A safetensors folder of the real default model. The first run ever downloads and converts it."""
    from workers.engine.checkpoint import DEFAULT_CACHE_DIR, prepare_checkpoint

    cache_dir = Path(os.environ.get("OUTRIDER_CACHE", DEFAULT_CACHE_DIR)).expanduser()
    gguf = fetch_default_model(cache_dir, print)
    return prepare_checkpoint(str(gguf), cache_dir=cache_dir).folder
