"""A drafter's stream: what is said once is known, numbers are used again when nobody can mean the old draft by them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.calibration import SCORE_BORDERS
from outrider.draft_law import DraftLaw
from outrider.draft_orders import DraftOrder, add_orders, orders_of
from outrider.packing import pack_i32
from outrider.scores import NUM_STEPS, SCORES, step_of
from outrider.v1.drafter_pb2 import DrafterCommand, DrafterReport, DraftOpening
from outrider.v1.worker_pb2 import OpenRequest, SparseLaws
from scheduler.draft_stream import MAX_GROWTH_NODES, MAX_RELEASED, DraftStream
from scheduler.events import Growth, ReleaseDrafter, SendOrder
from workers.draft.growing import NewNodes
from workers.draft.report import report_of

U32 = st.integers(0, (1 << 32) - 1)
SMALL = st.integers(0, 12)


def an_order(
    request: int = 1,
    tokens: Sequence[int] = (7,),
    *,
    start: int = 0,
    epoch: int = 1,
    drafter: str = "a",
    **changes: float,
) -> SendOrder:
    return SendOrder(
        worker="w",
        drafter=drafter,
        request=request,
        epoch=epoch,
        committed_len=start + len(tokens),
        opening=OpenRequest() if start == 0 else None,
        tokens_start=start,
        tokens=tokens,
        max_nodes=int(changes.get("max_nodes", 24)),
        min_survival=changes.get("min_survival", 0.1),
    )


def a_release(request: int = 1, *, epoch: int = 1, drafter: str = "a") -> ReleaseDrafter:
    return ReleaseDrafter("w", drafter, request, epoch)


def opened(*requests: int) -> DraftStream:
    stream = DraftStream("w")
    stream.command([], [an_order(request, [5, 6]) for request in requests])
    return stream


def numbers_of(command: DrafterCommand) -> list[int]:
    """Of the drafts that its orders are for."""
    return [order.draft for order in orders_of(command)]


def grown(stream: DraftStream, *growths: int) -> list[Growth]:
    return stream.growths(DrafterReport(growths=growths))


def test_an_order_says_what_is_new_and_nothing_twice() -> None:
    stream = opened(1)
    bare = stream.command([], [an_order(tokens=[9, 8], start=2)])
    dearer = stream.command([], [an_order(tokens=[7], start=4, min_survival=0.254)])
    cheaper = stream.command([], [an_order(tokens=[7], start=5, min_survival=0.251, max_nodes=2)])
    assert [*orders_of(bare)] == [DraftOrder(0, [9, 8])]
    assert [*orders_of(dearer)] == [DraftOrder(0, [7], min_survival=25)]
    assert [*orders_of(cheaper)] == [DraftOrder(0, [7], max_nodes=2)]
    assert list(bare.orders) == [8 * 2, 9, 8]


def test_an_opening_says_all_and_each_draft_has_the_least_free_number() -> None:
    stream = DraftStream("w")
    orders = [an_order(1), an_order(1, drafter="b", epoch=2), an_order(8, epoch=3)]
    command = stream.command([], orders)
    assert [(each.draft, each.ref.request, each.ref.epoch, each.drafter) for each in command.openings] == [
        (0, 1, 1, "a"),
        (1, 1, 2, "b"),
        (2, 8, 3, "a"),
    ]
    assert [*orders_of(command)] == [
        DraftOrder(number, [7], max_nodes=24, min_survival=10, opening=command.openings[number]) for number in range(3)
    ]


def test_a_number_is_used_again_only_when_the_worker_has_given_it_back() -> None:
    stream = opened(1, 2)
    assert list(stream.command([a_release(1)], []).released) == [0]
    assert numbers_of(stream.command([], [an_order(3)])) == [2]
    stream.growths(DrafterReport(released=[0, 1, 2, 77]))  # of these, only 0 was released
    sent = stream.command([], [an_order(4), an_order(5)])
    assert numbers_of(sent) == [0, 3]


def test_what_is_told_of_a_released_draft_is_of_that_one_until_its_number_comes_back() -> None:
    stream = opened(1)
    stream.command([a_release(1)], [an_order(2, epoch=2)])
    [late] = grown(stream, 8 + 2, 2, 70, 0)
    stream.growths(DrafterReport(released=[0]))
    assert grown(stream, 1) == []
    stream.command([], [an_order(3, [4, 4, 4], epoch=3)])
    [fresh] = grown(stream, 8 + 2, 3, 80, 0)
    assert (late.request, late.epoch, late.committed_len, late.first_node) == (1, 1, 2, 1)
    assert (fresh.request, fresh.epoch, fresh.committed_len, fresh.first_node) == (3, 3, 3, 1)


def test_a_worker_that_gives_no_number_back_is_served_on_and_little_is_kept_of_it() -> None:
    stream = DraftStream("w")
    for request in range(3 * MAX_RELEASED):
        assert numbers_of(stream.command([], [an_order(request)])) == [request]
        stream.command([a_release(request)], [])
    assert grown(stream, 1) == []
    assert len(stream._drafts) == len(stream._released) == MAX_RELEASED
    stream.growths(DrafterReport(released=range(3 * MAX_RELEASED)))
    assert (len(stream._drafts), len(stream._released)) == (0, 0)
    [number] = numbers_of(stream.command([], [an_order(7)]))
    assert number == 2 * MAX_RELEASED, "those that were forgotten are not used again"


def test_a_new_epoch_releases_the_draft_of_the_old_one() -> None:
    stream = opened(1)
    sent = stream.command([], [an_order(1, [5, 6, 7], epoch=9)])
    assert (list(sent.released), sent.openings[0].draft, sent.openings[0].ref.epoch) == ([0], 1, 9)
    [missing] = stream.growths(DrafterReport(missing=[0]))  # the worker had not heard of it yet
    assert (missing.epoch, missing.is_prefix_missing) == (1, True)


def test_what_was_never_opened_is_not_released() -> None:
    assert list(opened(1).command([a_release(2), a_release(1, drafter="b")], []).released) == []


@pytest.mark.parametrize("order", [an_order(tokens=[1], start=3), an_order(tokens=[1], start=2, epoch=4)])
def test_an_order_that_the_drafter_could_not_follow_is_our_own_defect(order: SendOrder) -> None:
    with pytest.raises(AssertionError):
        opened(1).command([], [order])


def test_roots_and_numbers_run_on_from_growth_to_growth() -> None:
    stream = opened(1, 2)
    first, other = grown(stream, 8 * 2 + 2, 2, 70, 2, 71, 8 + 3, 8 + 2, 2, 60, 7)
    second, third = grown(stream, 8, 72, 8 * 2 + 6, 4 + 3, 0, 4)
    assert (first.tokens, first.parents, first.committed_len, first.first_node) == ([70, 71], [0, 1], 2, 1)
    assert (other.request, other.tokens, other.scores) == (2, [60], [SCORES[7]])
    assert (second.tokens, second.parents, second.committed_len, second.first_node) == ([72], [1], 2, 3)
    assert second.scores == [SCORES[6]]
    assert (third.tokens, third.committed_len, third.is_done) == ([], 6, True)


def test_growths_of_unknown_drafts_are_left_out_and_the_others_read_on() -> None:
    [growth] = grown(opened(1), 8 * 2 + 4, 7, 1, 1, 2, 2, 8 + 4, 0, 70, 0)
    assert growth.tokens == [70]


def test_a_report_names_only_drafts_that_do_not_follow_one_another() -> None:
    nothing_new = NewNodes(0, 2, 1, [], [], [], [], is_done=True)
    report = report_of((draft, 0, nothing_new) for draft in (5, 1, 0, 4))
    assert list(report.growths) == [1, 1, 4 + 1, 4, 1]


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 6])
def test_a_growth_that_is_cut_off_is_left_out(cut: int) -> None:
    whole = [8, 70, 0]
    growths = grown(opened(1, 2), *whole, *[8 * 2 + 6, 1, 2, 60, 0, 61, 8][:cut])
    assert [growth.tokens for growth in growths] == [[70]]


@pytest.mark.parametrize("num_nodes", [MAX_GROWTH_NODES, MAX_GROWTH_NODES + 1, 1_000_000])
def test_an_endless_growth_is_not_even_looked_at(num_nodes: int) -> None:
    stream = opened(1)
    [endless] = grown(stream, 8 * num_nodes + 1, *[2, 8] * num_nodes)
    [after] = grown(stream, 8, 3, 8)
    assert len(endless.tokens) == (num_nodes if num_nodes <= MAX_GROWTH_NODES else 0)
    assert endless.is_done
    assert after.first_node == num_nodes + 1


def test_a_report_whose_laws_make_no_sense_loses_its_nodes() -> None:
    laws = SparseLaws(counts=pack_i32([5]))
    [parsed] = opened(1).growths(DrafterReport(growths=[8 + 1, 2, 0], laws=laws))
    assert (parsed.tokens, parsed.parents, parsed.laws, parsed.is_done) == ([], [], [], True)


@given(st.lists(st.one_of(SMALL, U32), max_size=40), st.lists(SMALL), st.lists(SMALL))
def test_whatever_numbers_come_each_growth_is_one_of_a_known_draft(
    numbers: list[int], missing: list[int], released: list[int]
) -> None:
    stream = opened(1, 2, 3)
    stream.command([a_release(2)], [])
    for growth in stream.growths(DrafterReport(growths=numbers, missing=missing, released=released)):
        assert growth.request in (1, 2, 3)
        assert len(growth.tokens) == len(growth.parents) == len(growth.scores) <= MAX_GROWTH_NODES
    sent = stream.command([], [an_order(4, epoch=2), an_order(5, epoch=3)])
    assert len({0, 2} | set(numbers_of(sent))) == 4, "a live draft's number stays its own"


@st.composite
def draft_orders(draw: st.DrawFn) -> list[DraftOrder]:
    return [
        DraftOrder(
            draft=draft,
            tokens=draw(st.lists(st.integers(0, 1 << 18), max_size=3)),
            max_nodes=draw(st.one_of(st.none(), SMALL)),
            min_survival=draw(st.one_of(st.none(), SMALL)),
            opening=draw(st.sampled_from([None, DraftOpening(draft=draft, drafter="a")])),
        )
        for draft in draw(st.lists(SMALL, unique=True))
    ]


@given(draft_orders(), st.integers(0, 3))
def test_what_a_scheduler_orders_is_what_arrives_and_one_that_is_cut_off_does_not(
    orders: list[DraftOrder], num_cut: int
) -> None:
    command = DrafterCommand()
    add_orders(command, orders)
    assert [*orders_of(DrafterCommand.FromString(command.SerializeToString()))] == orders
    if orders:
        del command.orders[-1 - min(num_cut, len(orders[-1].tokens)) :]
        assert [*orders_of(command)] == orders[:-1]


LAW = DraftLaw((3, 4), (0.25, 0.75))


@st.composite
def new_nodes(draw: st.DrawFn) -> list[NewNodes]:
    """What a drafter finds for one request, step by step."""
    steps: list[NewNodes] = []
    num_nodes, root_len = 0, 2
    for size in draw(st.lists(st.integers(0, 5), max_size=6)):
        root_len += draw(st.integers(0, 300))
        numbers = range(num_nodes + 1, num_nodes + 1 + size)
        steps.append(
            NewNodes(
                key=0,
                committed_len=root_len,
                first_number=num_nodes + 1,
                tokens=[draw(st.integers(0, 1 << 18)) for _ in numbers],
                parents=[draw(st.integers(0, number - 1)) for number in numbers],
                scores=[draw(st.floats(-20, 20)) for _ in numbers],
                laws=[draw(st.sampled_from([None, LAW])) for _ in numbers],
                is_done=draw(st.booleans()),
            )
        )
        num_nodes += size
    return steps


@given(st.lists(new_nodes(), min_size=2, max_size=2))
def test_what_a_worker_tells_of_its_drafts_is_what_arrives(told: list[list[NewNodes]]) -> None:
    stream = opened(1, 2)
    root_lens = [0, 0]
    for step in range(max(map(len, told))):
        news = [(draft, each[step]) for draft, each in enumerate(told) if step < len(each)]
        report = report_of((draft, each.committed_len - root_lens[draft], each) for draft, each in news)
        growths = stream.growths(DrafterReport.FromString(report.SerializeToString()))
        for (draft, sent), growth in zip(news, growths, strict=True):
            root_lens[draft] = sent.committed_len
            assert (growth.request, growth.epoch) == (draft + 1, 1)
            assert (growth.committed_len, growth.is_done) == (sent.committed_len, sent.is_done)
            assert (growth.tokens, growth.parents) == (sent.tokens, sent.parents)
            assert growth.scores == [SCORES[step_of(score)] for score in sent.scores]
            assert growth.laws or not any(sent.laws)
            if growth.laws:
                assert growth.laws == sent.laws
                assert growth.first_node == sent.first_number


def test_a_score_arrives_in_its_step_and_a_step_is_made_of_whole_bins() -> None:
    borders = [score for score in SCORE_BORDERS if step_of(score) > step_of(score - 1e-9)]
    assert [step_of(score) for score in (-20.0, *borders, float("inf"))] == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    assert [step_of(SCORES[step]) for step in range(NUM_STEPS)] == list(range(NUM_STEPS))
    with pytest.raises(ValueError, match="NaN"):
        step_of(float("nan"))
