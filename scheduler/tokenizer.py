"""Text to tokens: the target's own tokenizer and chat template, from the files that the target serves.

Uses the `tokenizers` library alone. All of it is CPU work of milliseconds: call it in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import jinja2
import jinja2.ext
import jinja2.sandbox
from tokenizers import Tokenizer as FastTokenizer

from outrider.errors import InvalidRequest, OutriderError, shown
from outrider.types import Message


class BadFiles(OutriderError):
    """They make no tokenizer; the message names the file."""


class Tokenizer:
    """Renders and encodes prompts of one model.

    `files`: contents by name; "tokenizer.json" must be there. Raises BadFiles, and InvalidRequest for prompts that
    the model's chat template refuses.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        if "tokenizer.json" not in files:
            raise BadFiles(f"its files are {shown(sorted(files))}: tokenizer.json must be among them")
        self.json = files["tokenizer.json"]  # for drafters that read texts
        self.fast = _parse_tokenizer(self.json)
        self._config = _parse_config(files.get("tokenizer_config.json", b"{}"))
        self._template = _compile_template(files, self._config)

    @property
    def has_chat_template(self) -> bool:
        return isinstance(self._template, jinja2.Template)

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens that the model puts before one."""
        ids: list[int] = self.fast.encode(text).ids
        return ids

    def encode_word(self, text: str) -> list[int]:
        """Token ids of a piece of text, without special tokens."""
        ids: list[int] = self.fast.encode(text, add_special_tokens=False).ids
        return ids

    def render_chat(self, messages: Sequence[Message], variables: Mapping[str, object]) -> str:
        """A chat, with its special tokens, up to where the assistant's next turn begins."""
        if not isinstance(self._template, jinja2.Template):
            raise InvalidRequest(f"prompt.chat: {self._template}; send prompt.text or prompt.token_ids")
        special = {key: _content(self._config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
        try:
            return self._template.render(
                **{**special, **variables}, messages=list(messages), add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError) as err:
            raise InvalidRequest(f"prompt.chat: the model's chat template refuses these messages: {err}") from err


def _parse_tokenizer(data: bytes) -> FastTokenizer:
    try:
        return FastTokenizer.from_buffer(data)
    except ValueError as err:
        raise BadFiles(f"its tokenizer.json, {len(data)} bytes, is no tokenizer: {err}") from err


def _parse_config(data: bytes) -> dict[str, object]:
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise BadFiles(f"its tokenizer_config.json, {len(data)} bytes, is no JSON: {err}") from err
    if not isinstance(config, dict):
        raise BadFiles(f"its tokenizer_config.json is {shown(config)}: it must be an object")
    return config


def _compile_template(files: Mapping[str, bytes], config: Mapping[str, object]) -> jinja2.Template | str:
    """The template, compiled as Hugging Face documents it: sandboxed, blocks trimmed, loop controls on. Or why there is
    none: a model whose chats can't be rendered goes on with other prompts."""
    in_config = config.get("chat_template")
    source = files.get("chat_template.jinja", in_config)
    if not isinstance(source, (bytes, str)):
        return "this model has no chat template"
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    try:
        return environment.from_string(source if isinstance(source, str) else source.decode())
    except (jinja2.TemplateError, SyntaxError, RecursionError, UnicodeDecodeError) as err:
        return f"this model's chat template does not compile: {err}"


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _content(token: object) -> str:
    """Special tokens stand in tokenizer_config.json as a string, or as an object with `content`."""
    if isinstance(token, Mapping):
        return str(token.get("content", ""))
    return token if isinstance(token, str) else ""
