from __future__ import annotations

import pytest

from outrider.errors import InvalidRequest
from scheduler.tokenizer import Tokenizer


def test_a_chat_is_rendered_by_the_models_template(tokenizer_files: dict[str, bytes]) -> None:
    tokenizer = Tokenizer(tokenizer_files)
    ids = tokenizer.encode_chat([{"role": "user", "content": "the rain"}], {})
    assert tokenizer.fast.decode(ids, skip_special_tokens=False) == "<s>user: the rain\n<s>assistant:"
    assert ids[0] == tokenizer.fast.token_to_id("<s>")


def test_what_the_template_refuses_is_the_clients_fault(tokenizer_files: dict[str, bytes]) -> None:
    with pytest.raises(InvalidRequest, match="no robots"):
        Tokenizer(tokenizer_files).encode_chat([{"role": "robot", "content": "x"}], {})


def test_a_template_can_not_reach_into_python(tokenizer_files: dict[str, bytes]) -> None:
    files = tokenizer_files | {"chat_template.jinja": b"{{ ''.__class__.__mro__ }}"}
    with pytest.raises(InvalidRequest, match="unsafe"):
        Tokenizer(files).encode_chat([{"role": "user", "content": "x"}], {})


def test_a_model_without_a_template_says_what_to_send_instead(tokenizer_files: dict[str, bytes]) -> None:
    files = {name: data for name, data in tokenizer_files.items() if name != "chat_template.jinja"}
    tokenizer = Tokenizer(files)
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequest, match=r"prompt\.text"):
        tokenizer.encode_chat([{"role": "user", "content": "x"}], {})
