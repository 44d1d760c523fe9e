"""The draft tree against the plainest description of it: a set of paths."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from outrider.errors import InvalidRequest
from outrider.tree import ROOT, DraftTree, Node, TreeError, Vote, check_parents, pack_nodes

Path = tuple[int, ...]
seeded = settings(derandomize=True, deadline=None)
few_tokens = st.integers(0, 3)  # few, so that paths meet
paths = st.lists(few_tokens, max_size=5).map(tuple)


def path_of(node: Node) -> Path:
    return () if node is None else (*(path_of(node.parent) if node.parent else ()), node.token)


def survival_of(node: Node) -> float:
    return node.chance if node.parent is None else survival_of(node.parent) * node.chance


def grow(tree: DraftTree, path: Path, source: str = "a") -> Node | None:
    node = None
    for token in path:
        node = tree.add(node, token, source)
    return node


class TreeIsASetOfPaths(RuleBasedStateMachine):
    """The model: a prefix-closed set of paths, each with the sources that proposed it."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = DraftTree()
        self.model: dict[Path, list[str]] = {}

    @rule(path=paths, source=st.sampled_from("abc"))
    def propose(self, path: Path, source: str) -> None:
        grow(self.tree, path, source)
        for end in range(1, len(path) + 1):
            sources = self.model.setdefault(path[:end], [])
            if source not in sources:
                sources.append(source)

    @rule(committed=paths)
    def advance(self, committed: Path) -> None:
        self.tree.advance(committed)
        num = len(committed)
        self.model = {
            path[num:]: sources for path, sources in self.model.items() if len(path) > num and path[:num] == committed
        }

    @rule()
    def clear(self) -> None:
        self.tree.clear()
        self.model = {}

    @invariant()
    def it_holds_exactly_the_paths_of_the_model(self) -> None:
        assert {path_of(node): list(node.votes) for node in self.tree} == self.model
        assert len(self.tree) == len(self.model)

    @invariant()
    def every_path_is_found_and_depth_is_its_length(self) -> None:
        for path in self.model:
            node = self.tree.find(path)
            assert node is not None
            assert node.depth == len(path)

    @invariant()
    def nodes_come_parents_first_and_pack_into_a_valid_tree(self) -> None:
        nodes = list(self.tree)
        tokens, parents = pack_nodes(nodes)
        check_parents(parents)
        rebuilt: list[Path] = []
        for token, parent in zip(tokens, parents, strict=True):
            rebuilt.append(((*rebuilt[parent], token)) if parent != ROOT else (token,))
        assert set(rebuilt) == set(self.model)


TreeIsASetOfPaths.TestCase.settings = seeded
TestTreeIsASetOfPaths = TreeIsASetOfPaths.TestCase


@seeded
@given(st.lists(paths), paths, paths)
def test_advancing_twice_is_advancing_by_both(grown: list[Path], first: Path, second: Path) -> None:
    at_once, in_steps = DraftTree(), DraftTree()
    for path in grown:
        grow(at_once, path)
        grow(in_steps, path)
    at_once.advance(first + second)
    in_steps.advance(first)
    in_steps.advance(second)
    assert [path_of(node) for node in at_once] == [path_of(node) for node in in_steps]


def test_a_surviving_node_is_the_same_object_after_an_advance() -> None:
    tree = DraftTree()
    survivor = grow(tree, (1, 2, 3))
    grow(tree, (9, 9))
    tree.advance([1])
    assert tree.find((2, 3)) is survivor
    assert len(tree) == 2


def test_each_drafter_has_one_vote_on_a_node_the_first() -> None:
    tree = DraftTree()
    tree.add(None, 4, "b", score=3.0)
    tree.add(None, 5, "a", score=2.0)
    tree.add(None, 5, "b", score=1.0)
    node = tree.add(None, 5, "b", score=9.0)
    assert node.votes == {"a": Vote(0, 2.0), "b": Vote(1, 1.0)}


def test_numbers_are_never_used_again() -> None:
    tree = DraftTree()
    grow(tree, (1, 2))
    tree.clear()
    third = grow(tree, (1,))
    assert third is not None
    assert third.number == 3


@seeded
@given(st.lists(st.tuples(paths, st.floats(0.01, 1)), max_size=30), st.integers(0, 12))
def test_the_likeliest_nodes_are_those_of_the_highest_survival_and_hang_together(
    grown: list[tuple[Path, float]], max_nodes: int
) -> None:
    tree = DraftTree()
    for path, chance in grown:
        if (node := grow(tree, path)) is not None:
            node.chance = chance

    taken = tree.ranked()[:max_nodes]

    pack_nodes(taken)  # raises where a parent is missing
    survivals = [survival_of(node) for node in taken]
    assert [node.survival for node in taken] == survivals
    assert survivals == sorted((survival_of(node) for node in tree), reverse=True)[:max_nodes]


@seeded
@given(st.lists(st.tuples(paths, st.floats(0.01, 1)), max_size=30), paths)
def test_survival_is_the_product_of_the_chances_on_the_path_also_behind_an_advance(
    grown: list[tuple[Path, float]], committed: Path
) -> None:
    tree = DraftTree()
    for path, chance in grown:
        if (node := grow(tree, path)) is not None:
            node.chance = chance
    before = list(tree)
    tree.advance(committed)
    assert [node.survival for node in tree] == [survival_of(node) for node in tree]
    assert [node for node in before if tree.holds(node)] == list(tree)
    assert [node.number for node in tree.nodes] == sorted(node.number for node in tree)
    assert tree.depth == max((len(path_of(node)) for node in tree), default=0)


def test_a_chance_reaches_the_end_of_a_chain_that_is_longer_than_calls_may_be_deep() -> None:
    tree = DraftTree()
    nodes = [tree.add(None, 0, "a")]
    for token in range(1, 2000):
        nodes.append(tree.add(nodes[-1], token, "a"))
    nodes[0].chance = 0.5
    assert {node.survival for node in nodes} == {0.5}


def test_the_empty_path_leads_to_no_node() -> None:
    tree = DraftTree()
    grow(tree, (1,))
    assert tree.find(()) is None
    assert tree.find((2,)) is None


@seeded
@given(st.data())
def test_parents_of_a_tree_in_topological_order_are_accepted(data: st.DataObject) -> None:
    num_nodes = data.draw(st.integers(0, 20))
    check_parents([data.draw(st.integers(ROOT, node - 1)) for node in range(num_nodes)])


@seeded
@given(st.data())
def test_one_parent_out_of_order_is_refused_by_its_index(data: st.DataObject) -> None:
    num_nodes = data.draw(st.integers(1, 20))
    parents = [ROOT] * num_nodes
    node = data.draw(st.integers(0, num_nodes - 1))
    parents[node] = data.draw(st.one_of(st.integers(node, 40), st.integers(-40, ROOT - 1)))
    with pytest.raises(TreeError, match=rf"parents\[{node}\] is {parents[node]}"):
        check_parents(parents)


def test_a_malformed_tree_is_the_senders_fault() -> None:
    assert issubclass(TreeError, InvalidRequest)


def test_a_selection_may_leave_out_branches_but_no_parent() -> None:
    tree = DraftTree()
    leaf = grow(tree, (1, 2))
    other = grow(tree, (3,))
    assert leaf is not None
    assert leaf.parent is not None
    assert other is not None
    assert pack_nodes([leaf.parent, other]) == ([1, 3], [ROOT, ROOT])
    with pytest.raises(TreeError, match="without, or before, its parent"):
        pack_nodes([leaf, other])
    with pytest.raises(TreeError, match="without, or before, its parent"):
        pack_nodes([leaf, leaf.parent])
