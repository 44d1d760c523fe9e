"""A tiny model to draft with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.target_link import Reference
from tests.tiny import save_tiny_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def reference(tiny: Path) -> Reference:
    return Reference(tiny)
