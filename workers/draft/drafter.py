"""What a drafter is, and which there are.

A drafter guesses; nothing that it says can change a token. All that it keeps of a request can be had again by
telling it the committed tokens, so it is free to forget. A new kind of drafter is one file and one line in KINDS; a
class of your own needs no line: "class:MODULE:NAME" (docs/drafters.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, runtime_checkable

from tokenizers import Tokenizer

from outrider.errors import InvalidRequest
from outrider.tree import DraftTree
from outrider.v1 import worker_pb2
from workers.choice.params import ChoiceParams

# By name, so that a worker with token-only drafters never loads torch.
KINDS = {
    "ngram": "workers.draft.ngram:load",
    "suffix": "workers.draft.suffix:load",
    "model": "workers.draft.model:load",
    "universal": "workers.draft.universal:load",
    "class": "workers.draft.users_class:load",
}
_FORMS = (
    '"ngram", "suffix", "model:PATH_OR_NAME", "universal:PATH_OR_NAME", "class:MODULE:NAME", or NAME=SPEC to name it'
)


@dataclass(slots=True, eq=False)
class Request:
    """One request as a drafter sees it: what is committed, and the nodes that the drafter has put below it."""

    key: int
    params: ChoiceParams  # what the target chooses with, seed included
    tokens: list[int] = field(default_factory=list)  # committed; the last one is the tree's root
    tree: DraftTree = field(default_factory=DraftTree)
    max_nodes: int = 0  # that are wanted below the present root
    min_survival: float = 0.0  # nodes that are reached less often are not worth drafting
    is_live: bool = False  # more nodes are wanted, and may be found

    @property
    def num_missing(self) -> int:
        """How many nodes are still wanted."""
        return self.max_nodes - len(self.tree)


class Drafter(Protocol):
    """One drafter and its requests. One thread at a time.

    Of a request: open, then commit and step in any order, then close. Between two calls a request's tokens and tree
    are moved along what was committed; whatever a drafter keeps besides is its own business.
    """

    kind: str
    model: str  # empty for drafters without one
    vocabulary: worker_pb2.Vocabulary  # empty: it drafts by id alone
    max_context: int  # 0: no limit
    draws: bool  # whether, under the rejection rule, it draws its nodes and sends their laws

    def open(self, request: Request) -> None:
        """Begin a request. It has no tokens yet."""

    def commit(self, request: Request, tokens: Sequence[int]) -> None:
        """These tokens are committed. Called before request.tokens and request.tree move along them."""

    def step(self, requests: Sequence[Request]) -> None:
        """One batched step for live requests: add nodes to their trees, the likeliest first.

        A step may add nothing yet to a request: a long prompt takes several. Sets `is_live` to False where no more
        nodes are wanted, or none will be found below this root.
        """

    def close(self, request: Request) -> None:
        """Forget a request."""


@runtime_checkable
class TextDrafter(Drafter, Protocol):
    """A drafter that reads the target's tokens as text. It has no vocabulary of the target's: it is told it."""

    def take_tokenizer(self, tokenizer: Tokenizer) -> None:
        """The target's, for the requests that are opened from now on."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a drafter may use."""

    device: str = "cpu"
    dtype: str = "auto"
    threads: int | None = None
    kv_cache_bytes: int | None = None
    compiled: bool = False
    cache_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class DrafterSpec:
    """A drafter as the configuration names it: "ngram", "model:PATH_OR_NAME" or "NAME=model:PATH_OR_NAME"."""

    name: str  # as clients see it
    kind: str
    source: str  # what follows the kind; empty for kinds that need nothing

    @classmethod
    def parse(cls, text: str) -> DrafterSpec:
        """Raises InvalidRequest, naming the text and the forms that there are."""
        kind, colon, source = text.partition(":")
        name, equals, kind_behind = kind.partition("=")
        kind = kind_behind if equals else name
        if kind not in KINDS or not name or (colon and not source):
            raise InvalidRequest.of("drafters", text, f"it is {_FORMS}")
        return cls(name, kind, source)


def load_drafter(spec: DrafterSpec, resources: Resources) -> Drafter:
    """Raises InvalidRequest, ModelNotFound or Unsupported, naming what is wrong with the spec."""
    module, _, function = KINDS[spec.kind].partition(":")
    drafter: Drafter = getattr(import_module(module), function)(spec.source, resources)
    return drafter
