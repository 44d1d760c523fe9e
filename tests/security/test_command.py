"""The `outrider` command at a server that encrypts and asks who is there: what it sends, and what it says."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from cluster.announcement import announcement
from cluster.config import load_config
from outrider import Client, Tls, rpc
from outrider.errors import InvalidRequest, ServerUnavailable
from outrider.terminal import explain
from outrider.v1 import inference_pb2_grpc
from tests.client.command import run_piped
from tests.client.fake_inference import TEXT, WAIT_S, FakeInference, serving
from tests.ports import free_address
from tests.security.authority import Authority
from tests.security.conftest import Folder

TOKEN = "a-token"


class Noting(FakeInference):
    """Notes the metadata of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.authorizations: list[str | bytes | None] = []

    def Generate(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        self.authorizations.append(dict(context.invocation_metadata()).get("authorization"))
        return super().Generate(request, context)


@contextmanager
def encrypted(fake: FakeInference, authority: Authority, *, asks: bool) -> Iterator[str]:
    issued = authority.issue()
    server = grpc.server(ThreadPoolExecutor(max_workers=4), options=rpc.server_options())
    inference_pb2_grpc.add_InferenceServicer_to_server(fake, server)
    pairs = [(issued.key, issued.certificate)]
    credentials = grpc.ssl_server_credentials(pairs, authority.certificate, require_client_auth=asks)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        assert server.stop(grace=None).wait(WAIT_S)


@pytest.mark.parametrize("command", [["generate", "Why?"], ["chat", "-m", "Hi"]])
def test_options_name_the_files_and_the_token_goes_along(
    files: Folder, authority: Authority, command: list[str]
) -> None:
    tls = files.client
    options = ["--tls-ca", str(tls.ca), "--tls-cert", str(tls.certificate), "--tls-key", str(tls.key)]
    fake = Noting()
    with encrypted(fake, authority, asks=True) as server:
        done = run_piped(*command, "--server", server, *options, "--token", TOKEN)
    assert (done.stdout, done.returncode) == (TEXT + "\n", 0)
    assert fake.authorizations == [f"Bearer {TOKEN}"]


def test_variables_do_what_the_options_do(files: Folder, authority: Authority) -> None:
    tls = files.client
    variables = {
        "OUTRIDER_TLS_CA": str(tls.ca),
        "OUTRIDER_TLS_CERT": str(tls.certificate),
        "OUTRIDER_TLS_KEY": str(tls.key),
        "OUTRIDER_TLS_NAME": "outrider-cell",
        "OUTRIDER_TOKEN": TOKEN,
    }
    fake = Noting()
    with encrypted(fake, authority, asks=True) as server:
        done = run_piped("generate", "Why?", OUTRIDER_SERVER=server, **variables)
        shown = run_piped("info", OUTRIDER_SERVER=server, **variables)
    assert (done.stdout, fake.authorizations) == (TEXT + "\n", [f"Bearer {TOKEN}"])
    assert (shown.returncode, "tiny" in shown.stdout) == (0, True)


@pytest.mark.parametrize("asks", [False, True])
def test_what_a_cell_says_to_try_reaches_it(files: Folder, authority: Authority, asks: bool) -> None:
    tls = {name: str(getattr(files.cell, name)) for name in ("certificate", "key", "ca")}
    settings = {"tls": tls | {"require_client_certificate": asks}, "auth": {"tokens_file": "/etc/tokens.toml"}}
    fake = Noting()
    with encrypted(fake, authority, asks=asks) as server:
        serves, hint = announcement(load_config(None, settings), server)
        own = {"YOUR_CERTIFICATE": tls["certificate"], "ITS_KEY": tls["key"], "OUTRIDER_TOKEN=TOKEN": TOKEN}
        token, outrider, *words = [own.get(word, word) for word in shlex.split(hint.removeprefix("Try:"))]
        done = run_piped(*words, OUTRIDER_TOKEN=token)
    assert serves == f"Outrider serves on {server}"
    assert outrider == "outrider"
    assert (done.stdout, done.returncode) == (TEXT + "\n", 0)
    assert fake.authorizations == [f"Bearer {TOKEN}"]
    assert words[-2:] == (["--tls-key", tls["key"]] if asks else ["--tls-name", "outrider-cell"])


def test_a_cell_without_tls_and_tokens_is_tried_without_options() -> None:
    hint = 'Try:  outrider generate "The capital of France is" --server localhost:1'
    assert announcement(load_config(None, {}), "localhost:1")[-1] == hint


def test_each_failure_of_tls_is_said_in_one_line_that_names_the_way_out(
    files: Folder, authority: Authority, foreigner: Authority, tmp_path: Path
) -> None:
    trusting_another = Folder(tmp_path / "other")
    trusting_another.renew(foreigner)
    ca, wrong_ca = ["--tls-ca", str(files.client.ca)], ["--tls-ca", str(trusting_another.client.ca)]
    with encrypted(FakeInference(), authority, asks=True) as asking, serving(FakeInference()) as plain:
        expected = {
            (asking, *wrong_ca): f"{asking} shows a certificate that is not trusted",
            (asking, *ca, "--tls-name", "elsewhere"): f"{asking} shows a certificate that is not trusted",
            (asking, *ca): f"{asking} hangs up",
            (asking,): f"{asking} hangs up",
            (plain, *ca): f"{plain} hangs up",
            (plain, "--tls-cert", "cert.pem"): "give both or none",
            (plain, "--tls-ca", "nowhere.pem"): "nowhere.pem",
        }
        for (server, *options), words in expected.items():
            done = run_piped("info", "--server", server, *options)
            [line] = [line for line in done.stderr.splitlines() if line.startswith("outrider: ")]
            assert words in line, options
            assert done.returncode == 1
    assert "is `outriderd up` running?" in run_piped("info", "--server", free_address(), *ca).stderr


def test_a_name_whose_last_address_refused_may_still_have_one_whose_certificate_is_not_trusted() -> None:
    refused = (
        "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:7: "
        "Failed to connect to remote host: Connection refused"
    )
    said = explain(ServerUnavailable(refused), "localhost:7")
    assert "cannot reach" not in said
    for possibility in ("is `outriderd up` running", "--tls-ca", "--server 127.0.0.1:7"):
        assert possibility in said
    assert explain(ServerUnavailable(refused), "[::1]:7") == "cannot reach [::1]:7: is `outriderd up` running?"


def test_a_certificate_that_is_not_trusted_is_never_a_server_that_is_not_there(
    authority: Authority, foreigner: Authority, tmp_path: Path
) -> None:
    other = Folder(tmp_path / "other")
    other.renew(foreigner)
    with encrypted(FakeInference(), authority, asks=False) as server:
        name = server.replace("127.0.0.1", "localhost")
        done = run_piped("info", "--server", name, "--tls-ca", str(other.client.ca))
    assert "cannot reach" not in done.stderr
    assert "--tls-ca" in done.stderr


@pytest.mark.parametrize("server", ["example.com:50051", "10.0.0.7:50051", "[2001:db8::1]:50051", "0.0.0.0:1"])
def test_a_token_is_not_sent_in_the_clear_to_another_machine(server: str) -> None:
    with pytest.raises(InvalidRequest, match="in the clear") as raised:
        Client(server, token=TOKEN)
    assert TOKEN not in raised.value.message
    Client(server, token=TOKEN, tls=Tls()).close()


@pytest.mark.parametrize("server", ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/tmp/socket", "dns:///localhost:1"])
def test_a_token_may_go_to_this_machine_in_the_clear(server: str) -> None:
    Client(server, token=TOKEN).close()


def test_tls_is_said_in_one_way_only() -> None:
    with pytest.raises(InvalidRequest, match="both given"):
        Client("localhost:1", tls=Tls(), credentials=grpc.ssl_channel_credentials())
