"""Prompts to train on: as many as are wanted, from templates of ours and from Python's own sources and documentation.

They ask for chat, code, edits with copied spans, and summaries. Nothing is downloaded. A prompt is a function of the
seed, its number, and, for those that quote Python, the Python that runs.
"""

from __future__ import annotations

import ast
import random
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from workers.training import topics

Kind = Literal["chat", "code", "edit", "summarise"]

_MODULES = """
argparse ast asyncio.queues base64 bisect calendar cmd code codecs collections configparser contextlib copy csv
dataclasses datetime decimal difflib dis email.message enum filecmp fileinput fnmatch ftplib functools getopt gettext
glob gzip hashlib heapq hmac html.parser http.client http.cookies imaplib inspect ipaddress json.decoder json.encoder
keyword linecache locale logging mailbox mimetypes netrc nntplib numbers operator optparse os pathlib pdb pickle
pickletools platform plistlib poplib pprint profile queue quopri random re reprlib rlcompleter runpy sched selectors
shelve shlex shutil smtplib socket socketserver sqlite3 ssl stat statistics string struct subprocess tarfile tempfile
textwrap threading timeit token tokenize trace traceback types typing unittest.case urllib.parse urllib.request uuid
wave weakref webbrowser xml.dom.minidom xmlrpc.client zipfile zipapp
"""
_WEIGHTS = {"chat": 0.45, "code": 0.2, "edit": 0.2, "summarise": 0.15}
_LENGTHS = range(120, 900)  # characters of a quotation


@dataclass(frozen=True, slots=True)
class Prompt:
    kind: Kind
    text: str  # what the user says


def training_prompt(seed: int, number: int) -> Prompt:
    rng = random.Random(f"{seed}:{number}")
    kind = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    if kind == "chat":
        return Prompt("chat", _fill(rng, topics.QUESTIONS, topics.SUBJECTS))
    if kind == "code":
        return Prompt("code", _fill(rng, topics.CODE_REQUESTS, topics.CODE_TASKS))
    if kind == "edit":
        return Prompt("edit", f"{rng.choice(topics.lines(topics.CODE_QUESTIONS))}\n\n{rng.choice(_functions())}")
    return Prompt("summarise", f"{rng.choice(topics.lines(topics.TEXT_REQUESTS))}\n\n{rng.choice(_paragraphs())}")


def _fill(rng: random.Random, templates: str, subjects: str) -> str:
    return rng.choice(topics.lines(templates)).format(rng.choice(topics.phrases(subjects)))


@cache
def _functions() -> list[str]:
    """Sources of functions, in order."""
    functions = ((lines, node) for lines, node in _nodes() if isinstance(node, ast.FunctionDef))
    sources = ("\n".join(lines[node.lineno - 1 : node.end_lineno]) for lines, node in functions)
    return sorted({textwrap.dedent(source) for source in sources if len(source) in _LENGTHS})


@cache
def _paragraphs() -> list[str]:
    """Documentation, in order."""
    documented = (ast.AsyncFunctionDef, ast.FunctionDef, ast.ClassDef, ast.Module)
    texts = (ast.get_docstring(node) or "" for _, node in _nodes() if isinstance(node, documented))
    return sorted({text for text in texts if len(text) in _LENGTHS and ">>>" not in text})


def _nodes() -> Iterator[tuple[list[str], ast.AST]]:
    """The syntax trees of the modules that are there, node by node, and the lines of the file that each is part of."""
    for name in _MODULES.split():
        source = Path(sysconfig.get_path("stdlib"), *name.split("."))
        for file in (source.with_suffix(".py"), source / "__init__.py"):
            if file.is_file():
                text = file.read_text(encoding="utf-8")
                lines = text.splitlines()
                yield from ((lines, node) for node in ast.walk(ast.parse(text)))
