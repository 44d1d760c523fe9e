"""A small model of the target's family that runs ahead: a tree of its best guesses, with the target's noise.

The drafter ranks what may come next as the target would choose: same processing, same noise at the same absolute
position. So it guesses the target's sample, and not only its mode (coupling without communication, arXiv 2408.07978;
with several children, 2506.05632). Under the rejection rule it draws a chain from its own law instead (drawing.py).

A step expands the likeliest leaves of all requests in one forward, each with its children to come; the best of these
become nodes. How likely a child is was learned from the verdicts on earlier ones (outrider/calibration.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import count

from outrider.errors import InvalidRequest
from outrider.tree import Node
from outrider.v1 import worker_pb2
from workers.choice.choose import Noise
from workers.choice.noise import kept_noise
from workers.draft.branches import Branches
from workers.draft.drafter import Request, Resources
from workers.draft.frontier import Frontier, likeliest_leaves
from workers.draft.guessing import Guesser
from workers.draft_vocab import load_draft_vocab
from workers.engine.batch import Row
from workers.engine.checkpoint import DEFAULT_CACHE_DIR, Checkpoint, prepare_checkpoint
from workers.engine.device import draft_dtype, resolve_device, set_num_threads
from workers.engine.runner import Engine
from workers.vocabulary import vocabulary_of

MAX_STEP_TOKENS = 512  # of all requests; longer prompts take several steps, and others draft meanwhile
MAX_STEP_LEAVES = 8  # expanded in a step; at least one of each request

_Place = tuple[Request, Node | None]  # the root, or a leaf, of a request

_log = logging.getLogger(__name__)


def load(source: str, resources: Resources) -> ModelDrafter:
    """The drafter of the model that `source` names: a folder, a .gguf file or a hub name."""
    if not source:
        raise InvalidRequest.of("drafters", "model", 'it names its model: "model:PATH_OR_NAME"')
    checkpoint, engine = load_engine(source, resources)
    noise = kept_noise(engine.spec.vocab_size, resolve_device(resources.device))
    return ModelDrafter(engine, vocabulary_of(checkpoint.folder, engine.spec.vocab_size), noise)


def load_engine(source: str, resources: Resources) -> tuple[Checkpoint, Engine]:
    """A draft model, ready to run."""
    set_num_threads(resources.threads)
    checkpoint = prepare_checkpoint(source, cache_dir=resources.cache_dir)
    cache_dir = (resources.cache_dir or DEFAULT_CACHE_DIR).expanduser()
    engine = Engine(
        checkpoint,
        device=resources.device,
        dtype=draft_dtype(resources.dtype, resolve_device(resources.device), cache_dir),
        kv_cache_bytes=resources.kv_cache_bytes,
        compiled=resources.compiled,
        cache_dir=resources.cache_dir,
        output_ids=load_draft_vocab(checkpoint.origin or checkpoint.folder),
    )
    return checkpoint, engine


class _State:
    """What the drafter keeps of a request."""

    def __init__(self, branches: Branches) -> None:
        self.branches = branches
        self.frontier = Frontier()
        self.is_readable = True  # the model's vocabulary has all committed tokens, and one that is allowed


class ModelDrafter:
    """Grows the trees of all live requests by one forward a step."""

    kind = "model"
    draws = True

    def __init__(self, engine: Engine, vocabulary: worker_pb2.Vocabulary, noise: Noise | None) -> None:
        self.model = engine.spec.name
        self.vocabulary = vocabulary
        self.max_context = min(engine.spec.max_context, engine.num_blocks * engine.block_size)
        self._engine = engine
        self._guesser = Guesser(engine.spec.vocab_size, engine.output_ids, noise, engine.device)
        self._states: dict[int, _State] = {}
        self._requests: dict[int, Request] = {}  # the longest unused first
        self._keys = count()

    def open(self, request: Request) -> None:
        self._requests[request.key] = request
        state = self._states[request.key] = _State(Branches(self._engine, self._keys))
        params = request.params.within(self._engine.spec.vocab_size)
        request.params, state.is_readable = params or request.params, params is not None

    def commit(self, request: Request, tokens: Sequence[int]) -> None:
        state = self._states[request.key]
        is_kept = not request.params.is_drawn_for
        if is_kept:
            self._guesser.learn(request, tokens)
        survivor = request.tree.find(tokens)
        state.branches.commit(request.tree, len(request.tokens), tokens, keep=is_kept)
        state.frontier.commit(survivor if state.branches.is_root_expanded else None)
        state.is_readable &= max(tokens) < self._engine.spec.vocab_size

    def close(self, request: Request) -> None:
        self._states.pop(request.key).branches.close()
        del self._requests[request.key]

    def step(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._requests[request.key] = self._requests.pop(request.key)
            request.is_live = self._may_grow(request)
        live = [request for request in requests if request.is_live]
        places, rows = self._rows(live)
        if rows:
            self._expand(places, rows)
        for request in live:
            state = self._states[request.key]
            state.branches.note_run()
            state.frontier.promote(request, self.kind, self._engine.spec.end_token_ids, self.max_context)
            request.is_live = request.is_live and self._may_grow(request)

    def _may_grow(self, request: Request) -> bool:
        state = self._states[request.key]
        if not (state.is_readable and 0 < len(request.tokens) < self.max_context and request.num_missing > 0):
            return False
        if not state.branches.is_root_expanded:
            return True
        return bool(state.frontier.leaves or state.frontier.best(request.min_survival))

    def _rows(self, live: Sequence[Request]) -> tuple[list[_Place], list[Row]]:
        """What this step computes: roots, and the likeliest leaves. In turn where the cache is full: the first ones in
        line take the room of the last ones, and the first that finds none waits, and all behind it."""
        places: list[_Place] = []
        rows: list[Row] = []
        room = MAX_STEP_TOKENS
        leaves = likeliest_leaves([self._states[request.key].frontier for request in live], MAX_STEP_LEAVES)
        for turn, (request, chosen) in enumerate(zip(live, leaves, strict=True)):
            branches = self._states[request.key].branches
            is_begun = branches.is_root_expanded
            added: list[Row] = []
            if is_begun:
                added = [branches.node_row(leaf) for leaf in chosen]
            elif room > 0:
                added = [branches.root_row(request.tokens, room)]
            if not self._make_room([*rows, *added], live, turn):
                # The rows before count on whatever it has taken being free.
                branches.withdraw(chosen) if is_begun else self._forget(request)
                request.is_live = turn > 0  # the first one has had the whole cache
                break
            places += [(request, leaf) for leaf in chosen] if is_begun else [(request, None)] * len(added)
            rows += added
            room -= sum(row.num_tokens for row in added)
        return places, rows

    def _expand(self, places: Sequence[_Place], rows: Sequence[Row]) -> None:
        logits = self._engine.forward_packed(rows)
        wanted = [place for place, row in zip(places, rows, strict=True) if row.wants_logits]
        for (request, node), found in zip(wanted, self._guesser.candidates(logits, wanted), strict=True):
            state = self._states[request.key]
            state.frontier.candidates += found
            if node is None:
                state.branches.note_root(len(request.tokens))
            else:
                state.frontier.leaves.remove(node)
            if not found:
                _log.warning("%s has nothing to say after a token: NaN, or every token is banned", self.model)

    def _make_room(self, rows: Sequence[Row], live: Sequence[Request], turn: int) -> bool:
        """Forget requests until the rows fit: the idle ones, the longest unused first, then those behind `turn` in
        line, the last first."""
        waited = {request.key for request in live}
        idle = [request for request in self._requests.values() if request.key not in waited]
        others = [*live[turn + 1 :], *reversed(idle)]
        while self._engine.blocks_needed(rows) > self._engine.num_free_blocks:
            if not others:
                return False
            self._forget(others.pop())
        return True

    def _forget(self, request: Request) -> None:
        """Give back all that is kept of a request; it can be had again from its tokens."""
        state = self._states[request.key]
        state.branches.forget()
        state.frontier.commit(None)
        request.tree.clear()
