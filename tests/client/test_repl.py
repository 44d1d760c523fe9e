"""A conversation at a terminal, typed by a test."""

from __future__ import annotations

import grpc
import pytest

from tests.client.command import in_terminal
from tests.client.fake_inference import TEXT, WAIT_S, FakeInference, endless_answer, refusal, whole_answer

PROMPT = "> "


def turns(fake: FakeInference, call: int) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in fake.requests[call].chat.messages]


def test_a_turn_is_told_all_that_went_before_it(server: str, fake: FakeInference) -> None:
    with in_terminal("chat", "--server", server, NO_COLOR="1") as terminal:
        terminal.read_until(PROMPT)
        terminal.send("Hi\n")
        terminal.read_until(TEXT)
        terminal.read_until(PROMPT)
        terminal.send("Again\n")
        terminal.read_until(TEXT)
        terminal.read_until(PROMPT)
        terminal.send("/exit\n")
        assert terminal.exit_code() == 0
    assert turns(fake, 0) == [("user", "Hi")]
    assert turns(fake, 1) == [("user", "Hi"), ("assistant", TEXT), ("user", "Again")]
    assert len(fake.calls) == 2


def test_ctrl_d_leaves(server: str, fake: FakeInference) -> None:
    with in_terminal("chat", "--server", server) as terminal:
        terminal.read_until(PROMPT)
        terminal.send("\x04")
        assert terminal.exit_code() == 0
    assert fake.calls == []


def test_ctrl_c_cancels_the_answer_and_at_the_prompt_it_leaves(server: str, fake: FakeInference) -> None:
    fake.script = endless_answer
    with in_terminal("chat", "--server", server, NO_COLOR="1") as terminal:
        terminal.read_until(PROMPT)
        terminal.send("Hi\n")
        terminal.read_until("The sky is")
        terminal.interrupt()
        assert fake.client_left.wait(WAIT_S)
        terminal.read_until("forgotten")
        terminal.read_until(PROMPT)
        fake.script = whole_answer
        terminal.send("Again\n")
        terminal.read_until(TEXT)
        terminal.read_until(PROMPT)
        assert terminal.exit_code_when_interrupted() == 130
    assert turns(fake, 1) == [("user", "Again")]


@pytest.mark.parametrize("empty", ["\n", "   \n"])
def test_an_empty_line_asks_nothing(server: str, fake: FakeInference, empty: str) -> None:
    with in_terminal("chat", "--server", server) as terminal:
        terminal.read_until(PROMPT)
        terminal.send(empty)
        terminal.read_until(PROMPT)
        terminal.send("/exit\n")
        assert terminal.exit_code() == 0
    assert fake.calls == []


def test_a_failed_turn_is_explained_and_forgotten_and_the_chat_goes_on(server: str, fake: FakeInference) -> None:
    fake.script = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", retry_pushback_ms="2000")
    with in_terminal("chat", "--server", server, NO_COLOR="1") as terminal:
        terminal.read_until(PROMPT)
        terminal.send("Hi\n")
        terminal.read_until("the queue is full; try again in 2 s")
        terminal.read_until(PROMPT)
        fake.script = whole_answer
        terminal.send("Again\n")
        terminal.read_until(TEXT)
        terminal.read_until(PROMPT)
        terminal.send("/exit\n")
        assert terminal.exit_code() == 0
    assert turns(fake, 1) == [("user", "Again")]
