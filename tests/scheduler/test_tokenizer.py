from __future__ import annotations

import pytest

from outrider.errors import InvalidRequest
from scheduler.tokenizer import BadFiles, Tokenizer


def test_a_chat_is_rendered_by_the_models_template(tokenizer_files: dict[str, bytes]) -> None:
    tokenizer = Tokenizer(tokenizer_files)
    ids = tokenizer.encode_word(tokenizer.render_chat([{"role": "user", "content": "the rain"}], {}))
    assert tokenizer.fast.decode(ids, skip_special_tokens=False) == "<s>user: the rain\n<s>assistant:"
    assert ids[0] == tokenizer.fast.token_to_id("<s>")


def test_what_the_template_refuses_is_the_clients_fault(tokenizer_files: dict[str, bytes]) -> None:
    with pytest.raises(InvalidRequest, match="no robots"):
        Tokenizer(tokenizer_files).render_chat([{"role": "robot", "content": "x"}], {})


def test_a_template_can_not_reach_into_python(tokenizer_files: dict[str, bytes]) -> None:
    files = tokenizer_files | {"chat_template.jinja": b"{{ ''.__class__.__mro__ }}"}
    with pytest.raises(InvalidRequest, match="unsafe"):
        Tokenizer(files).render_chat([{"role": "user", "content": "x"}], {})


def test_a_model_without_a_template_says_what_to_send_instead(tokenizer_files: dict[str, bytes]) -> None:
    files = {name: data for name, data in tokenizer_files.items() if name != "chat_template.jinja"}
    tokenizer = Tokenizer(files)
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequest, match=r"prompt\.text"):
        tokenizer.render_chat([{"role": "user", "content": "x"}], {})


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("tokenizer.json", b"", r"its tokenizer\.json, 0 bytes, is no tokenizer"),
        ("tokenizer.json", b'{"version": "1.0", "trunc', r"its tokenizer\.json, 25 bytes, is no tokenizer"),
        ("tokenizer.json", b"\xff", r"its tokenizer\.json, 1 bytes, is no tokenizer"),
        ("tokenizer_config.json", b"{", r"its tokenizer_config\.json, 1 bytes, is no JSON"),
        ("tokenizer_config.json", b"\xff", r"its tokenizer_config\.json, 1 bytes, is no JSON"),
        ("tokenizer_config.json", b"[" * 99_999, r"its tokenizer_config\.json, 99999 bytes, is no JSON"),
        ("tokenizer_config.json", b"[7]", r"its tokenizer_config\.json is \[7\]: it must be an object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_make_no_tokenizer_are_refused_by_their_name(
    tokenizer_files: dict[str, bytes], name: str, data: bytes, words: str
) -> None:
    with pytest.raises(BadFiles, match=words):
        Tokenizer(tokenizer_files | {name: data})


def test_what_is_missing_is_named_beside_what_is_there() -> None:
    with pytest.raises(BadFiles, match=r"\['vocab\.json'\]: tokenizer\.json must be among them"):
        Tokenizer({"vocab.json": b"{}"})


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (b"{% if %}", "Expected an expression"),
        (b"{% generation %}x{% endgeneration %}", "unknown tag 'generation'"),
        (b"{{ x | no_such_filter }}", "No filter named 'no_such_filter'"),
        (b"{% for x in y %}" * 30 + b"{% endfor %}" * 30, "too many statically nested blocks"),
        (b"{{" + b"(" * 5000 + b"1" + b")" * 5000 + b"}}", "maximum recursion depth exceeded"),
        (b"\xff", "can't decode byte 0xff"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_template_that_does_not_compile_costs_a_model_its_chats_alone(
    tokenizer_files: dict[str, bytes], template: bytes, reason: str
) -> None:
    tokenizer = Tokenizer(tokenizer_files | {"chat_template.jinja": template})
    assert not tokenizer.has_chat_template
    assert tokenizer.fast.decode(tokenizer.encode("the rain")) == "the rain"
    with pytest.raises(InvalidRequest, match=rf"does not compile: .*{reason}.*; send prompt\.text"):
        tokenizer.render_chat([{"role": "user", "content": "x"}], {})
