"""Options about the server and how it is reached, as `outrider` and `outriderd verify-lossless` both have them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from outrider.tls import Tls

_option = partial(typer.Option, rich_help_panel="Access")

TlsOn = Annotated[
    bool, _option("--tls", envvar="OUTRIDER_TLS", help="Encrypt; who signed the server's certificate is well known.")
]
TlsCa = Annotated[
    Path | None, _option(envvar="OUTRIDER_TLS_CA", metavar="PEM", help="Encrypt; who signed the server's certificate.")
]
TlsCert = Annotated[Path | None, _option(envvar="OUTRIDER_TLS_CERT", metavar="PEM", help="Your own certificate.")]
TlsKey = Annotated[Path | None, _option(envvar="OUTRIDER_TLS_KEY", metavar="PEM", help="The key of --tls-cert.")]
TlsName = Annotated[
    str | None,
    _option(envvar="OUTRIDER_TLS_NAME", metavar="HOST", help="Whose certificate it is. Unset: the server's host."),
]
Token = Annotated[
    str | None,
    _option(envvar="OUTRIDER_TOKEN", help="Says who asks. Better in the variable: others can see command lines."),
]


class Access(TypedDict):
    """Of a client, by its own names."""

    tls: Tls | None
    token: str | None


def access(
    tls: bool, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, tls_name: str | None, token: str | None
) -> Access:
    """Any of the TLS options encrypts. Raises InvalidRequest for a certificate without its key."""
    is_encrypted = tls or any(option is not None for option in (tls_ca, tls_cert, tls_key, tls_name))
    files = Tls(ca=tls_ca, certificate=tls_cert, key=tls_key, server_name=tls_name) if is_encrypted else None
    return {"tls": files, "token": token}
