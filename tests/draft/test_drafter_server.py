"""The drafter worker's stream: fenced, superseding, and open to any kind of drafter."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.draft_orders import DraftOrder
from outrider.errors import InvalidRequest, OutriderError
from outrider.v1 import drafter_pb2, drafter_pb2_grpc, worker_pb2
from tests.draft.drafter_link import Link, Told, make_order, serving
from tests.target_link import SEEDED, TIMEOUT_S, Reference
from workers.draft.drafter import KINDS, DrafterSpec, Request, Resources
from workers.draft.server import DrafterConfig, DrafterServer
from workers.vocabulary import TOKENIZER_FILE, vocabulary_of

PROMPT = [5, 6, 7, 8, 9]
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Scripted:
    """A drafter under the test's control: it notes what it is told, and each step waits for the test's leave."""

    kind = "scripted"
    model = ""
    vocabulary = worker_pb2.Vocabulary()
    max_context = 0
    draws = False
    closed: list[int] = field(default_factory=list)
    steps: list[dict[int, int]] = field(default_factory=list)  # per step, the nodes left to draft for each key
    may_step: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    in_step: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def open(self, request: Request) -> None:
        pass

    def commit(self, request: Request, tokens: Sequence[int]) -> None:
        pass

    def step(self, requests: Sequence[Request]) -> None:
        """One node for each request: below the last one, the number of tokens that it has been told."""
        self.steps.append({request.key: request.num_missing for request in requests})
        self.in_step.release()
        assert self.may_step.acquire(timeout=TIMEOUT_S)
        for request in requests:
            last = max(request.tree, key=lambda node: node.number, default=None)
            request.tree.add(last, len(request.tokens), self.kind, 1.0)
            request.is_live = request.num_missing > 0

    def close(self, request: Request) -> None:
        self.closed.append(request.key)

    async def wait_in_step(self) -> None:
        assert await asyncio.to_thread(self.in_step.acquire, timeout=TIMEOUT_S)


SCRIPTED = Scripted()


def load_scripted(_source: str, _resources: Resources) -> Scripted:
    return SCRIPTED


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Registered as any new kind would be: by one line."""
    drafter = Scripted()
    monkeypatch.setitem(KINDS, "scripted", f"{__name__}:load_scripted")
    monkeypatch.setattr(sys.modules[__name__], "SCRIPTED", drafter)
    return drafter


def nodes_of(growths: Sequence[Told]) -> tuple[list[int], list[int]]:
    """The tokens and parents of an order's growths, after a look at what must hold of them."""
    tokens: list[int] = []
    parents: list[int] = []
    for growth in growths:
        assert growth.committed_len == growths[0].committed_len
        assert growth.first_node == growths[0].first_node + len(tokens)
        tokens += growth.tokens
        parents += growth.parents
    return tokens, parents


def paths_of(growths: Sequence[Told]) -> list[list[int]]:
    """The nodes of an epoch's growths from the first one on, as the tokens below the first root."""
    tokens, parents = nodes_of(growths)
    paths: list[list[int]] = [[]]
    for token, parent in zip(tokens, parents, strict=True):
        paths.append([*paths[parent], token])
    return paths[1:]


async def test_a_model_drafter_streams_a_tree_with_what_the_target_will_choose(
    tiny: Path, reference: Reference
) -> None:
    async with serving(f"model:{tiny}") as (_, stub):
        link = Link(stub)
        await link.send(make_order("model", PROMPT, is_open=True, max_nodes=20))
        growths = await link.receive_until_done()

        expected = reference.decode(PROMPT, 8, SEEDED)
        assert expected[:3] in paths_of(growths)
        assert len(growths) > 2  # as they are found, not at the end

        # Numbers run on over the orders of an epoch, and what still stands is not told again.
        await link.send(make_order("model", expected[:1], max_nodes=40))
        more = await link.receive_until_done()
        assert more[0].first_node == 21
        assert {growth.committed_len for growth in more} == {len(PROMPT) + 1}
        first, own = nodes_of(growths), nodes_of(more)
        assert all(0 <= parent < 21 + len(own[0]) for parent in own[1])
        assert expected[:4] in every_path(first, own, len(PROMPT), expected)


