"""Ray on this machine for one cell, or a connection to a Ray that runs already.

Import ray inside functions only, here and in the rest of this package: some settings are read while it is
imported, and a command that needs no Ray must not wait a second for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import psutil

from cluster.errors import ClusterError

log = logging.getLogger(__name__)

T = TypeVar("T")

_OBJECT_STORE_BYTES = 80 * 2**20  # Ray's least; no token ever travels through Ray
_CONNECT_TIMEOUT_S = 5.0
_EXIT_TIMEOUT_S = 10.0
_EXIT_POLL_S = 0.02
_WATCH_POLL_S = 1.0

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # who asked for no GPU sees none: ranks on CPUs must not
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call that comes when Ray is stopped fails, and starts no other one
    # Ray's handler would end this process at SIGTERM, in the middle of a drain. Native crashes of workers are
    # told by Python's faulthandler instead (actors.py).
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
}
_LOCAL_SETTINGS = {
    # Despite its name it decides on Linux too whether Ray's servers bind to 127.0.0.1 or to every interface,
    # where whoever can reach a port could run code.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",  # Ray's default of 15 would give a serving process the lowest priority
    "RAY_AUTH_MODE": "token",  # against other users of this machine; unset, Ray would leave a token in ~/.ray
}


@dataclass(frozen=True)
class RayRuntime:
    """A Ray that this process is connected to."""

    is_local: bool  # started here, for this cell alone
    log_dir: Path | None  # where the processes' output lies; None: on other machines
    roots: tuple[psutil.Process, ...] = ()  # the processes that Ray started here for us
    node: psutil.Process | None = None  # Ray's own on this machine, whoever started it; None: the start failed


class RayThread:
    """The one thread in which Ray is started and stopped.

    It must outlive the cell: Linux ends Ray's processes when the *thread* that started them ends. And it must
    not be the main thread, where ray.init would take over the handling of SIGTERM.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ray")

    async def run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def close(self) -> None:
        self._executor.shutdown(wait=False)


def start_ray(resources: Mapping[str, float], address: str | None) -> RayRuntime:
    """Start a Ray that offers `resources`, or connect to the one at `address`. Blocks for seconds.

    Raises ClusterError when Ray can't be started or reached.
    """
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    os.environ.update(_SETTINGS)
    if address is None:
        os.environ.update(_LOCAL_SETTINGS)
        os.environ["RAY_AUTH_TOKEN"] = _token()
        settings |= {"address": "local", "resources": dict(resources), "include_dashboard": False}
        settings |= {"object_store_memory": _OBJECT_STORE_BYTES, "_node_ip_address": "127.0.0.1"}
    else:
        _check_reachable(address)
        settings |= {"address": address}

    import ray

    before = set(psutil.Process().children())
    try:
        context: Any = ray.init(**settings)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        stop_ray(RayRuntime(True, None, _children_but(before)))
        where = "here" if address is None else f"at {address}"
        raise ClusterError(f"Ray did not start {where}: {str(error).strip().splitlines()[-1]}") from error
    if address is not None:
        return RayRuntime(False, None, node=_node_process())
    log_dir = Path(context.address_info["session_dir"]) / "logs"
    return RayRuntime(True, log_dir, _children_but(before), _node_process())


def _node_process() -> psutil.Process:
    """The raylet that this process is connected to."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    [socket_name] = [node["RayletSocketName"] for node in ray.nodes() if node["NodeID"] == here]  # type: ignore[no-untyped-call]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.name() == "raylet" and f"--raylet_socket_name={socket_name}" in process.cmdline():
                return process
    raise ClusterError(f"Ray has no node on this machine (no raylet at {socket_name}): start one with ray start")


async def watch_node(runtime: RayRuntime) -> None:
    """Raises ClusterError once Ray's node on this machine has ended; Ray itself would go on, and place nothing more."""
    assert runtime.node is not None
    while True:
        if not is_alive(runtime.node):
            raise ClusterError("Ray's node on this machine has ended, and with it what the cell had here")
        await asyncio.sleep(_WATCH_POLL_S)


def _check_reachable(address: str) -> None:
    """Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"ray.address is {address!r}: nobody answers there ({error}); give the address of a running Ray, or none"
        ) from error


@cache
def _token() -> str:
    """One for the life of this process: Ray reads it once and keeps it."""
    return secrets.token_hex(32)


def _children_but(known: set[psutil.Process]) -> tuple[psutil.Process, ...]:
    return tuple(set(psutil.Process().children()) - known)


def stop_ray(runtime: RayRuntime) -> None:
    """Disconnect; where this cell started Ray, end every process of it and wait until they are gone.

    Never `ray stop`: that ends other people's Ray as well.
    """
    import ray

    processes = [process for root in runtime.roots for process in _family(root)]
    ray.shutdown()
    left = _wait_for_exit(processes, _EXIT_TIMEOUT_S)
    for process in left:
        log.warning("process %d of Ray did not end by itself and is killed", process.pid)
        process.kill()
    _wait_for_exit(left, _EXIT_TIMEOUT_S)


def _family(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _wait_for_exit(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that still run after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while (alive := [process for process in processes if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(_EXIT_POLL_S)
    return alive


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs. A zombie does not: it is over, and only its parent can bury it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
