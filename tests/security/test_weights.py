"""What a model's folder can't do: run code of its own, be it in Python files or in pickles."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from outrider.errors import OutriderError
from workers.engine.checkpoint import prepare_checkpoint
from workers.engine.runner import Engine

ROOT = Path(__file__).parents[2]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return self._trace.write_text, ("a pickle ran",)


def with_code_of_its_own(tiny: Path, folder: Path, trace: Path) -> None:
    shutil.copytree(tiny, folder)
    code = (
        f"from pathlib import Path\nPath({str(trace)!r}).write_text('code ran')\nclass Config: ...\nclass Model: ...\n"
    )
    (folder / "own.py").write_text(code, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def load(folder: Path) -> None:
    Engine(prepare_checkpoint(str(folder)), device="cpu", dtype="float32", kv_cache_bytes=int(1e6))


def test_python_files_of_a_model_are_refused_and_never_run(tiny: Path, tmp_path: Path) -> None:
    folder, trace = tmp_path / "model", tmp_path / "trace"
    with_code_of_its_own(tiny, folder, trace)
    with pytest.raises(OutriderError, match=r"custom code|trust_remote_code|model type `own`"):
        load(folder)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_and_never_opened(tiny: Path, tmp_path: Path, name: str) -> None:
    folder, trace = tmp_path / "model", tmp_path / "trace"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(OutriderError, match="no safetensors"):
        load(folder)
    assert not trace.exists()


def test_nothing_in_the_server_opens_a_pickle_or_trusts_a_models_code() -> None:
    """A rule for whoever adds a loader: torch.load says weights_only, from_pretrained says trust_remote_code=False."""
    for package in ("client/outrider", "scheduler", "workers", "cluster"):
        for file in (ROOT / package).rglob("*.py"):
            source = file.read_text(encoding="utf-8")
            assert not re.search(r"^\s*(import|from) (pickle|dill|joblib|marshal|shelve)\b", source, re.MULTILINE), file
            assert "trust_remote_code=True" not in source, file
            for call in re.findall(r"torch\.load\([^)]*\)", source):
                assert "weights_only=True" in call, file
            for call in re.findall(r"Auto\w+\.from_pretrained\((?:[^()]|\([^()]*\))*\)", source):
                assert "trust_remote_code=False" in call, file
