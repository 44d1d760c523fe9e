"""What a drafter is, and which there are.

A drafter guesses; nothing that it says can change a token. All that it keeps of a request can be had again by
telling it the committed tokens, so it is free to forget. A new kind of drafter is one file and one line in KINDS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from outrider.draft_law import DraftLaw
from outrider.errors import InvalidRequest
from outrider.v1 import worker_pb2
from workers.choice.params import ChoiceParams

# By name, so that a worker with token-only drafters never loads torch.
KINDS = {
    "ngram": "workers.draft.ngram:load",
    "model": "workers.draft.model:load",
}
_FORMS = '"ngram", "model:PATH_OR_NAME", or NAME=SPEC to name it'


@dataclass(slots=True)
class NewNodes:
    """Nodes that one step has added below a request's root."""

    key: int
    tokens: Sequence[int]  # [num_nodes]
    parents: Sequence[int]  # [num_nodes]; counted from the request's `begin` on, over all steps; -1 is the root
    scores: Sequence[float]  # [num_nodes]; higher is likelier
    is_done: bool  # no more will come for this root
    laws: Sequence[DraftLaw | None] = ()  # [num_nodes], of nodes that were drawn; see SparseLaws in worker.proto


class Drafter(Protocol):
    """One drafter and its requests. One thread at a time; keys are the caller's own numbers.

    Of a request: open, then extend and begin as tokens are committed, and step until it is done, then close.
    """

    kind: str
    model: str  # empty for drafters without one
    vocabulary: worker_pb2.Vocabulary  # empty: it drafts by id alone
    max_context: int  # 0: no limit
    draws: bool  # whether, under the rejection rule, it draws its nodes and sends their laws

    def open(self, key: int, params: ChoiceParams) -> None:
        """Begin a request without tokens. `params` are what the target chooses with, seed included."""

    def extend(self, key: int, tokens: Sequence[int]) -> None:
        """Append committed tokens. What was drafted beside them is forgotten."""

    def begin(self, key: int, max_nodes: int) -> None:
        """Ask for up to max_nodes nodes below the last committed token, in place of what was asked before."""

    def step(self) -> list[NewNodes]:
        """One batched step for every request that was begun and is not done.

        A step may add nothing yet to a request, and then has no entry for it: a long prompt takes several.
        """

    def close(self, key: int) -> None:
        """Forget a request."""


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
