"""Cost profiles on disk: one JSON file for all that changes how long a pass takes, so that a restart need not measure.

A file that can't be read, is damaged, or belongs to something else is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import re
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from workers.engine.checkpoint import Checkpoint, fingerprint
from workers.engine.cost_profile import KNEE, PassCost, Point, knee, measure, points_that_fit
from workers.engine.runner import Engine

_CODE = Path(__file__).parent
_CODE_SUFFIXES = (".py", ".cpp", ".h")
_log = logging.getLogger(__name__)


def cost_profile(
    checkpoint: Checkpoint, engine: Engine, *, num_ranks: int, max_pass_tokens: int, budget_s: float, cache_dir: Path
) -> list[PassCost]:
    """The engine's profile: the one that was kept, or one measured now. Empty where there is no budget or no room."""
    points = points_that_fit(engine, max_pass_tokens) if budget_s > 0 else []
    if not points:
        return []
    folder, key = cache_dir / "profiles", profile_key(checkpoint, engine, num_ranks, points, budget_s)
    kept = load_profile(folder, key)
    if kept is not None:
        return kept
    started = time.perf_counter()
    costs = measure(engine, points, budget_s)
    seconds = time.perf_counter() - started
    _log.info(
        "passes of up to %d tokens cost less than %.1f times one of a single token, which takes %.1f ms; "
        "%d of %d points measured in %.1f s",
        *(knee(costs), KNEE, costs[0].pass_ms, len(costs), len(points), seconds),
    )
    keep_profile(folder, key, costs)
    return costs


def profile_key(
    checkpoint: Checkpoint, engine: Engine, num_ranks: int, points: Sequence[Point], budget_s: float
) -> dict[str, Any]:
    """All that a profile depends on: what is run, by which code, on what, and how much of it was asked for."""
    return {
        "model": checkpoint.model,
        "checkpoint": fingerprint(checkpoint.folder),
        "dtype": engine.spec.dtype,
        "device": device_name(engine.device),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "num_ranks": num_ranks,
        "block_size": engine.block_size,
        "is_compiled": engine.is_compiled,
        "forward": engine.forward_name,
        "code": _code_hash(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "points": [[point.num_tokens, point.context_len] for point in points],
        "budget_s": budget_s,
    }


def load_profile(folder: Path, key: dict[str, Any]) -> list[PassCost] | None:
    """The profile that was kept for this key; None where there is none that can be used."""
    file = _file(folder, key)
    try:
        kept = json.loads(file.read_bytes())
        if kept["key"] != key:
            raise ValueError("it is of another target")
        costs = [PassCost(Point(int(n), int(context)), float(ms)) for n, context, ms in kept["pass_costs"]]
        asked = key["points"][: len(costs)]
        if not costs or [[cost.point.num_tokens, cost.point.context_len] for cost in costs] != asked:
            raise ValueError("its points are not those asked for")
        if not all(math.isfinite(cost.pass_ms) and cost.pass_ms >= 0 for cost in costs):
            raise ValueError("its times are no times")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as err:
        _log.warning("the cost profile %s can't be used, it is measured again: %s: %s", file, type(err).__name__, err)
        return None
    return costs


def keep_profile(folder: Path, key: dict[str, Any], costs: Sequence[PassCost]) -> None:
    """Keep a profile, whole or not at all. Where that fails the log says so, and the next start measures again."""
    rows = [[cost.point.num_tokens, cost.point.context_len, cost.pass_ms] for cost in costs]
    file = _file(folder, key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="incomplete-") as parent:
            unfinished = Path(parent) / file.name
            unfinished.write_text(json.dumps({"key": key, "pass_costs": rows}, indent=1), encoding="utf-8")
            os.replace(unfinished, file)
    except OSError as err:
        _log.warning("the cost profile can't be kept as %s: %s", file, err)


def device_name(device: torch.device) -> str:
    """What the hardware calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_name()


@cache
def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # no Linux
        found = None
    return found[1] if found else f"{platform.machine()} {platform.processor()}".strip()


@cache
def _code_hash() -> str:
    """Of the engine's own sources, kernels among them."""
    files = sorted(path for path in _CODE.rglob("*") if path.suffix in _CODE_SUFFIXES)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(_CODE)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _file(folder: Path, key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", key["model"])[:60]
    return folder / f"{name}-{digest}.json"
