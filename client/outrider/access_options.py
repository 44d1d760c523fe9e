"""Options about how a server is reached, of every command that asks one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from outrider.tls import Tls

_option = partial(typer.Option, rich_help_panel="Access")


class Access(TypedDict):
    """Of a client, by its own names."""

    tls: Tls | None
    token: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessOptions:
    """Any of the TLS options encrypts."""

    tls: Annotated[
        bool,
        _option("--tls", envvar="OUTRIDER_TLS", help="Encrypt; who signed the server's certificate is well known."),
    ] = False
    tls_ca: Annotated[
        Path | None,
        _option(envvar="OUTRIDER_TLS_CA", metavar="PEM", help="Encrypt; who signed the server's certificate."),
    ] = None
    tls_cert: Annotated[
        Path | None, _option(envvar="OUTRIDER_TLS_CERT", metavar="PEM", help="Your own certificate.")
    ] = None
    tls_key: Annotated[
        Path | None, _option(envvar="OUTRIDER_TLS_KEY", metavar="PEM", help="The key of --tls-cert.")
    ] = None
    tls_name: Annotated[
        str | None,
        _option(envvar="OUTRIDER_TLS_NAME", metavar="HOST", help="Whose certificate it is. Unset: the server's host."),
    ] = None
    token: Annotated[
        str | None,
        _option(envvar="OUTRIDER_TOKEN", help="Says who asks. Better in the variable: others can see command lines."),
    ] = None

    def access(self) -> Access:
        """Raises InvalidRequest for a certificate without its key."""
        given = (self.tls_ca, self.tls_cert, self.tls_key, self.tls_name)
        is_encrypted = self.tls or any(option is not None for option in given)
        files = Tls(ca=self.tls_ca, certificate=self.tls_cert, key=self.tls_key, server_name=self.tls_name)
        return {"tls": files if is_encrypted else None, "token": self.token}
