"""The settings of a cell about TLS and tokens, the command that makes a token, and the probe."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import grpc.aio
import pytest
from typer.testing import CliRunner

from cluster import probe
from cluster.announcement import announcement
from cluster.cli import app
from cluster.config import load_config
from cluster.errors import ConfigError
from cluster.server_configs import cell_tls, drafter_config, scheduler_config, target_config
from outrider.tls import CellTls
from scheduler.server import SchedulerConfig, SchedulerServer
from scheduler.tokens import digest_of, read_tokens
from tests.security.conftest import Folder

TLS = {"certificate": "/t/tls.crt", "key": "/t/tls.key", "ca": "/t/ca.crt"}
EXPECTED = CellTls(certificate=Path("/t/tls.crt"), key=Path("/t/tls.key"), ca=Path("/t/ca.crt"))


def test_every_process_of_the_cell_is_told_of_its_files() -> None:
    cell = load_config(None, {"tls": TLS, "target": {"model": "m"}, "auth": {"tokens_file": "/a/tokens.toml"}})
    scheduler = scheduler_config(cell, "127.0.0.1:0")
    assert scheduler.tls == EXPECTED
    assert scheduler.tokens_file == Path("/a/tokens.toml")
    assert target_config(cell, 1, "127.0.0.1", None).tls == EXPECTED
    assert drafter_config(cell, cell.drafters[0], 1, "127.0.0.1").tls == EXPECTED


@pytest.mark.parametrize(("settings", "scheme"), [({}, "http"), ({"tls": TLS}, "https")])
def test_a_cell_says_where_its_metrics_are(settings: dict[str, object], scheme: str) -> None:
    cell = load_config(None, settings)
    assert announcement(cell, "h:1", "h:2") == [*announcement(cell, "h:1"), f"Metrics: {scheme}://h:2/metrics"]


def test_without_a_section_nothing_is_encrypted_and_nobody_is_asked() -> None:
    cell = load_config(None, {})
    assert cell_tls(cell) is None
    assert scheduler_config(cell, "127.0.0.1:0").tokens_file is None


def test_a_relative_path_is_taken_from_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cell = load_config(None, {"tls": TLS | {"ca": "ca.crt"}})
    assert cell.tls is not None
    assert cell.tls.ca == tmp_path / "ca.crt"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tls": {"certificate": "/t/tls.crt", "key": "/t/tls.key"}}, "tls.ca is missing"),
        ({"tls": TLS | {"cert": "/t"}}, "tls.cert is unknown: the keys here are certificate, key, ca"),
        ({"auth": {}}, "auth.tokens_file is missing"),
        ({"auth": {"tokens_file": "/a"}, "scheduler": {"listen": "0.0.0.0:50051"}}, "shows tokens: set [tls]"),
    ],
)
def test_what_can_not_be_meant_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, settings)
    assert words in raised.value.message


def test_a_token_is_shown_once_and_its_lines_let_it_in(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["token", "search"])
    assert done.exit_code == 0
    token = done.stderr.strip().rpartition(" ")[2]
    assert token not in done.stdout
    [entry] = tomllib.loads(done.stdout)["tenants"]
    assert entry == {"name": "search", "tokens": [digest_of(token)]}
    file = tmp_path / "tokens.toml"
    file.write_text(done.stdout, encoding="utf-8")
    tenant = read_tokens(file).tenant_of(token)
    assert tenant is not None
    assert tenant.name == "search"


def test_a_tenants_name_that_the_file_would_not_take_is_refused() -> None:
    done = CliRunner().invoke(app, ["token", "two words"])
    assert done.exit_code == 1
    assert "'two words'" in done.stderr


async def test_the_probe_asks_with_the_cells_files_and_needs_no_token(files: Folder, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[[tenants]]\nname = "one"\ntokens = ["{digest_of("x")}"]\n', encoding="utf-8")
    server = SchedulerServer(SchedulerConfig(listen="127.0.0.1:0", tls=files.cell, tokens_file=tokens))
    address = await server.start()
    config = tmp_path / "cell.toml"
    lines = [f'{name} = "{getattr(files.cell, name)}"' for name in ("certificate", "key", "ca")]
    config.write_text("\n".join([f'scheduler.listen = "{address}"', "[tls]", *lines]), encoding="utf-8")
    try:
        assert await probe.is_serving(config) is False, "it answers, and there is no target yet"
    finally:
        await server.stop(0)
    with pytest.raises(grpc.aio.AioRpcError):
        await probe.is_serving(config)


def test_the_probes_command_fails_where_nobody_serves(tmp_path: Path) -> None:
    config = tmp_path / "cell.toml"
    config.write_text('scheduler.listen = "127.0.0.1:1"\n', encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "cluster.probe", str(config)], timeout=60, check=False)
    assert done.returncode == 1
