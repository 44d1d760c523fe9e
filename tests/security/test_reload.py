"""Files that are replaced while somebody uses them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from outrider.errors import InvalidRequest
from outrider.reload import Reloaded


def number_in(file: Path) -> int:
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise InvalidRequest.of("file", str(file), "it must hold a number") from err


def replace_with(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def test_a_replaced_file_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    file, num_reads = tmp_path / "file", 0

    def load() -> int:
        nonlocal num_reads
        num_reads += 1
        return number_in(file)

    file.write_text("1", encoding="utf-8")
    reloaded = Reloaded([file], load)
    assert [reloaded.refresh(), reloaded.refresh(), num_reads] == [1, 1, 1]
    replace_with(file, "2")
    assert reloaded.last == 1
    assert [reloaded.refresh(), reloaded.refresh(), num_reads] == [2, 2, 2]


def test_a_file_that_is_no_good_at_first_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="it must hold a number"):
        Reloaded([tmp_path / "file"], lambda: number_in(tmp_path / "file"))


@pytest.mark.parametrize("bad", ["", "one", None])
def test_a_bad_replacement_is_said_once_and_what_was_there_is_kept_until_a_good_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str | None
) -> None:
    file = tmp_path / "file"
    file.write_text("1", encoding="utf-8")
    reloaded = Reloaded([file], lambda: number_in(file))
    file.unlink() if bad is None else replace_with(file, bad)
    assert [reloaded.refresh() for _ in range(3)] == [1, 1, 1]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert str(file) in errors[0]
    assert "it must hold a number" in errors[0]
    replace_with(file, "2")
    assert reloaded.refresh() == 2


def test_a_folder_behind_a_link_that_moves_on_is_seen_as_kubernetes_moves_it(tmp_path: Path) -> None:
    for number in ("1", "2"):
        (tmp_path / number).mkdir()
        (tmp_path / number / "file").write_text(number, encoding="utf-8")
    data, file = tmp_path / "..data", tmp_path / "file"
    data.symlink_to("1")
    file.symlink_to("..data/file")
    reloaded = Reloaded([file], lambda: number_in(file))
    (tmp_path / "..tmp").symlink_to("2")
    (tmp_path / "..tmp").replace(data)
    assert reloaded.refresh() == 2
