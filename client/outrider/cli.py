"""The `outrider` command: from arguments to calls, from errors to exit codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from outrider import __version__, repl, terminal
from outrider.client import DEFAULT_SERVER, GENERATE_TIMEOUT_S, INFO_TIMEOUT_S, Client
from outrider.convert import Prompt
from outrider.errors import OutriderError
from outrider.types import Answer, Message, SamplingParams, Speculation, SpeculationMode

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Server = Annotated[
    str, typer.Option(envvar="OUTRIDER_SERVER", metavar="HOST:PORT", help="The Outrider server to talk to.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens of the answer at most. Unset: 256.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy. Unset: 1.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same tokens. Unset: drawn, and shown.")]
TopP = Annotated[float | None, typer.Option(help="Choose among the likeliest tokens with this mass. Unset: 1.")]
TopK = Annotated[int | None, typer.Option(help="Choose among this many tokens. Unset: all.")]
Stop = Annotated[list[str] | None, typer.Option(help="End where this text appears. May be repeated.")]
Mode = Annotated[
    SpeculationMode | None, typer.Option(help="Use drafts, or the target alone. It changes the speed, not the tokens.")
]
Drafter = Annotated[list[str] | None, typer.Option(help="A drafter that may draft. May be repeated. Unset: all.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Give up when it takes longer than this.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")]


@dataclass(frozen=True)
class Ask:
    """One way to ask: everything about a call but its prompt."""

    client: Client
    sampling: SamplingParams
    speculation: Speculation
    timeout_s: float
    as_json: bool

    def __call__(self, prompt: Prompt) -> Answer:
        generation = self.client.generate(
            prompt, sampling=self.sampling, speculation=self.speculation, timeout_s=self.timeout_s
        )
        return terminal.show_answer(generation, as_json=self.as_json)


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
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    server: Server = DEFAULT_SERVER,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    top_p: TopP = None,
    top_k: TopK = None,
    stop: Stop = None,
    speculation: Mode = None,
    drafter: Drafter = None,
    timeout: Timeout = GENERATE_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Continue a text.

    Example: outrider generate "The three primary colours are" --max-tokens 32 --temperature 0
    """
    text = _standard_input() if prompt == "-" else prompt
    sampling = _sampling(max_tokens, temperature, seed, top_p, top_k, stop)
    with _exit_codes(server), Client(server) as client:
        Ask(client, sampling, Speculation(mode=speculation, drafters=drafter or ()), timeout, as_json)(text)


@app.command()
def chat(
    message: Annotated[str | None, typer.Option("--message", "-m", help="Say this, show the answer, leave.")] = None,
    server: Server = DEFAULT_SERVER,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    top_p: TopP = None,
    top_k: TopK = None,
    stop: Stop = None,
    speculation: Mode = None,
    drafter: Drafter = None,
    timeout: Timeout = GENERATE_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Talk with the model, turn by turn; or once, with -m or with a message on standard input.

    Example: outrider chat -m "Name three colours." --seed 7
    """
    sampling = _sampling(max_tokens, temperature, seed, top_p, top_k, stop)
    with _exit_codes(server), Client(server) as client:
        ask = Ask(client, sampling, Speculation(mode=speculation, drafters=drafter or ()), timeout, as_json)
        if message is None and typer.get_text_stream("stdin").isatty():
            repl.converse(ask, lambda error: terminal.show_error(error, server))
        else:
            ask([Message(role="user", content=_standard_input() if message is None else message)])


@app.command()
def info(server: Server = DEFAULT_SERVER, timeout: Timeout = INFO_TIMEOUT_S, as_json: Json = False) -> None:
    """Show the model, the server's load and its workers.

    Example: outrider info --server localhost:50051 --json
    """
    with _exit_codes(server), Client(server) as client:
        terminal.show_info(client.model_info(timeout_s=timeout), client.server_info(timeout_s=timeout), as_json=as_json)


def _sampling(
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    top_p: float | None,
    top_k: int | None,
    stop: Sequence[str] | None,
) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens, temperature=temperature, seed=seed, top_p=top_p, top_k=top_k, stop=stop or ()
    )


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
