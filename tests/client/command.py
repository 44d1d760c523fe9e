"""The `outrider` command in a process of its own, with pipes or with a terminal around it."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.client.fake_inference import WAIT_S

COMMAND = (sys.executable, "-c", "from outrider.cli import app; app()")


def environment(**changes: str) -> dict[str, str]:
    """This process's own, without what would change how the command looks or where it connects."""
    unwanted = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"}
    kept = {
        name: value for name, value in os.environ.items() if name not in unwanted and not name.startswith("OUTRIDER_")
    }
    return {**kept, "TERM": "xterm-256color", **changes}


def run_piped(
    *arguments: str, stdin: str = "", command: Sequence[str] = COMMAND, **changes: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments],
        input=stdin,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


class Terminal:
    """A command that runs in a pseudo-terminal, and what the screen has shown so far."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process = process
        self.shown = ""
        self._screen = screen
        self._num_read = 0  # characters of `shown` that a read_until has passed

    def read_until(self, text: str) -> str:
        """What is shown from the last call on, up to and with `text`."""
        while (end := self.shown.find(text, self._num_read)) < 0:
            assert self._read_more(), f"ended before {text!r}, shown: {self.shown!r}"
        came = self.shown[self._num_read : end + len(text)]
        self._num_read = end + len(text)
        return came

    def send(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def exit_code(self) -> int:
        while self._read_more():
            pass
        return self.process.wait(WAIT_S)

    def exit_code_when_interrupted(self) -> int:
        """SIGINT until it ends: CPython's readline loses one that comes between its prompt and its wait for a key."""
        for _ in range(10):
            self.interrupt()
            if self._is_readable(WAIT_S / 10):
                break
        return self.exit_code()

    def _is_readable(self, timeout_s: float) -> bool:
        return bool(select.select([self._screen], [], [], timeout_s)[0])

    def _read_more(self) -> bool:
        """Waits for the screen to show more; False when the command has ended."""
        assert self._is_readable(WAIT_S), f"nothing came for {WAIT_S} s, shown so far: {self.shown!r}"
        try:
            data = os.read(self._screen, 65_536)
        except OSError:  # how Linux says that the other side of a terminal is closed
            data = b""
        self.shown += data.decode(errors="replace")
        return bool(data)


@contextmanager
def in_terminal(*arguments: str, command: Sequence[str] = COMMAND, **changes: str) -> Iterator[Terminal]:
    screen, side = pty.openpty()
    process = subprocess.Popen([*command, *arguments], stdin=side, stdout=side, stderr=side, env=environment(**changes))
    os.close(side)
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait(WAIT_S)
        os.close(screen)
