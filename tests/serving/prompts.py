"""Prompts of several kinds: chat, code, lists, copying, another language, a single word."""

from __future__ import annotations

from collections.abc import Sequence

from outrider import Message

Prompt = str | Sequence[Message]


def chat(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


PROMPTS: list[Prompt] = [
    chat("Explain in a few sentences why the sky is blue."),
    "def fibonacci(n):\n    ",
    "The planets of the solar system, in order from the sun, are",
    chat("Repeat this text twice, word by word: The quick brown fox jumps over the lazy dog near the old mill."),
    "Question: What is 12 times 12?\nAnswer:",
    "La capitale de la France est",
    chat("Write a Python function that reverses a string, with a short example."),
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,",
]
