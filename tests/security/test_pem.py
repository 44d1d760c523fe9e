"""Certificates and keys that are looked at before they are used, and what is said of bad ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from outrider.errors import InvalidRequest
from outrider.tls import CellChannels, Credentials, Tls
from tests.security.authority import Authority, Issued
from tests.security.conftest import Folder


def encrypted(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
    )


def spoil(what: str, folder: Folder, authority: Authority, foreigner: Authority) -> None:
    """Make the files bad in one way."""
    good = authority.issue()
    match what:
        case "expired":
            folder.renew(authority, authority.issue(is_expired=True))
        case "of another name":
            folder.renew(authority, authority.issue("somebody"))
        case "signed by another":
            folder.renew(authority, foreigner.issue())
        case "another's key":
            folder.renew(authority, Issued(good.certificate, authority.issue().key))
        case "a key with a password":
            folder.renew(authority, Issued(good.certificate, encrypted(good.key)))
        case "half a certificate":
            folder.renew(authority, Issued(good.certificate[:100], good.key))
        case "no key":
            folder.cell.key.unlink()
        case "an empty ca":
            folder.cell.ca.write_bytes(b"")


BAD = {
    "expired": "certificate has expired",
    "of another name": "outrider-cell",
    "signed by another": "unable to get local issuer certificate",
    "another's key": "its own, unencrypted key",
    "a key with a password": "its own, unencrypted key",
    "half a certificate": "its own, unencrypted key",
    "no key": "No such file",
    "an empty ca": "it must hold certificates in PEM",
}


@pytest.mark.parametrize("what", BAD)
def test_a_process_does_not_start_with_files_that_its_own_cell_would_refuse(
    files: Folder, authority: Authority, foreigner: Authority, what: str
) -> None:
    CellChannels(files.cell)
    spoil(what, files, authority, foreigner)
    with pytest.raises(InvalidRequest, match=BAD[what]) as raised:
        CellChannels(files.cell)
    assert str(files.path) in raised.value.message


def test_the_name_of_a_cell_can_be_another(files: Folder, authority: Authority) -> None:
    files.renew(authority, authority.issue("cell-7"))
    CellChannels(replace(files.cell, name="cell-7"))


def test_a_clients_own_certificate_need_not_be_signed_by_whom_it_trusts(
    files: Folder, authority: Authority, foreigner: Authority
) -> None:
    files.renew(authority, foreigner.issue("me"))
    Credentials(files.client)


@pytest.mark.parametrize("what", ["another's key", "half a certificate", "no key", "an empty ca"])
def test_a_clients_files_that_can_not_be_used_are_refused_with_their_name(
    files: Folder, authority: Authority, foreigner: Authority, what: str
) -> None:
    spoil(what, files, authority, foreigner)
    with pytest.raises(InvalidRequest, match=BAD[what]):
        Credentials(files.client)


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"tls.certificate is 'c.pem': .* tls.key, .*: give both or none"):
        Tls(certificate=Path("c.pem"))
    with pytest.raises(InvalidRequest, match=r"tls.key is 'k.pem': .* tls.certificate, .*: give both or none"):
        Tls(key=Path("k.pem"))


@pytest.mark.parametrize("field", ["ca", "certificate", "key"])
def test_a_file_that_is_not_there_is_named_by_its_field(files: Folder, field: str) -> None:
    gone = str(files.path / "gone.pem")
    for open_it, settings in ((CellChannels, files.cell), (Credentials, files.client)):
        with pytest.raises(InvalidRequest) as raised:
            open_it(replace(settings, **{field: Path(gone)}))
        assert raised.value.message.startswith(f"tls.{field} is '{gone}': it can't be read (No such file")