def every_path(
    first: tuple[list[int], list[int]], more: tuple[list[int], list[int]], prompt_len: int, answer: Sequence[int]
) -> list[list[int]]:
    """Nodes of a first order and of one whose root is one token further, all below the first root."""
    paths: dict[int, list[int]] = {0: []}
    for number, (token, parent) in enumerate(zip(*first, strict=True), 1):
        paths[number] = [*paths[parent], token]
    for number, (token, parent) in enumerate(zip(*more, strict=True), len(first[0]) + 1):
        paths[number] = [*(paths[parent] if parent else answer[:1]), token]
    return list(paths.values())


async def test_an_order_that_finds_nothing_is_done_at_once() -> None:
    async with serving("ngram") as (_, stub):
        link = Link(stub)
        await link.send(make_order("ngram", PROMPT, is_open=True))

        (growth,) = await link.receive()

    assert (growth.draft, growth.committed_len, growth.is_done, growth.tokens) == (1, len(PROMPT), True, [])


async def test_several_drafters_serve_one_stream_under_their_names(tiny: Path, reference: Reference) -> None:
    text = [5, 6, 7, 5, 6]
    async with serving("ngram", f"small=model:{tiny}") as (_, stub):
        description = await stub.Describe(worker_pb2.DescribeRequest(), timeout=TIMEOUT_S)
        link = Link(stub)
        await link.send(
            make_order("ngram", text, draft=0, is_open=True, max_nodes=1),
            make_order("small", text, draft=7, is_open=True, max_nodes=1),
        )
        growths = {growth.draft: growth for growth in [*await link.receive(), *await link.receive()]}

    assert growths[0].tokens == [7]
    assert growths[7].tokens == reference.decode(text, 1, SEEDED)
    assert [(each.name, each.kind, each.model, each.max_context) for each in description.drafters] == [
        ("ngram", "ngram", "", 0),
        ("small", "model", "tiny", 128),
    ]
    assert description.drafters[0].vocabulary == worker_pb2.Vocabulary()
    assert description.drafters[1].vocabulary == vocabulary_of(tiny, 97)


async def test_a_drafter_that_reads_texts_drafts_once_it_has_the_targets_tokenizer(
    tiny: Path, reference: Reference
) -> None:
    async with serving("ngram", f"texts=universal:{tiny}") as (_, stub):
        description = await stub.Describe(worker_pb2.DescribeRequest(), timeout=TIMEOUT_S)
        assert [each.reads_text for each in description.drafters] == [False, True]
        assert description.drafters[1].vocabulary == worker_pb2.Vocabulary()
        link = Link(stub)
        await link.send(make_order("texts", PROMPT, is_open=True))
        (nothing,) = await link.receive()

        with pytest.raises(grpc.aio.AioRpcError, match="json is no tokenizer") as refused:
            await stub.TakeTokenizer(drafter_pb2.TargetTokenizer(json=b"{}"), timeout=TIMEOUT_S)
        json = (tiny / TOKENIZER_FILE).read_bytes()
        await stub.TakeTokenizer(drafter_pb2.TargetTokenizer(json=json), timeout=TIMEOUT_S)
        await link.send(make_order("texts", PROMPT, draft=2, is_open=True))
        growths = await link.receive_until_done()

    assert (nothing.is_done, nothing.tokens) == (True, [])
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reference.decode(PROMPT, 2, SEEDED) in paths_of(growths)


async def test_an_order_for_a_drafter_that_is_not_here_is_done_at_once() -> None:
    async with serving("ngram") as (_, stub):
        link = Link(stub)
        await link.send(make_order("medusa", PROMPT, is_open=True))

        (growth,) = await link.receive()

    assert (growth.draft, growth.is_done, growth.tokens) == (1, True, [])


MISSING = {
    "never opened": make_order("ngram", PROMPT, draft=2),
    "released": make_order("ngram", [5], draft=3),
    "no tokens at all": make_order("ngram", [], draft=4, is_open=True),
}


