"""The tokens that a draft model can propose: a reduced output vocabulary makes its head, and so its step, small.

The model stays a standard one, with a row of its head for every token. A file beside its weights names the rows that
are used; a token that is not among them is never drafted, and costs a draft where it would have come.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from outrider.errors import InvalidRequest

FILE = "draft_vocab.json"
_KEY = "token_ids"


def most_frequent(texts: Iterable[Sequence[int]], size: int, always: Iterable[int]) -> list[int]:
    """The `size` most frequent tokens, those of `always` among them; ascending."""
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(text)
    chosen = dict.fromkeys(always)
    for token, _ in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        if len(chosen) >= size:
            break
        chosen.setdefault(token)
    return sorted(chosen)


def save_draft_vocab(folder: Path, token_ids: Sequence[int]) -> None:
    (folder / FILE).write_text(json.dumps({_KEY: list(token_ids)}))


def load_draft_vocab(folder: Path) -> list[int] | None:
    """Token ids, ascending; None where the folder says nothing of it. Raises InvalidRequest for what makes no sense."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        ids = json.loads(file.read_text())[_KEY]
        is_valid = bool(ids) and all(isinstance(token, int) for token in ids) and sorted(set(ids)) == ids
    except (ValueError, KeyError, TypeError) as err:
        raise InvalidRequest(f"{file}: it is no draft vocabulary: {err}") from err
    if not is_valid or ids[0] < 0:
        raise InvalidRequest(f"{file}: {_KEY} must be ascending token ids")
    return list(ids)
