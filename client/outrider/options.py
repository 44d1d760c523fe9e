"""How an answer is asked for on the command line: the options of `generate` and `chat`, declared once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from outrider.access_options import AccessOptions
from outrider.client import DEFAULT_SERVER, GENERATE_TIMEOUT_S
from outrider.types import AcceptanceRule, SamplingParams, ServiceClass, Speculation, SpeculationMode

Server = Annotated[
    str, typer.Option(envvar="OUTRIDER_SERVER", metavar="HOST:PORT", help="The Outrider server to talk to.")
]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Give up when it takes longer than this.")]

sampling_option = partial(typer.Option, rich_help_panel="Sampling")
_structure_option = partial(typer.Option, rich_help_panel="Structure (at most one of these)")
_speculation_option = partial(typer.Option, rich_help_panel="Speculation")
_output_option = partial(typer.Option, rich_help_panel="Output")


class TokenBias(NamedTuple):
    token_id: int
    bias: float


def token_bias(value: str) -> TokenBias:
    token_id, _, bias = value.partition("=")
    try:
        return TokenBias(int(token_id), float(bias))
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not TOKEN_ID=BIAS, such as 284=-5") from None


def text_or_file(value: str) -> str:
    """As it stands, or after an @ the text of a file."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise typer.BadParameter(f"{value[1:]!r} can't be read: {err}") from err


def schema_or_file(value: str) -> str:
    if not value.startswith(("@", "{")):
        raise typer.BadParameter(f"{value!r} is neither a schema, which begins with {{, nor a file, such as @{value}")
    return text_or_file(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(AccessOptions):
    """None, False and no list at all: not said, so that the server's default holds."""

    server: Server = DEFAULT_SERVER
    timeout: Timeout = GENERATE_TIMEOUT_S
    service_class: Annotated[
        ServiceClass | None,
        typer.Option(help="How urgent it is: who starts first, and who gives way under load. Unset: standard."),
    ] = None

    max_tokens: Annotated[int | None, sampling_option(help="Tokens of the answer at most. Unset: 256.")] = None
    temperature: Annotated[float | None, sampling_option(help="0 is greedy. Unset: 1.")] = None
    seed: Annotated[
        int | None, sampling_option(help="The same seed gives the same tokens. Unset: drawn, and shown.")
    ] = None
    top_k: Annotated[int | None, sampling_option(help="Choose among this many tokens. Unset: all.")] = None
    top_p: Annotated[
        float | None, sampling_option(help="Choose among the likeliest tokens with this mass. Unset: 1.")
    ] = None
    min_p: Annotated[
        float | None, sampling_option(help="Leave out what is less likely than this share of the likeliest. Unset: 0.")
    ] = None
    typical_p: Annotated[
        float | None, sampling_option(help="Choose among the most typical tokens with this mass. Unset: 1.")
    ] = None
    repetition_penalty: Annotated[
        float | None, sampling_option(help="Above 1: tokens of prompt and answer become less likely. Unset: 1.")
    ] = None
    presence_penalty: Annotated[
        float | None, sampling_option(help="Taken off the logits of tokens in the answer. Unset: 0.")
    ] = None
    frequency_penalty: Annotated[
        float | None, sampling_option(help="The same, for each time that the token is there. Unset: 0.")
    ] = None
    logit_bias: Annotated[
        list[TokenBias] | None,
        sampling_option(parser=token_bias, metavar="TOKEN_ID=BIAS", help="Added to a logit. May be repeated."),
    ] = None
    bad_words: Annotated[
        list[str] | None, sampling_option("--bad-word", metavar="TEXT", help="Never in the answer. May be repeated.")
    ] = None
    allowed_token_ids: Annotated[
        list[int] | None,
        sampling_option("--allowed-token", metavar="TOKEN_ID", help="Choose among these only. May be repeated."),
    ] = None
    min_tokens: Annotated[int | None, sampling_option(help="No end before this many tokens. Unset: 0.")] = None
    stop: Annotated[
        list[str] | None, sampling_option(metavar="TEXT", help="End where this text appears. May be repeated.")
    ] = None
    stop_token_ids: Annotated[
        list[int] | None,
        sampling_option("--stop-token", metavar="TOKEN_ID", help="End with this token. May be repeated."),
    ] = None
    include_stop: Annotated[bool, sampling_option("--include-stop", help="Keep the --stop in the text.")] = False
    ignore_eos: Annotated[bool, sampling_option("--ignore-eos", help="Go on past the model's end tokens.")] = False

    json_schema: Annotated[
        str | None,
        _structure_option(
            parser=schema_or_file, metavar="SCHEMA|@FILE", help="JSON that fits this schema: {…}, or @ and a file."
        ),
    ] = None
    regex: Annotated[
        str | None, _structure_option(metavar="REGEX", help="A text that this expression matches as a whole.")
    ] = None
    grammar: Annotated[
        str | None,
        _structure_option(
            parser=text_or_file, metavar="LARK|@FILE", help="A text of this grammar, or of @ and a file."
        ),
    ] = None
    choice: Annotated[
        list[str] | None, _structure_option(metavar="TEXT", help="One of these texts. May be repeated.")
    ] = None

    mode: Annotated[
        SpeculationMode | None,
        _speculation_option("--speculation", help="Use drafts, or the target alone. Unset: auto."),
    ] = None
    drafters: Annotated[
        list[str] | None,
        _speculation_option("--drafter", metavar="NAME", help="A drafter that may draft. May be repeated. Unset: all."),
    ] = None
    max_nodes: Annotated[
        int | None, _speculation_option(help="Draft nodes in a pass at most. Unset: the server's limit.")
    ] = None
    acceptance_rule: Annotated[
        AcceptanceRule | None,
        _speculation_option(
            "--rule",
            help="coupled: drafts change no token. rejection: they don't change the law. typical: they may; only where "
            "the server allows it. Unset: coupled.",
        ),
    ] = None

    logprobs: Annotated[
        int | None,
        _output_option(metavar="NUM", help="Show each token's log-probability, and those of the NUM likeliest."),
    ] = None
    keep_special_tokens: Annotated[
        bool, _output_option("--keep-special-tokens", help="Show the model's special tokens in the text.")
    ] = False
    as_json: Annotated[bool, _output_option("--json", help="One JSON object a line instead of text.")] = False

    def sampling(self, n: int | None = None) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=dict(self.logit_bias or ()),
            stop=self.stop or (),
            stop_token_ids=self.stop_token_ids or (),
            ignore_eos=self.ignore_eos or None,
            include_stop=self.include_stop or None,
            min_tokens=self.min_tokens,
            bad_words=self.bad_words or (),
            allowed_token_ids=self.allowed_token_ids or (),
            n=n,
            logprobs=self.logprobs,
            skip_special_tokens=False if self.keep_special_tokens else None,
            json_schema=self.json_schema,
            regex=self.regex,
            grammar=self.grammar,
            choice=self.choice or (),
        )

    def speculation(self) -> Speculation:
        return Speculation(
            mode=self.mode,
            drafters=self.drafters or (),
            max_nodes=self.max_nodes,
            acceptance_rule=self.acceptance_rule,
        )
