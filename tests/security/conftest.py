"""Certificates on disk, and a tiny cell that uses them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from outrider import Tls
from outrider.tls import CellTls
from tests.security.authority import Authority, Issued, put
from tests.tiny import save_tiny_llama


@dataclass(frozen=True)
class Folder:
    """A folder with ca.pem, cert.pem and key.pem."""

    path: Path

    @property
    def cell(self) -> CellTls:
        return CellTls(certificate=self.path / "cert.pem", key=self.path / "key.pem", ca=self.path / "ca.pem")

    @property
    def client(self) -> Tls:
        return Tls(ca=self.path / "ca.pem", certificate=self.path / "cert.pem", key=self.path / "key.pem")

    def renew(self, authority: Authority, issued: Issued | None = None) -> Issued:
        issued = issued or authority.issue()
        put(self.path, authority, issued)
        return issued


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="session")
def foreigner() -> Authority:
    return Authority("foreign")


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Folder:
    """Good files of a process of the cell."""
    folder = Folder(tmp_path / "tls")
    folder.renew(authority)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))