@pytest.mark.parametrize("kind", MISSING)
async def test_what_an_order_cannot_be_built_on_is_reported_missing_and_opening_again_helps(kind: str) -> None:
    async with serving("ngram") as (_, stub):
        link = Link(stub)
        await link.send(make_order("ngram", PROMPT, is_open=True), make_order("ngram", PROMPT, draft=3, is_open=True))
        await link.receive()
        await link.release(3)

        await link.send(MISSING[kind])
        report = await link.receive_report()
        await link.send(make_order("ngram", [5, 6, 5], draft=9, is_open=True))
        (after,) = await link.receive()

    assert (list(report.missing), list(report.growths)) == ([MISSING[kind].draft], [])
    assert (after.draft, after.tokens[0]) == (9, 6)


async def test_a_number_is_given_back_with_the_next_report_and_may_stand_for_another_draft() -> None:
    async with serving("ngram") as (_, stub):
        link = Link(stub)
        await link.send(make_order("ngram", [5, 6, 5], is_open=True))
        await link.receive()
        await link.release(1, 8)
        await link.send(make_order("ngram", [5, 7, 5], draft=2, is_open=True))
        report = await link.receive_report()
        await link.send(make_order("ngram", [5, 8, 9, 5], draft=1, is_open=True, max_nodes=1))
        (another,) = await link.receive()

    assert list(report.released) == [1, 8]
    assert report.growths[1] == 2
    assert another.tokens == [8]


async def test_what_an_order_does_not_say_is_as_it_was(scripted: Scripted) -> None:
    scripted.may_step.release(99)
    async with serving("scripted") as (_, stub):
        link = Link(stub)
        await link.send(make_order("scripted", PROMPT, is_open=True, max_nodes=3))
        await link.receive_until_done()
        await link.send(DraftOrder(draft=1, tokens=[1]))
        growths = await link.receive_until_done()

    assert scripted.steps == [{0: 3}, {0: 2}, {0: 1}, {0: 3}, {0: 2}, {0: 1}]
    assert {growth.committed_len for growth in growths} == {len(PROMPT) + 1}


async def test_a_newer_order_supersedes_one_that_waits_and_one_that_is_being_drafted(scripted: Scripted) -> None:
    async with serving("scripted") as (_, stub):
        link = Link(stub)
        await link.send(make_order("scripted", PROMPT, is_open=True, max_nodes=9))
        await scripted.wait_in_step()
        # While the first step runs: two newer orders. The second of them replaces the first before it is seen.
        longer = [*PROMPT, 1, 2]
        await link.send(make_order("scripted", [1], max_nodes=7))
        await link.send(make_order("scripted", [2], max_nodes=2))
        await link.send(make_order("medusa", PROMPT, draft=2, is_open=True))  # answered at once: so those are noted
        await link.receive()
        scripted.may_step.release(5)

        growths = await link.receive_until_done()
        assert scripted.steps == [{0: 9}, {0: 2}, {0: 1}]

    # The node of the step that was overtaken is told too: its number says where it belongs.
    assert [growth.committed_len for growth in growths] == [len(PROMPT), len(longer), len(longer)]
    assert [growth.first_node for growth in growths] == [1, 2, 3]


async def test_a_release_between_steps_stops_its_draft_alone(scripted: Scripted) -> None:
    async with serving("scripted") as (_, stub):
        link = Link(stub)
        for request in (1, 2):
            await link.send(make_order("scripted", PROMPT, draft=request, is_open=True, max_nodes=3))
            await scripted.wait_in_step()
            scripted.may_step.release()
            await link.receive()
        await scripted.wait_in_step()
        await link.release(1, 3)
        await link.send(make_order("medusa", PROMPT, draft=4, is_open=True))
        await link.receive()
        scripted.may_step.release(9)

        growths = await link.receive_until_done()

    assert {growth.draft for growth in growths} == {2}
    assert scripted.closed[0] == 0


@pytest.mark.parametrize("how", ["end", "cancel"])
async def test_the_end_of_a_stream_forgets_all_that_was_opened_on_it(scripted: Scripted, how: str) -> None:
    scripted.may_step.release(99)
    async with serving("scripted") as (_, stub):
        link, other = Link(stub), Link(stub)
        for request in (1, 2, 3):
            await link.send(make_order("scripted", PROMPT, draft=request, is_open=True, max_nodes=1))
            await link.receive()

        if how == "end":
            async with asyncio.timeout(TIMEOUT_S):
                await link.stream.done_writing()
                assert await link.stream.read() == grpc.aio.EOF  # type: ignore[attr-defined]
        else:
            link.stream.cancel()

        # Each of these is a step, and steps carry out what has been closed: this waits on the drafter, not the clock.
        async with asyncio.timeout(TIMEOUT_S):
            draft = 0
            while not {0, 1, 2} <= set(scripted.closed):
                draft += 1
                await other.send(make_order("scripted", PROMPT, draft=draft, is_open=True, max_nodes=1))
                await other.receive()


