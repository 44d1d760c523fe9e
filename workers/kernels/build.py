"""The CPU kernels, compiled for this machine the first time that it needs them, and kept.

They are torch operators written in C++ for a compiler's vector extension, so that one source serves AVX2, AVX-512 and
NEON; which of these the machine has is known when it is compiled there (-march=native). The key of a compiled library
covers all that it depends on: sources, flags, compiler, torch and the machine's own features.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor
from torch.utils import cpp_extension

# Whether a product and a sum may become one operation, rounded once. Never in the noise: torch's round twice.
_SOURCES = {"linear.cpp": "fast", "attention.cpp": "fast", "choice.cpp": "off"}
_HEADERS = ("simd.h", "noise.h", "limits.h")
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fPIC")
_BUILD_TIMEOUT_S = 600.0
_SLOW = "the forward and the choice run in plain torch, several times slower"
_FOLDER = Path(__file__).parent
_log = logging.getLogger(__name__)
_lock = threading.Lock()
_is_loaded = False


def load_kernels(cache_dir: Path) -> bool:
    """Make the operators of `torch.ops.outrider` known. False, with a warning, where they can't be compiled.

    Once a process, whatever folders and threads its engines have: torch ends a process that defines them twice.
    """
    global _is_loaded
    with _lock:
        _is_loaded = _is_loaded or _load(cache_dir)
        return _is_loaded


def are_kernels_loaded() -> bool:
    """Whether `load_kernels` has succeeded in this process."""
    return _is_loaded


def _load(cache_dir: Path) -> bool:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        _log.warning("%s: no C++ compiler is here (c++, g++ or $CXX)", _SLOW)
        return False
    try:
        library = _built(compiler, cache_dir / "kernels")
    except (subprocess.SubprocessError, OSError) as err:
        reason = getattr(err, "stderr", None) or str(err)
        _log.warning("%s: the CPU kernels can't be compiled: %s", _SLOW, reason)
        return False
    torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    _register_shapes()
    return True


def _built(compiler: str, folder: Path) -> Path:
    """The library for this machine; whoever comes first compiles it, others wait."""
    library = folder / f"outrider-{_key(compiler)}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(library.with_suffix(".lock")):
        if not library.exists():
            _log.info("compiling the CPU kernels for this machine, once; it takes about half a minute")
            with tempfile.TemporaryDirectory(dir=folder, prefix="incomplete-") as parent:
                _compile(compiler, Path(parent))
                os.replace(Path(parent) / "kernels.so", library)
    return library


def _compile(compiler: str, folder: Path) -> None:
    """Each source by a process of its own, then one that links. Raises SubprocessError or OSError."""
    includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    objects = [folder / f"{source}.o" for source in _SOURCES]
    commands = [
        [compiler, *_FLAGS, f"-ffp-contract={contract}", *includes, "-c", str(_FOLDER / source), "-o", str(target)]
        for (source, contract), target in zip(_SOURCES.items(), objects, strict=True)
    ]
    with ExitStack() as stack:
        running = [stack.enter_context(_Compiler(command)) for command in commands]
        for process, command in zip(running, commands, strict=True):
            _, errors = process.communicate(timeout=_BUILD_TIMEOUT_S)
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, command, stderr=errors[-2000:])
    libraries = [part for path in cpp_extension.library_paths() for part in (f"-L{path}",)]
    link = [compiler, "-shared", "-fopenmp", *map(str, objects), *libraries, "-lc10", "-ltorch_cpu", "-ltorch"]
    subprocess.run(
        [*link, "-o", str(folder / "kernels.so")], check=True, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S
    )


class _Compiler(subprocess.Popen[str]):
    """A compiler at work, which is not left behind, and whose pipes are closed."""

    def __init__(self, command: list[str]) -> None:
        super().__init__(command, stderr=subprocess.PIPE, text=True)

    def __exit__(self, *raised: Any) -> None:
        self.kill()
        super().__exit__(*raised)


def _key(compiler: str) -> str:
    macros = [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]  # the compiler's version among them
    target = subprocess.run(macros, check=True, capture_output=True, timeout=_BUILD_TIMEOUT_S)
    sources = [(_FOLDER / name).read_bytes() for name in (*_SOURCES, *_HEADERS)]
    parts = [*sources, " ".join((*_FLAGS, *_SOURCES.values())).encode(), torch.__version__.encode(), target.stdout]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _register_shapes() -> None:
    """What the compiler must know of the operators to lay out memory around them."""
    torch.library.register_fake("outrider::linear", _linear_shape)
    torch.library.register_fake("outrider::paged_attention", _attention_shape)


def _linear_shape(
    x: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    weight: Tensor | None,
    num_outputs: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], num_outputs))


def _attention_shape(query: Tensor, *others: object) -> Tensor:
    return query.new_empty((1, query.shape[2], query.shape[1], query.shape[3]))
