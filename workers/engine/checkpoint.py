"""From whatever names a model to a local safetensors folder that the engine can load.

source                        becomes
folder with safetensors       itself
.gguf file, folder with one   a converted folder in the cache, keyed by the file's sha256
name on the Hugging Face hub  the hub client's own cached snapshot, then one of the above
heads that tensor_parallel    a copy in the cache with zero heads added (`head_padding.py`)
does not divide
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from outrider.errors import InvalidRequest, ModelNotFound
from workers.engine.convert_gguf import convert_gguf
from workers.engine.head_padding import HeadPadding, pad_heads, padding_for

DEFAULT_CACHE_DIR = Path("~/.cache/outrider")
_log = logging.getLogger(__name__)
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
_HUB_IGNORED = ["*/*"]  # other formats of the same weights lie in subfolders


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A safetensors folder with config.json and the tokenizer's files, ready for `load_model`."""

    folder: Path
    model: str  # the name under which it is served
    padding: HeadPadding | None = None
    origin: Path | None = None  # where it comes from, if that is another folder: what else lies there was not copied


def prepare_checkpoint(source: str, *, tensor_parallel: int = 1, cache_dir: Path | None = None) -> Checkpoint:
    """The checkpoint behind `source`: a folder, a .gguf file or a hub name.

    Downloads, conversions and padded copies are made once and kept; processes that ask for the same one at the
    same time wait for the first. Raises ModelNotFound where nothing is there, InvalidRequest or Unsupported where
    what is there can't be served on this many ranks.
    """
    cache = _Cache((cache_dir or DEFAULT_CACHE_DIR).expanduser() / "checkpoints")
    path = Path(source).expanduser()
    if not path.exists():
        path, name = _download(source), source
    else:
        path = path.resolve()
        name = path.name
    origin = path if path.is_dir() else path.parent
    gguf_file = _gguf_file(path)
    if gguf_file is not None:
        name = gguf_file.stem if name == path.name else name
        key = f"{gguf_file.stem}-{_sha256(gguf_file)}"
        path = cache.folder(key, lambda folder: convert_gguf(gguf_file, folder))
    return _pad(Checkpoint(path, name, origin=origin), tensor_parallel, cache)


def _pad(checkpoint: Checkpoint, tensor_parallel: int, cache: _Cache) -> Checkpoint:
    padding = padding_for(checkpoint.folder, tensor_parallel)
    if padding is None:
        return checkpoint
    key = f"{checkpoint.folder.name}-{fingerprint(checkpoint.folder)}-{padding.num_padded_heads}h"
    folder = cache.folder(key, lambda target: pad_heads(checkpoint.folder, target, padding))
    return Checkpoint(folder, checkpoint.model, padding, checkpoint.origin)


def _download(source: str) -> Path:
    """A hub repository's safetensors snapshot, or its only GGUF file."""
    try:
        folder = Path(snapshot_download(source, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED))
        if any(folder.glob("*.safetensors")):
            return folder
        names = [name for name in HfApi().list_repo_files(source) if name.endswith(".gguf")]
        if len(names) != 1:
            raise InvalidRequest.of("model", source, f"the repository has no safetensors and {len(names)} GGUF files")
        return Path(hf_hub_download(source, names[0]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as err:
        raise ModelNotFound(f"model {source!r} is neither a local path nor to be had from the hub: {err}") from err


def _gguf_file(path: Path) -> Path | None:
    """The GGUF file that must be converted first; None for a folder with safetensors."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise InvalidRequest.of("model", str(path), "a file must be a .gguf; for safetensors name the folder")
        return path
    if any(path.glob("*.safetensors")):
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        raise InvalidRequest.of("model", str(path), f"the folder has no safetensors and {len(files)} GGUF files")
    return files[0]


class _Cache:
    """Folders that are made once, whole or not at all, by whichever process comes first."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, key: str, build: Callable[[Path], None]) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        final = self._root / key
        with filelock.FileLock(self._root / f"{key}.lock"):
            if not final.exists():
                with tempfile.TemporaryDirectory(dir=self._root, prefix="incomplete-") as parent:
                    unfinished = Path(parent) / key
                    unfinished.mkdir()
                    build(unfinished)
                    os.replace(unfinished, final)
                    _log.info("kept as %s", final)
        return final


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()[:16]


def fingerprint(folder: Path) -> str:
    """Changes when a file of the folder does, without reading what may be hundreds of gigabytes."""
    seen = [str(folder.resolve())]
    for file in sorted(folder.iterdir()):
        stat = file.stat()
        seen.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]
