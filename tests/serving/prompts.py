"""Prompts of several kinds: chat, code, lists, copying, other languages, a single word."""

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

VARIED_PROMPTS: list[Prompt] = [
    *PROMPTS,
    chat("Who was Marie Curie, and what is she known for?"),
    chat("Give me a recipe for pancakes with exact amounts."),
    chat("Write a short poem about the sea at night."),
    chat("List the days of the week, one per line, each with a colour."),
    chat("Translate into French: The cat sleeps on the warm roof."),
    chat("Correct the spelling: Teh wether tomorow wil be sunny adn warm."),
    chat("Count from one to twenty in words."),
    chat("Copy this table as it is:\n| name | age |\n|---|---|\n| Ada | 36 |\n| Alan | 41 |\n| Grace | 85 |"),
    chat("What is the difference between a list and a tuple in Python?"),
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; i++) {\n",
    "SELECT name, COUNT(*) FROM orders WHERE",
    "function debounce(callback, delay) {\n  let timer;\n",
    '{"users": [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Alan"}, {"id": 3,',
    "<html>\n<head>\n<title>My first page</title>\n</head>\n<body>\n",
    "Es war einmal ein König, der hatte drei Töchter und",
    "El perro corre por el parque y",
    "Роза упала на лапу",
    "日本の首都は",
    "Monday, Tuesday, Wednesday,",
    "To be, or not to be, that is the question:",
    "Shopping list:\n- milk\n- bread\n- eggs\n-",
    "a b c a b c a b c a b c a b c a b",
    "Dear Sir or Madam,\n\nI am writing to complain about",
]
