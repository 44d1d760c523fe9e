"""A conversation at a terminal: `outrider chat` without a message."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import typer

from outrider.errors import OutriderError
from outrider.types import Answer, Message

GREETING = "Type a message. Ctrl-C stops an answer; /exit, Ctrl-D or Ctrl-C here ends the chat."


def converse(ask: Callable[[Sequence[Message]], Answer], show_error: Callable[[OutriderError], None]) -> None:
    """Asks turn after turn until the user leaves. A turn that got no whole answer is forgotten.

    `ask` shows the answer and returns it. KeyboardInterrupt passes through when it comes at the prompt.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() its line editing; imported here because it may write to the terminal
    typer.echo(GREETING, err=True)
    history: list[Message] = []
    while (line := _next_line()) is not None:
        turn = Message(role="user", content=line)
        try:
            answer = ask([*history, turn])
        except KeyboardInterrupt:
            typer.echo("\n(stopped; this turn is forgotten)", err=True)
        except OutriderError as error:
            show_error(error)
        else:
            history += [turn, Message(role="assistant", content=answer.text)]


def _next_line() -> str | None:
    """What the user says next; None to leave."""
    line = ""
    while not line:
        try:
            line = input("> ").strip()
        except EOFError:
            typer.echo()
            return None
    return None if line == "/exit" else line
