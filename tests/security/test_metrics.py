"""`/metrics` of a cell with certificates: over TLS alone, to those whom its port for clients would let in."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

import pytest
from cryptography import x509

from outrider.tls import CellTls
from scheduler.server import SchedulerConfig, SchedulerServer
from tests.security.authority import Authority
from tests.security.conftest import Folder

TIMEOUT_S = 30.0


@asynccontextmanager
async def scheduler(tls: CellTls) -> AsyncIterator[int]:
    """Serves metrics on this machine, at the port."""
    server = SchedulerServer(SchedulerConfig(listen="127.0.0.1:0", metrics_port=0, tls=tls))
    await server.start()
    assert server.metrics_address is not None
    try:
        yield int(server.metrics_address.rpartition(":")[2])
    finally:
        await server.stop(0)


class Scraper:
    """Trusts the authority of `trusted`; shows the certificate of `shown`, if any."""

    def __init__(self, trusted: Folder, shown: Folder | None = None) -> None:
        self._context = ssl.create_default_context(cafile=trusted.cell.ca)
        if shown is not None:
            self._context.load_cert_chain(shown.cell.certificate, shown.cell.key)

    async def read(self, port: int) -> tuple[str, int]:
        """What is there, and the serial number of the server's certificate."""
        return await asyncio.to_thread(self._read, port)

    def _read(self, port: int) -> tuple[str, int]:
        with closing(HTTPSConnection("localhost", port, timeout=TIMEOUT_S, context=self._context)) as connection:
            connection.connect()
            shown = connection.sock.getpeercert(binary_form=True)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            return text, x509.load_der_x509_certificate(shown).serial_number


async def test_who_trusts_the_authority_reads_them(files: Folder) -> None:
    async with scheduler(files.cell) as port:
        text, _ = await Scraper(files).read(port)
    assert "outrider:target_up" in text


async def test_who_speaks_no_tls_reads_nothing(files: Folder) -> None:
    def read(port: int) -> None:
        with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
            connection.request("GET", "/metrics")
            connection.getresponse()

    async with scheduler(files.cell) as port:
        with pytest.raises((HTTPException, ConnectionError)):
            await asyncio.to_thread(read, port)
        await Scraper(files).read(port)


async def test_where_clients_show_certificates_only_a_scraper_with_a_good_one_reads(
    files: Folder, authority: Authority, foreigner: Authority, tmp_path: Path
) -> None:
    ours, foreign, late = (Folder(tmp_path / name) for name in ("ours", "foreign", "late"))
    ours.renew(authority, authority.issue("prometheus"))
    foreign.renew(foreigner)
    late.renew(authority, authority.issue(is_expired=True))
    async with scheduler(replace(files.cell, requires_client_certificate=True)) as port:
        for shown in (None, foreign, late):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await Scraper(files, shown).read(port)
        text, _ = await Scraper(files, ours).read(port)
    assert "outrider:target_up" in text


async def test_a_certificate_that_is_renewed_is_shown_from_the_next_scrape_on(
    files: Folder, authority: Authority
) -> None:
    async with scheduler(files.cell) as port:
        _, before = await Scraper(files).read(port)
        renewed = files.renew(authority)
        _, after = await Scraper(files).read(port)
        files.cell.key.write_text("no key", encoding="utf-8")
        _, at_last = await Scraper(files).read(port)
    assert before != after == at_last == renewed.serial


async def test_who_connects_and_says_nothing_holds_up_nobody(files: Folder) -> None:
    async with scheduler(files.cell) as port:
        with socket.create_connection(("127.0.0.1", port)):
            text, _ = await Scraper(files).read(port)
    assert "outrider:target_up" in text
