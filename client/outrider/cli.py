"""The `outrider` command: from arguments to calls, from errors to exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from outrider import __version__, repl, terminal
from outrider.access_options import AccessOptions
from outrider.client import DEFAULT_SERVER, INFO_TIMEOUT_S, Client
from outrider.convert import Prompt
from outrider.errors import OutriderError
from outrider.options import Options, Server, Timeout, sampling_option
from outrider.types import Answer, Message, SamplingParams, ServiceClass, Speculation
from outrider.with_options import with_options

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Ask:
    """One way to ask: everything about a call but its prompt. What comes is shown, and returned."""

    client: Client
    sampling: SamplingParams
    speculation: Speculation
    service_class: ServiceClass | None
    timeout_s: float
    as_json: bool

    @classmethod
    def of(cls, client: Client, options: Options, n: int | None = None) -> Ask:
        sampling, speculation = options.sampling(n), options.speculation()
        return cls(client, sampling, speculation, options.service_class, options.timeout, options.as_json)

    def __call__(self, prompt: Prompt) -> Answer:
        """For one answer, shown while it comes."""
        generation = self.client.generate(
            prompt,
            sampling=self.sampling,
            speculation=self.speculation,
            service_class=self.service_class,
            timeout_s=self.timeout_s,
        )
        return terminal.show_answer(generation, as_json=self.as_json)

    def for_all(self, prompt: Prompt) -> list[Answer]:
        """For n answers, shown when all are there."""
        answers = self.client.generate_all(
            prompt,
            sampling=self.sampling,
            speculation=self.speculation,
            service_class=self.service_class,
            timeout_s=self.timeout_s,
        )
        terminal.show_answers(answers, as_json=self.as_json)
        return answers


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"outrider {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Talk to an Outrider server: text, chat, and what it is doing.

    In a terminal, tokens that a drafter had guessed are green, the target's own are not.
    """


@app.command()
@with_options
def generate(
    options: Options,
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    n: Annotated[int | None, sampling_option("--n", help="Answers, shown when all are there. Unset: 1.")] = None,
) -> None:
    """Continue a text.

    Example: outrider generate "The three primary colours are" --max-tokens 32 --temperature 0
    """
    text = _standard_input() if prompt == "-" else prompt
    with _exit_codes(options.server), Client(options.server, **options.access()) as client:
        ask = Ask.of(client, options, n)
        if n is not None and n > 1:
            ask.for_all(text)
        else:
            ask(text)


@app.command()
@with_options
def chat(
    options: Options,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Say this, show the answer, leave.")] = None,
) -> None:
    """Talk with the model, turn by turn; or once, with -m or with a message on standard input.

    Example: outrider chat -m "Name three colours." --seed 7
    """
    with _exit_codes(options.server), Client(options.server, **options.access()) as client:
        ask = Ask.of(client, options)
        if message is None and typer.get_text_stream("stdin").isatty():
            repl.converse(ask, lambda error: terminal.show_error(error, options.server))
        else:
            ask([Message(role="user", content=_standard_input() if message is None else message)])


@app.command()
@with_options
def info(
    options: AccessOptions,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = INFO_TIMEOUT_S,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Show the model, the server's load and its workers.

    Example: outrider info --server localhost:50051 --json
    """
    with _exit_codes(server), Client(server, **options.access()) as client:
        terminal.show_info(client.model_info(timeout_s=timeout), client.server_info(timeout_s=timeout), as_json=as_json)


def _standard_input() -> str:
    """All of it, without the newline that echo and editors put at the end."""
    return typer.get_text_stream("stdin").read().removesuffix("\n")


@contextmanager
def _exit_codes(server: str) -> Iterator[None]:
    """Errors become one line and exit code 1, Ctrl-C becomes 130; by then the client within has cancelled its call."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except OutriderError as error:
        terminal.show_error(error, server)
        raise typer.Exit(EXIT_FAILED) from None
