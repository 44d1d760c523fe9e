"""A whole cell whose processes show each other certificates, and clients that are let in, or not, and why."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from outrider import Client, SamplingParams, Tls
from outrider.errors import ServerUnavailable, Unauthenticated
from outrider.v1 import inference_pb2 as pb
from outrider.v1 import worker_pb2
from outrider.v1.drafter_pb2_grpc import DrafterStub
from outrider.v1.inference_pb2_grpc import InferenceStub
from outrider.v1.target_pb2_grpc import TargetStub
from scheduler.server import SchedulerConfig
from scheduler.tokens import digest_of, new_token
from tests.security.authority import Authority, Issued, put
from tests.security.conftest import Folder
from tests.serving.conftest import drafter_config, target_config
from tests.serving.local_cell import LocalCell, local_cell
from tests.tiny import save_tiny_llama

GREEDY = SamplingParams(max_tokens=24, temperature=0.0)
DRAWN = SamplingParams(max_tokens=24, temperature=0.8, seed=11)
PROMPT = [5, 6, 7, 8, 5, 6, 7]
TOKEN = new_token()
TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("cell"))
    folder.renew(authority)
    return folder


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory, tiny: Path, files: Folder) -> Iterator[LocalCell]:
    """Asks clients for both, a certificate and a token."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens.write_text(f'[[tenants]]\nname = "tests"\ntokens = ["{digest_of(TOKEN)}"]\n', encoding="utf-8")
    tls = replace(files.cell, requires_client_certificate=True)
    scheduler = SchedulerConfig(listen="127.0.0.1:0", tls=tls, tokens_file=tokens, draft_wait_s=TIMEOUT_S)
    target = replace(target_config(tiny), tls=files.cell)
    drafters = [replace(drafter_config(f"model:{tiny}"), tls=files.cell)]
    with local_cell(target, drafters, scheduler, lambda at: Client(at, tls=files.client, token=TOKEN)) as running:
        yield running


def saved(folder: Path, authority: Authority, issued: Issued) -> Folder:
    return Folder(put(folder, authority, issued))


def test_with_certificates_everywhere_the_tokens_are_the_same_as_without(
    cell: LocalCell, tiny: Path, files: Folder
) -> None:
    with Client(cell.endpoint, tls=files.client, token=TOKEN) as client:
        encrypted = [client.generate(PROMPT, sampling=how).result() for how in (GREEDY, DRAWN)]
    with local_cell(target_config(tiny), [drafter_config("ngram")]) as plain, Client(plain.endpoint) as client:
        expected = [client.generate(PROMPT, sampling=how).result().token_ids for how in (GREEDY, DRAWN)]
    assert [answer.token_ids for answer in encrypted] == expected
    assert encrypted[0].speculation.num_accepted_tokens > 0, "the drafter takes part"


def test_a_client_without_a_certificate_is_not_connected(cell: LocalCell, files: Folder) -> None:
    with Client(cell.endpoint, tls=Tls(ca=files.client.ca), token=TOKEN) as client, pytest.raises(ServerUnavailable):
        client.model_info()


def test_a_client_with_an_expired_certificate_is_not_connected(
    cell: LocalCell, authority: Authority, tmp_path: Path
) -> None:
    late = saved(tmp_path / "late", authority, authority.issue(is_expired=True))
    with Client(cell.endpoint, tls=late.client, token=TOKEN) as client, pytest.raises(ServerUnavailable):
        client.model_info()


def test_a_client_with_a_foreign_certificate_is_not_connected(
    cell: LocalCell, authority: Authority, foreigner: Authority, tmp_path: Path
) -> None:
    foreign = saved(tmp_path / "foreign", authority, foreigner.issue())
    with Client(cell.endpoint, tls=foreign.client, token=TOKEN) as client, pytest.raises(ServerUnavailable):
        client.model_info()


