"""What happened last, to be read where a schedule fails."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

DEFAULT_EVENTS = 60


class Trace:
    """Keeps the last events as they are; they are written out only when somebody reads them."""

    def __init__(self, num_events: int = DEFAULT_EVENTS) -> None:
        self._entries: deque[tuple[float, str, object]] = deque(maxlen=num_events)

    def note(self, time_s: float, kind: str, what: object) -> None:
        self._entries.append((time_s, kind, what))

    def lines(self) -> Iterator[str]:
        for time_s, kind, what in self._entries:
            text = what if isinstance(what, str) else " ".join(repr(what).split())
            yield f"{time_s:10.4f} {kind:6} {text}"
