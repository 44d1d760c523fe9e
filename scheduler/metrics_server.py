"""`/metrics` over HTTP, encrypted in a cell with certificates. The socket and the text are a thread's business, so a
scrape holds up a pass only for as long as it takes to read the numbers, which happens between two events of the
driver's loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterable
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from outrider.errors import InternalError
from outrider.reload import Reloaded
from outrider.tls import CellTls, https_contexts
from scheduler.driver import Driver
from scheduler.metrics import all_metrics

log = logging.getLogger(__name__)

READ_TIMEOUT_S = 10.0  # for the event loop to come to it; then the scrape fails
CLIENT_TIMEOUT_S = 10.0


class MetricsServer:
    """start → stop. Serves every path alike. Raises InvalidRequest for certificates that are no good."""

    def __init__(self, driver: Driver, tls: CellTls | None) -> None:
        self._contexts = https_contexts(tls) if tls is not None else None
        registry = CollectorRegistry()
        registry.register(_Now(driver))
        ProcessCollector(registry=registry)
        self._app = make_wsgi_app(registry)

    async def start(self, host: str, port: int) -> str:
        """Serve; returns host:port. Port 0 takes a free one. Raises InternalError when the address can't be had."""
        try:
            self._server = await asyncio.to_thread(self._bind, host.strip("[]"), port)
        except OSError as err:
            text = f"scheduler.metrics_port is {port}: {host}:{port} can't be bound, {err.strerror}; is it in use?"
            raise InternalError(text) from err
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        address = f"{host}:{self._server.server_port}"
        log.info("metrics at %s://%s/metrics", "http" if self._contexts is None else "https", address)
        return address

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)

    def _bind(self, host: str, port: int) -> _Server:
        """It asks for this machine's name, which may take a while."""
        server = make_server(host, port, self._serve, _Server6 if ":" in host else _Server, _Handler)
        server.contexts = self._contexts
        return server

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Any:
        # The one format in which prometheus_client keeps a name's colon: in OpenMetrics' it writes "_" for it, unless
        # the scraper asks for UTF-8. Every Prometheus takes this one.
        environ["HTTP_ACCEPT"] = "text/plain"
        return self._app(environ, start_response)


class _Now(Collector):
    """Reads the driver from another thread than its own."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterable[Metric]:
        return asyncio.run_coroutine_threadsafe(self._read(), self._loop).result(READ_TIMEOUT_S)

    async def _read(self) -> list[Metric]:
        return all_metrics(self._driver)


class _Server(ThreadingWSGIServer):
    contexts: Reloaded[ssl.SSLContext] | None = None

    def get_request(self) -> tuple[Any, Any]:
        connection, client_address = super().get_request()
        if self.contexts is not None:
            context = self.contexts.refresh()
            connection = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, client_address

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, so whoever does not come to the end of a handshake holds up nobody."""
        if isinstance(request, ssl.SSLSocket):
            request.settimeout(CLIENT_TIMEOUT_S)
            request.do_handshake()
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.info("a scrape from %s failed", client_address[0], exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT_S

    def log_message(self, *_: object) -> None:
        """A line for each scrape would drown the others."""
