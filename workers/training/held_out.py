"""Prompts that nothing is trained on: what draft models are judged by. Fixed, and about other things than topics.py."""

from __future__ import annotations

from workers.training.prompts import Kind, Prompt

_CHAT = """
How do lighthouse lamps throw their light so far?
My neighbour practises the trumpet at night. Help me write a polite note.
What is the difference between a meteor, a meteoroid and a meteorite?
Explain what a sourdough starter is and how to keep one alive.
Give me three ideas for a rainy afternoon with two small children.
Why do onions make people cry?
Write a short, friendly invitation to a street party.
What does a stage manager do during a performance?
How did sailors find their longitude before satellites?
I want to repaint an old wooden chair. What do I need?
Describe how a zipper works.
What are some good habits for people who work from home?
Tell me a short bedtime story about a hedgehog who collects buttons.
What should I check before I buy a used piano?
Explain the offside rule to somebody who has never seen the game.
Why do some countries drive on the left?
"""

_CODE = """
Write a Python function that tells whether two rectangles overlap.
Write a Python function that wraps a text at 60 characters without breaking words.
Write a Python class for a thermostat with a target temperature and a method update.
Write a function in Python that rounds a price to the nearest five cents.
Show me how to read the first ten lines of a large file in Python.
Write a Python function that returns the second largest distinct value of a list.
Write a JavaScript function that debounces another function.
Write a Python generator that yields the running maximum of a sequence.
Write a SQL query that lists the customers who have never placed an order.
Write a Python function that counts the islands in a grid of zeros and ones.
Write a shell script that renames all .jpeg files in a folder to .jpg.
Write a Python function that parses "3h 20m" into a number of minutes.
"""

_SNIPPETS = (
    """def total_price(items, discount=0):
    total = 0
    for item in items:
        total += item["price"] * item["quantity"]
    if discount:
        total -= total * discount / 100
    return round(total, 2)""",
    """class Counter:
    def __init__(self, start=0):
        self.value = start

    def increment(self):
        self.value += 1
        return self.value

    def reset(self):
        self.value = 0""",
    """def read_settings(path):
    settings = {}
    with open(path) as file:
        for line in file:
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            key, value = line.split("=", 1)
            settings[key.strip()] = value.strip()
    return settings""",
    """def distance(a, b):
    dx = a[0] - b[0]
    dy = a[1] - b[1]
    return (dx * dx + dy * dy) ** 0.5


def nearest(point, candidates):
    best = None
    for candidate in candidates:
        if best is None or distance(point, candidate) < distance(point, best):
            best = candidate
    return best""",
)
_EDITS = (
    "Repeat this Python code exactly, but add a docstring to each function:",
    "Add type hints to this Python code and change nothing else:",
    "Copy this Python code and rename every variable called value or total to amount:",
)

_PASSAGES = (
    """The ferry left at six in the morning, as it had every day for forty years. On board were the baker with his
trays, two teachers, a dozen sleepy pupils and a dog that belonged to nobody. The captain greeted each of them
by name, the dog as well. When the fog came down he slowed the engine, rang the bell once a minute and listened
for the answer of the buoys.""",
    """Our new office opens on the first of March. It is on the third floor of the old mill by the river, five minutes
from the station. Every team gets a room with a door, and there is one large hall for meetings. Bicycles can be
left in the yard. Please pack your desk into the grey boxes by Friday noon; the movers will not carry loose
things. Keys are handed out at the front desk.""",
    """A heat pump moves warmth instead of making it. A liquid takes up heat from the air outside and turns into a gas.
A compressor squeezes the gas, which makes it much hotter. The hot gas warms the water of the radiators, becomes
a liquid again, and the circle starts anew. For one unit of electricity such a machine brings three or four
units of heat into the house.""",
    """The committee met on Tuesday evening with seven members present. It approved the minutes of the last meeting
without changes. The treasurer reported that the new roof had cost less than planned and that eleven hundred
remained in the fund. After a long discussion it was decided to spend the money on benches for the playground.
The next meeting is on the ninth of May.""",
)
_SUMMARIES = (
    "Summarise this text in one sentence:",
    "Make a list of the facts in this text:",
    "Repeat this text, but put it into the present tense:",
)


def held_out_prompts() -> list[Prompt]:
    """All of them, those of one kind side by side."""
    return [
        *_each("chat", _CHAT.strip().splitlines()),
        *_each("code", _CODE.strip().splitlines()),
        *_each("edit", [f"{ask}\n\n{snippet}" for snippet in _SNIPPETS for ask in _EDITS]),
        *_each("summarise", [f"{ask}\n\n{' '.join(text.split())}" for text in _PASSAGES for ask in _SUMMARIES]),
    ]


def _each(kind: Kind, texts: list[str]) -> list[Prompt]:
    return [Prompt(kind, text) for text in texts]
