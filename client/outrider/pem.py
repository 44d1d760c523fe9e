"""Certificates and keys in PEM files, looked at before they are used.

gRPC takes any bytes and fails at a handshake, which says little. So the files are tried here first: the key must fit,
and a process of a cell must be one that it would itself accept.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from outrider.errors import InvalidRequest

_MAX_TURNS = 10  # of a handshake, which takes three


@dataclass(frozen=True, slots=True)
class Pem:
    """The contents of the files. `ca`: the certificates of those whose signature is trusted."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class PemFiles:
    """Where they are. A certificate and its key come together."""

    ca: Path | None
    certificate: Path | None
    key: Path | None

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.ca, self.certificate, self.key) if path is not None]

    def read(self, check: Callable[[PemFiles], None]) -> Pem:
        """Their contents, as they were when `check` let them pass. Raises InvalidRequest, naming file and reason."""
        before = self._contents()
        check(self)
        if self._contents() != before:
            raise InvalidRequest.of("tls", [str(path) for path in self.paths], "the files are just being replaced")
        return before

    def _contents(self) -> Pem:
        return Pem(
            _bytes_of("tls.ca", self.ca),
            _bytes_of("tls.certificate", self.certificate),
            _bytes_of("tls.key", self.key),
        )


def check_readable(files: PemFiles) -> None:
    """For a client: what is named can be read, and the key is the certificate's."""
    _context(ssl.PROTOCOL_TLS_CLIENT, files)


def check_own_peer(files: PemFiles, name: str) -> None:
    """For a process of a cell, which is server and client: it would accept itself in both roles.

    A handshake in memory, each side with these files: it fails for an expired certificate, one that `ca` has not
    signed, one without `name`, and one that is not allowed as a server's or as a client's.
    """
    server, client = _context(ssl.PROTOCOL_TLS_SERVER, files), _context(ssl.PROTOCOL_TLS_CLIENT, files)
    server.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    try:
        for _ in range(_MAX_TURNS):
            ends = [end for end in ends if not _is_done(end)]
    except ssl.SSLError as err:
        reason = getattr(err, "verify_message", "") or err.reason or str(err)
        limit = f"a process of the cell would refuse it: {reason}; it needs the name {name!r} and both usages"
        raise InvalidRequest.of("tls.certificate", str(files.certificate), limit) from err
    assert not ends, "the handshake takes a few turns"


def server_context(files: PemFiles, name: str, *, requires_certificate: bool) -> ssl.SSLContext:
    """For a process of a cell, where it serves something else than gRPC. `requires_certificate`: of whoever connects.

    Raises InvalidRequest for files with which the cell would refuse it.
    """
    check_own_peer(files, name)
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    context.verify_mode = ssl.CERT_REQUIRED if requires_certificate else ssl.CERT_NONE
    return context


def _is_done(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _context(protocol: int, files: PemFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13 asks more than gRPC does
    if files.ca is not None:
        try:
            context.load_verify_locations(cafile=files.ca)
        except (OSError, ValueError) as err:  # ssl.SSLError is an OSError
            raise InvalidRequest.of("tls.ca", str(files.ca), f"it must hold certificates in PEM ({err})") from err
    if files.certificate is not None and files.key is not None:
        try:
            # Without a password Python would ask at the terminal for that of an encrypted key.
            context.load_cert_chain(files.certificate, files.key, password="")
        except (OSError, ValueError) as err:
            names = f"{files.certificate} and {files.key}"
            limit = f"they must be a certificate and its own, unencrypted key in PEM ({err})"
            raise InvalidRequest.of("tls.certificate and tls.key", names, limit) from err
    return context


def _bytes_of(field: str, file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as err:
        raise InvalidRequest.of(field, str(file), f"it can't be read ({err.strerror})") from err
