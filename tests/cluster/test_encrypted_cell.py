"""A cell of actor processes that show each other certificates."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from outrider import AsyncClient, Tls
from outrider.errors import InvalidRequest, Unauthenticated
from outrider.types import SamplingParams
from scheduler.tokens import digest_of, new_token
from tests.cluster.conftest import TIMEOUT_S, MakeConfig, Returns, running
from tests.security.authority import Authority, put

pytestmark = pytest.mark.cluster

SAMPLING = SamplingParams(max_tokens=16, ignore_eos=True, temperature=0.0)
PROMPT = [5, 6, 7, 8, 5, 6]


async def test_a_cell_of_processes_starts_serves_and_heals_with_certificates_and_tokens(
    cell_config: MakeConfig, returns: Returns, tmp_path: Path
) -> None:
    authority, token = Authority(), new_token()
    folder = put(tmp_path / "tls", authority, authority.issue())
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[[tenants]]\nname = "tests"\ntokens = ["{digest_of(token)}"]\n', encoding="utf-8")
    paths = {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem"), "ca": str(folder / "ca.pem")}
    tls = paths | {"require_client_certificate": True}
    ours = Tls(ca=paths["ca"], certificate=paths["certificate"], key=paths["key"])
    async with running(cell_config(tls=tls, auth={"tokens_file": str(tokens)})) as cell, asyncio.timeout(TIMEOUT_S):
        async with AsyncClient(cell.endpoint, tls=ours) as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.model_info()
        async with AsyncClient(cell.endpoint, tls=ours, token=token) as client:
            answer = await client.generate(PROMPT, sampling=SAMPLING).result()
            assert len(answer.token_ids) == 16
            put(folder, authority, authority.issue())  # the drafter that comes back has the new files
            os.kill(cell.drafters[0].process_ids[0], signal.SIGKILL)
            assert await returns.next() == "drafter ngram"
            while [worker.state for worker in (await client.server_info()).drafters] != ["ready"]:
                pass
            assert (await client.generate(PROMPT, sampling=SAMPLING).result()).token_ids == answer.token_ids


async def test_a_cell_with_files_that_are_no_good_starts_nothing(cell_config: MakeConfig, tmp_path: Path) -> None:
    authority = Authority()
    folder = put(tmp_path / "tls", authority, authority.issue(is_expired=True))
    tls = {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem"), "ca": str(folder / "ca.pem")}
    with pytest.raises(InvalidRequest, match="certificate has expired"):
        async with running(cell_config(tls=tls)):
            pass
