"""Files that are replaced while a process runs: what they hold now, or held last where they hold nothing good."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from outrider.errors import OutriderError

log = logging.getLogger(__name__)

Value = TypeVar("Value")
_State = list[tuple[int, int, int] | None]


class Reloaded(Generic[Value]):
    """What `load` makes of `files`; made anew when one of them has changed.

    `load` raises OutriderError for files that are no good: the first time it comes out of the constructor, later the
    value before is kept and the log has an error, once for each change. Safe to share between threads.
    """

    def __init__(self, files: Sequence[Path], load: Callable[[], Value]) -> None:
        self._files = files
        self._load = load
        self._lock = threading.Lock()
        self._state = _state_of(files)  # before they are read: a change meanwhile is seen the next time
        self._value = load()

    @property
    def last(self) -> Value:
        """As of the last `refresh`; touches no disk."""
        return self._value

    def refresh(self) -> Value:
        """The value of the files as they are now. Costs a look at each file where none has changed."""
        with self._lock:
            state = _state_of(self._files)
            if state != self._state:
                self._state = state
                names = ", ".join(map(str, self._files))
                try:
                    self._value = self._load()
                except OutriderError as err:
                    log.error("%s: changed, and no good: what was there before is kept. %s", names, err.message)
                else:
                    log.info("%s: changed, and in use from now on", names)
            return self._value


def _state_of(files: Sequence[Path]) -> _State:
    """What differs once a file has been written, replaced or removed. Links are followed, as Kubernetes needs it."""
    states: _State = []
    for file in files:
        try:
            found = file.stat()
        except OSError:
            states.append(None)
        else:
            states.append((found.st_mtime_ns, found.st_ino, found.st_size))
    return states
