"""A client's way to its server: how it is encrypted, who asks, and a new channel where the files have changed."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from outrider import rpc
from outrider.errors import Cancelled, InvalidRequest
from outrider.tls import Credentials, Tls
from outrider.v1 import inference_pb2_grpc


class Connection:
    """To `server`, by channels that `insecure` and `secure` make: blocking ones, or grpc.aio's. At most one of
    `tls` and `credentials`.

    A token goes along with every call. It is sent encrypted or to this machine only: InvalidRequest otherwise, and
    for a server without a port, which gRPC would take for 443.
    """

    def __init__(
        self,
        server: str,
        tls: Tls | None,
        credentials: grpc.ChannelCredentials | None,
        token: str | None,
        insecure: Callable[[str, rpc.Options], Any],
        secure: Callable[[str, grpc.ChannelCredentials, rpc.Options], Any],
    ) -> None:
        if not (has_port(server) or _is_socket(server)):
            raise InvalidRequest.of("server", server, f"it must be HOST:PORT, such as localhost:{rpc.DEFAULT_PORT}")
        if tls is not None and not isinstance(tls, Tls):
            raise TypeError(f"tls is {tls!r}: it must be a Tls, as in tls=Tls(), or None")
        if tls is not None and credentials is not None:
            raise InvalidRequest("tls and credentials are both given: one of them says how the channel is encrypted")
        if token is not None and tls is None and credentials is None and not is_loopback(server):
            raise InvalidRequest.of("server", server, "a token is sent there in the clear: give tls, too")
        self._server = server
        self._secure = secure
        self._tls = Credentials(tls) if tls is not None else None
        self._metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
        if self._tls is not None:
            credentials = self._tls.current
        self._channel: Any = (
            insecure(server, rpc.client_options()) if credentials is None else self._secured(credentials)
        )
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)
        self._changing = threading.Lock()
        self.is_closed = False  # to be set by who closes the channels, before
        self.channels: list[Any] = [self._channel]  # all that were made: calls may still run on those before

    def call(self, method: str, request: Any, *, timeout: float | None) -> Any:
        """What the stub's method returns: a call, or its answer. Takes replaced TLS files into use first.

        Raises Cancelled where the channel was closed, which gRPC takes for misuse.
        """
        if self._tls is not None:
            with self._changing:
                if self._tls.refresh():
                    self._channel = self._secured(self._tls.current)
                    self._stub = inference_pb2_grpc.InferenceStub(self._channel)
                    # The one before is kept open for its calls; gRPC lets an idle connection go after half an hour.
                    self.channels.append(self._channel)
        try:
            return getattr(self._stub, method)(request, timeout=timeout, metadata=self._metadata)
        except (ValueError, grpc.aio.UsageError) as err:
            if not self.is_closed:
                raise
            raise Cancelled("the client was closed: a new call needs a new client") from err

    def _secured(self, credentials: grpc.ChannelCredentials) -> Any:
        options = self._tls.options if self._tls is not None else []
        return self._secure(self._server, credentials, [*rpc.client_options(), *options])


def has_port(address: object) -> bool:
    """Whether it is "host:port"."""
    if not isinstance(address, str):
        return False
    host, _, port = address.rpartition(":")
    is_bare_ipv6 = host.count(":") > 1 and not host.endswith("]")
    is_port = port.isascii() and port.isdecimal() and int(port) < 65536
    return bool(host.strip(":/")) and is_port and not is_bare_ipv6


def is_loopback(address: str) -> bool:
    """Whether "host:port" is on this machine, by its name alone: nothing is looked up."""
    if _is_socket(address):
        return True
    host = _host(address)
    return host == "localhost" if is_name(address) else ipaddress.ip_address(host).is_loopback


def is_name(address: str) -> bool:
    """Whether "host:port" names its host, and so may stand for several addresses."""
    try:
        ipaddress.ip_address(_host(address))
    except ValueError:
        return True
    return False


def _host(address: str) -> str:
    return address.rpartition(":")[0].rpartition("/")[2].strip("[]")


def _is_socket(address: object) -> bool:
    return isinstance(address, str) and address.startswith("unix:")
