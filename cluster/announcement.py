"""What `outriderd up` says once its cell serves: where, and a command to try it with as it is configured."""

from __future__ import annotations

import shlex

from cluster.config import CellConfig


def announcement(config: CellConfig, endpoint: str, metrics_address: str | None = None) -> list[str]:
    """`endpoint`: the "host:port" for clients; `metrics_address`: that for Prometheus, where there is one.

    In capitals stands what only the user has: a token, a certificate.
    """
    scheme = "http" if config.tls is None else "https"
    metrics = [f"Metrics: {scheme}://{metrics_address}/metrics"] if metrics_address is not None else []
    return [f"Outrider serves on {endpoint}", f"Try:  {_command(config, endpoint)}", *metrics]


def _command(config: CellConfig, endpoint: str) -> str:
    words = [] if config.auth is None else ["OUTRIDER_TOKEN=TOKEN"]
    words += ["outrider", "generate", '"The capital of France is"', "--server", endpoint]
    if config.tls is not None:
        # By the cell's name, since every certificate bears it, and the address perhaps not.
        words += ["--tls-ca", shlex.quote(str(config.tls.ca)), "--tls-name", shlex.quote(config.tls.name)]
        if config.tls.require_client_certificate:
            words += ["--tls-cert", "YOUR_CERTIFICATE", "--tls-key", "ITS_KEY"]
    return " ".join(words)