def test_a_client_does_not_talk_to_a_server_whose_certificate_another_has_signed(
    cell: LocalCell, authority: Authority, foreigner: Authority, tmp_path: Path
) -> None:
    trusting_another = saved(tmp_path / "other", foreigner, authority.issue())
    with (
        Client(cell.endpoint, tls=trusting_another.client, token=TOKEN) as client,
        pytest.raises(ServerUnavailable, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.model_info()


def test_a_client_does_not_talk_to_a_server_of_another_name(cell: LocalCell, files: Folder) -> None:
    elsewhere = Tls(
        ca=files.client.ca, certificate=files.client.certificate, key=files.client.key, server_name="elsewhere"
    )
    with (
        Client(cell.endpoint, tls=elsewhere, token=TOKEN) as client,
        pytest.raises(ServerUnavailable, match="Hostname"),
    ):
        client.model_info()


@pytest.mark.parametrize("token", [None, new_token(), TOKEN[:-1], ""], ids=["none", "another", "cut short", "empty"])
def test_a_client_without_its_token_is_unauthenticated(cell: LocalCell, files: Folder, token: str | None) -> None:
    with Client(cell.endpoint, tls=files.client, token=token) as client:
        with pytest.raises(Unauthenticated):
            client.generate(PROMPT, sampling=GREEDY).result()
        with pytest.raises(Unauthenticated):
            client.server_info()


def test_a_client_without_tls_is_not_understood(cell: LocalCell) -> None:
    with grpc.insecure_channel(cell.endpoint) as channel, pytest.raises(grpc.RpcError) as raised:
        InferenceStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("worker", ["target", "drafter"])
def test_a_worker_refuses_a_client_whose_certificate_is_not_of_the_cell(
    cell: LocalCell, authority: Authority, worker: str
) -> None:
    users = authority.issue("a-user")
    address = cell.target_address if worker == "target" else next(iter(cell.drafters))
    stub = TargetStub if worker == "target" else DrafterStub
    credentials = grpc.ssl_channel_credentials(authority.certificate, users.key, users.certificate)
    with grpc.secure_channel(address, credentials) as channel:
        for call in (
            lambda: stub(channel).Describe(worker_pb2.DescribeRequest(), timeout=TIMEOUT_S),
            lambda: next(iter(stub(channel).Connect(iter([]), timeout=TIMEOUT_S))),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                call()
            assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_certificates_replaced_under_load_end_no_stream_and_serve_who_comes_next(
    tmp_path: Path, authority: Authority
) -> None:
    """Every process's files, and the authority's own, while streams run; later links and clients are made anew."""
    model = save_tiny_llama(tmp_path / "model", max_context=1024)
    cells, users, others = Folder(tmp_path / "cell"), Folder(tmp_path / "users"), Folder(tmp_path / "others")
    for folder in (cells, users, others):
        folder.renew(authority)
    scheduler = SchedulerConfig(listen="127.0.0.1:0", tls=replace(cells.cell, requires_client_certificate=True))
    target = replace(target_config(model), tls=cells.cell)
    drafters = [replace(drafter_config("ngram"), tls=cells.cell)]
    long = replace(DRAWN, max_tokens=900, ignore_eos=True)
    with (
        local_cell(target, drafters, scheduler, lambda at: Client(at, tls=users.client)) as cell,
        Client(cell.endpoint, tls=users.client, resuming=None) as client,
    ):
        expected = client.generate(PROMPT, sampling=DRAWN).result().token_ids
        running = [client.generate(PROMPT, sampling=long) for _ in range(4)]
        halves = [iter(generation) for generation in running]
        begun = [next(half).id for half in halves]
        new = Authority("new")
        cells.renew(new)
        users.renew(new)
        assert client.generate(PROMPT, sampling=DRAWN).result().token_ids == expected, "on a new connection"
        assert cell.held()["calls"] == 4, "the streams are still running"
        whole = [(first, *(token.id for token in half)) for first, half in zip(begun, halves, strict=True)]
        assert len(whole[0]) == 900
        assert set(whole) == {whole[0]}
        with Client(cell.endpoint, tls=others.client) as stranger, pytest.raises(ServerUnavailable):
            stranger.model_info()
        cell.restart_scheduler()
        cell.wait_ready()
        assert client.generate(PROMPT, sampling=DRAWN).result().token_ids == expected, "links by the new files"


def test_a_worker_with_a_foreign_certificate_gets_no_link_and_is_shown_with_the_reason(
    cell: LocalCell, files: Folder, foreigner: Authority, tmp_path: Path
) -> None:
    foreign = Folder(tmp_path / "foreign")
    foreign.renew(foreigner)
    done = threading.Event()
    with (
        cell.another_drafter(replace(drafter_config("ngram"), tls=foreign.cell)) as address,
        Client(cell.endpoint, tls=files.client, token=TOKEN) as client,
    ):
        for _ in range(200):
            [worker] = [worker for worker in client.server_info().drafters if worker.name == address]
            if worker.detail:
                break
            done.wait(0.05)
        assert worker.state == "connecting"
        assert "CERTIFICATE_VERIFY_FAILED" in worker.detail
        assert client.server_info().state == "degraded"
        assert client.generate(PROMPT, sampling=GREEDY).result().finish_reason
