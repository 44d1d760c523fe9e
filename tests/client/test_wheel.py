"""What a user installs: the wheel alone, in a fresh environment, against a server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.client.command import run_piped
from tests.client.fake_inference import TEXT, TOKEN_IDS

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"

PROGRAM = """
import sys
from outrider import Client, SamplingParams

with Client(sys.argv[1]) as client:
    for token in client.generate("Why?", sampling=SamplingParams(seed=7)):
        sys.stdout.write(token.text)
"""


def run(*arguments: str | Path) -> str:
    done = subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing left by an earlier build gets in, and none is left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT / "client", folder / "client", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    )
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "client")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment that holds the wheel and what it declares."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    constraints = ["-c", CONSTRAINTS] if CONSTRAINTS.exists() else []
    run(programs / "python", "-m", "pip", "install", "--quiet", *constraints, wheel)
    return programs


@pytest.mark.timeout(300)
def test_the_wheel_holds_no_top_level_name_but_outrider(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"outrider"}
    assert {"outrider/py.typed", "outrider/v1/inference_pb2.py", "outrider/v1/inference_pb2.pyi"} <= set(names)


@pytest.mark.timeout(300)
def test_only_what_the_client_declares_comes_along(environment: Path) -> None:
    listed = json.loads(run(environment / "python", "-m", "pip", "list", "--format", "json"))
    names = {package["name"].lower() for package in listed}
    assert {"outrider", "grpcio", "protobuf", "rich", "typer"} <= names
    assert names.isdisjoint({"torch", "ray", "transformers", "tokenizers", "numpy", "outrider-server"})
    assert "No broken requirements" in run(environment / "python", "-m", "pip", "check")


@pytest.mark.timeout(300)
def test_the_installed_command_talks_to_a_server(environment: Path, server: str) -> None:
    done = run_piped("generate", "Why?", "--server", server, "--json", command=[str(environment / "outrider")])
    assert (done.stderr, done.returncode) == ("", 0)
    assert json.loads(done.stdout.splitlines()[-1])["token_ids"] == list(TOKEN_IDS)


@pytest.mark.timeout(300)
def test_the_installed_package_talks_to_a_server(environment: Path, server: str) -> None:
    done = run_piped(PROGRAM, server, command=[str(environment / "python"), "-I", "-c"])
    assert (done.stdout, done.stderr, done.returncode) == (TEXT, "", 0)
