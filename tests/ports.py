"""Addresses at which nobody serves."""

from __future__ import annotations

import random
import socket

_PORTS = range(20_000, 32_768)  # below those that Linux hands out itself
_drawn = random.SystemRandom()  # several processes of tests run at once, and must not draw alike


def free_address() -> str:
    """A "host:port" for a server that a test starts in another process, or for none at all.

    Whoever asks Linux for any port is given another, so it is still free when that process is ready to take it.
    """
    while True:
        port = _drawn.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return f"127.0.0.1:{port}"
