"""TLS between all processes: every server's port and every channel of the cell is opened here, and nowhere else.

In a cell both sides show a certificate that its `ca` has signed and that bears the cell's name. Addresses are picked
at run time, so it is that name, and no address, by which a process of the cell knows another. Files that are replaced
are used from the next handshake on; connections that stand go on.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from outrider.errors import InvalidRequest
from outrider.pem import Pem, PemFiles, check_own_peer, check_readable, server_context
from outrider.reload import Reloaded
from outrider.rpc import Options

CELL_NAME = "outrider-cell"
_NAME_OPTION = "grpc.ssl_target_name_override"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a user's client encrypts, with PEM files.

    `ca`: who must have signed the server's certificate; None: the authorities that gRPC itself trusts.
    `certificate`, `key`: both or none; for a server that asks its clients who they are.
    `server_name`: what the server's certificate must be for; None: the host that was dialled.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        given = {"tls.certificate": self.certificate, "tls.key": self.key}
        missing = [field for field, file in given.items() if file is None]
        if len(missing) == 1:
            [field] = given.keys() - missing
            raise InvalidRequest.of(
                field, str(given[field]), f"it goes with {missing[0]}, which is unset: give both or none"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CellTls:
    """The files of one process of a cell, and the name that every certificate of the cell bears."""

    certificate: Path
    key: Path
    ca: Path
    name: str = CELL_NAME
    requires_client_certificate: bool = False  # of clients too; between the cell's processes it always is


class Credentials:
    """Of a user's client: gRPC's credentials for the files as they are now.

    Raises InvalidRequest for files that can't be used.
    """

    def __init__(self, tls: Tls) -> None:
        paths = [Path(path) if path is not None else None for path in (tls.ca, tls.certificate, tls.key)]
        files = PemFiles(*paths)
        self._files = Reloaded(files.paths, partial(files.read, check_readable))
        self.options: Options = [] if tls.server_name is None else [(_NAME_OPTION, tls.server_name)]
        self._pem = self._files.last
        self.current = _channel_credentials(self._pem)

    def refresh(self) -> bool:
        """Whether `current` is another now."""
        pem = self._files.refresh()
        if pem is self._pem:
            return False
        self._pem, self.current = pem, _channel_credentials(pem)
        return True


class CellChannels:
    """Channels from one process of a cell to others. `tls` None: without encryption.

    Raises InvalidRequest for files with which no other process of the cell would accept this one.
    """

    def __init__(self, tls: CellTls | None) -> None:
        self._name = tls.name if tls is not None else ""
        self._files = _watched(tls) if tls is not None else None

    async def open(self, address: str, options: Options) -> grpc.aio.Channel:
        """A new channel, with the files as they are now."""
        if self._files is None:
            return grpc.aio.insecure_channel(address, options)
        pem = await asyncio.to_thread(self._files.refresh)
        return grpc.aio.secure_channel(address, _channel_credentials(pem), [*options, (_NAME_OPTION, self._name)])


def add_port(server: grpc.aio.Server, listen: str, tls: CellTls | None, *, requires_certificate: bool = True) -> int:
    """Listen at "host:port", encrypted if `tls` says how. Returns the port that was bound.

    Raises RuntimeError, as gRPC does, where the address can't be had, and InvalidRequest for files that are no good.
    """
    if tls is None:
        return server.add_insecure_port(listen)
    return server.add_secure_port(listen, _server_credentials(_watched(tls), requires_certificate))


def https_contexts(tls: CellTls) -> Reloaded[ssl.SSLContext]:
    """For a port that speaks HTTP, encrypted, to the cell's clients: `refresh` before each handshake.

    Raises InvalidRequest for files that are no good.
    """
    files = PemFiles(tls.ca, tls.certificate, tls.key)
    requires_certificate = tls.requires_client_certificate
    load = partial(server_context, files, tls.name, requires_certificate=requires_certificate)
    return Reloaded(files.paths, load)


def _server_credentials(files: Reloaded[Pem], requires_certificate: bool) -> grpc.ServerCredentials:
    """gRPC asks before every handshake whether there is something new."""
    used = files.last

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        pem = files.refresh()
        if pem is used:
            return None
        used = pem
        return _server_configuration(pem)

    fetch: Any = changed  # the stubs don't know that None is "nothing new"
    return grpc.dynamic_ssl_server_credentials(_server_configuration(used), fetch, requires_certificate)


def _server_configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key or b"", pem.certificate or b"")], pem.ca)


def _channel_credentials(pem: Pem) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(pem.ca, pem.key, pem.certificate)


def _watched(tls: CellTls) -> Reloaded[Pem]:
    files = PemFiles(tls.ca, tls.certificate, tls.key)
    return Reloaded(files.paths, partial(files.read, partial(check_own_peer, name=tls.name)))
