"""A small draft model for any target: its own first layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file


def save_truncated(model: Path, folder: Path, num_layers: int) -> Path:
    """Copies `model` into `folder` with its first `num_layers` layers only: same tokens, much worse answers."""
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.copy(file, folder)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = num_layers
    (folder / "config.json").write_text(json.dumps(config))
    kept = {}
    for file in model.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                layer = name.removeprefix("model.layers.").split(".")[0]
                if not layer.isdigit() or int(layer) < num_layers:
                    kept[name] = weights.get_tensor(name)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