async def test_requests_of_different_streams_do_not_meet() -> None:
    async with serving("ngram") as (_, stub):
        one, other = Link(stub), Link(stub)
        for link, text in ((one, [5, 6, 5]), (other, [5, 7, 5])):
            await link.send(make_order("ngram", text, is_open=True, max_nodes=1))

        assert [list((await link.receive())[0].tokens) for link in (one, other)] == [[6], [7]]


async def test_a_drafter_that_fails_ends_the_streams_and_is_seen(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_requests: Sequence[Request]) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(scripted, "step", broken)
    server = DrafterServer(DrafterConfig(drafters=("scripted", "ngram")))
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        link = Link(drafter_pb2_grpc.DrafterStub(channel))
        await link.send(make_order("scripted", PROMPT, is_open=True))

        with pytest.raises(RuntimeError, match="the device is gone"):
            await asyncio.wait_for(server.wait_failed(), TIMEOUT_S)
        assert await link.code() == grpc.StatusCode.UNAVAILABLE
        health = health_pb2_grpc.HealthStub(channel)
        async with asyncio.timeout(TIMEOUT_S):
            while (await health.Check(health_pb2.HealthCheckRequest())).status != NOT_SERVING:
                pass
    await server.stop(0)


async def test_nodes_that_cannot_be_told_end_the_server_too(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(requests: Sequence[Request]) -> None:
        for request in requests:
            request.tree.add(None, -7, "scripted", score=0.5)
            request.is_live = False

    monkeypatch.setattr(scripted, "step", hostile)
    server = DrafterServer(DrafterConfig(drafters=("scripted",)))
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        link = Link(drafter_pb2_grpc.DrafterStub(channel))
        await link.send(make_order("scripted", PROMPT, is_open=True))

        with pytest.raises(ValueError, match="-7"):
            await asyncio.wait_for(server.wait_failed(), TIMEOUT_S)
    await server.stop(0)


async def test_stopping_is_idempotent_and_not_a_failure() -> None:
    server = DrafterServer(DrafterConfig(drafters=("ngram",)))
    await server.start()
    waiting = asyncio.create_task(server.wait_failed())

    await asyncio.gather(server.stop(0), server.stop(0))
    await server.stop(0)

    await asyncio.wait_for(waiting, TIMEOUT_S)


@pytest.mark.parametrize("text", ["", "ngramm", "=ngram", "model:", "medusa:path", ":path"])
def test_a_spec_that_names_no_drafter_is_refused_with_the_forms_that_there_are(text: str) -> None:
    with pytest.raises(InvalidRequest, match="model:PATH_OR_NAME") as caught:
        DrafterServer(DrafterConfig(drafters=("ngram", text)))

    assert repr(text) in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ngram", DrafterSpec("ngram", "ngram", "")),
        ("model:org/name", DrafterSpec("model", "model", "org/name")),
        ("small=model:/a=b/c:d", DrafterSpec("small", "model", "/a=b/c:d")),
        ("lookup=ngram", DrafterSpec("lookup", "ngram", "")),
    ],
)
def test_specs_name_a_drafter_its_kind_and_its_source(text: str, expected: DrafterSpec) -> None:
    assert DrafterSpec.parse(text) == expected


@pytest.mark.parametrize("drafters", [(), ("ngram", "ngram"), ("model:a", "model:b")])
def test_a_worker_has_drafters_and_their_names_differ(drafters: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest, match="drafters"):
        DrafterServer(DrafterConfig(drafters=drafters))


async def test_a_model_that_is_not_there_is_named_at_start(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    server = DrafterServer(DrafterConfig(drafters=("ngram", f"model:{tmp_path / 'empty'}")))

    with pytest.raises(OutriderError, match="empty"):
        await server.start()


def test_a_worker_of_token_only_drafters_never_loads_torch() -> None:
    code = "import sys, workers.draft.server, workers.draft.ngram; sys.exit('torch' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIMEOUT_S)
