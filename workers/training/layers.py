"""A small model for any target: some of its own layers. It can serve as it is, and is where training starts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from outrider.errors import InvalidRequest

_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


def check_layers(model: Path, layers: Sequence[int]) -> None:
    """Raises InvalidRequest for layers that the model has not."""
    num_layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    if not layers or max(layers) >= num_layers:
        raise InvalidRequest.of("layers", list(layers), f"the model has {num_layers}, the first of which is 0")


def save_with_layers(
    model: Path,
    folder: Path,
    layers: Sequence[int],  # of the model's, ascending
) -> Path:
    """Copies `model` into `folder` with these layers only: same tokens, worse answers. Returns the folder."""
    check_layers(model, layers)
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.copy(file, folder)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = len(layers)
    (folder / "config.json").write_text(json.dumps(config))
    kept = {}
    for file in model.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                found = _LAYER.match(name)
                if found is None:
                    kept[name] = weights.get_tensor(name)
                elif int(found[1]) in layers:
                    kept[_LAYER.sub(f"model.layers.{layers.index(int(found[1]))}.", name)] = weights.get_tensor(name)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
