"""What is looked at before anything of a cell is started, so that a mistake is told at once."""

from __future__ import annotations

import errno
import socket
from typing import Any

from cluster.config import CellConfig
from cluster.errors import ConfigError
from scheduler.tokens import read_tokens


def check_preconditions(config: CellConfig) -> None:
    """The scheduler runs on this machine: its ports are free, and its tokens file is good.

    Raises ConfigError, or InvalidRequest for the file.
    """
    listen, metrics_port = config.scheduler.listen, config.scheduler.metrics_port
    host = listen.rpartition(":")[0]
    _check_free(listen, f"scheduler.listen is {listen!r}", "--listen HOST:PORT")
    if metrics_port is not None:
        _check_free(f"{host}:{metrics_port}", f"scheduler.metrics_port is {metrics_port}", "another port")
    if config.auth is not None:
        read_tokens(config.auth.tokens_file)


def _check_free(address: str, setting: str, way_out: str) -> None:
    """As gRPC sees it: of a name's addresses, one that can be bound is enough."""
    host, _, port = address.rpartition(":")
    try:
        places = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except socket.gaierror as err:
        errors: list[OSError | None] = [err]
    else:
        errors = [_error_of_binding(family, place) for family, _, _, _, place in places]
    failed = [error for error in errors if error is not None]
    if len(failed) == len(errors):
        is_taken = any(error.errno == errno.EADDRINUSE for error in failed)
        reason = "it is in use" if is_taken else f"it can't be bound ({failed[0].strerror})"
        raise ConfigError(f"{setting}: {reason}; choose {way_out}, where port 0 picks a free one")


def _error_of_binding(family: socket.AddressFamily, place: tuple[Any, ...]) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended take no port
            probe.bind(place)
    except OSError as err:
        return err
    return None
