"""The prompts: chat, code, lists, and texts to copy, which drafters guess well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.types import Message


@dataclass(frozen=True, slots=True)
class Prompt:
    name: str
    text: str
    is_chat: bool = False  # asked as a user's turn where the model has a chat template

    def content(self, has_chat_template: bool) -> str | Sequence[Message]:
        return [{"role": "user", "content": self.text}] if self.is_chat and has_chat_template else self.text


# Any number of them from the start on is a mixture, and the first one lets even prompt lookup draft.
PROMPTS = (
    Prompt("count", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3,"),
    Prompt("chat", "Explain in a few sentences why the sky is blue.", is_chat=True),
    Prompt("code", "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n"),
    Prompt(
        "copy",
        "Repeat this text twice, word by word: The quick brown fox jumps over the lazy dog near the old mill. "
        "The lazy dog sleeps near the old mill, and the quick brown fox jumps over it.",
        is_chat=True,
    ),
    Prompt("list", "Shopping list:\n- milk\n- bread\n- eggs\n- milk\n- bread\n-"),
    Prompt("json", '{"users": [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Alan"}, {"id": 3, "name":'),
    Prompt("table", "| name | age |\n|---|---|\n| Ada | 36 |\n| Alan | 41 |\n| Grace | 85 |\n| name | age |\n|---|"),
    Prompt("days", "List the days of the week, one per line, each with a colour.", is_chat=True),
    Prompt("French", "La capitale de la France est Paris. La capitale de l'Italie est Rome. La capitale de"),
    Prompt("question", "Question: What is 12 times 12?\nAnswer: 144\nQuestion: What is 11 times 11?\nAnswer:"),
    Prompt("function", "Write a Python function that reverses a string, with a short example.", is_chat=True),
    Prompt("letter", "Dear Sir or Madam,\n\nI am writing to complain about"),
)
