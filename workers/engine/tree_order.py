"""Who sees whom in a pass, as intervals: a key is seen by the queries whose number lies in [first, last).

Queries are numbered in preorder of their row's tree (its tokens are a chain, then come the nodes, each followed by all
that descends from it), one row after another. Then whatever descends from a query lies right behind it, and a
comparison of two numbers stands for row, causality and tree at once.

    tokens t0 t1 | nodes n0 n1 n2 n3 (parents -1 -1 0 1)    preorder t0 t1 n0 n2 n1 n3
    context      [t0, end)                                  seen by all queries of the row
    t1           [t1, end)                                  by itself and by all nodes
    n0           [n0, n1)                                   by itself and by n2
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workers.engine.batch import Batch, Ints, cumulated


@dataclass(frozen=True, slots=True)
class TreeOrder:
    numbers: Ints  # [num_tokens]; each query's number
    ends: Ints  # [num_tokens]; one more than the last number that descends from it


def tree_order(batch: Batch) -> TreeOrder:
    cu_queries = cumulated(batch.num_linear + batch.num_nodes)
    row_of = np.repeat(np.arange(len(batch.num_linear)), np.diff(cu_queries))
    numbers = np.arange(cu_queries[-1])
    ends = cu_queries[1:][row_of]
    is_node = numbers - cu_queries[row_of] >= batch.num_linear[row_of]
    sizes, before = _preorder(batch.node_parents, batch.num_nodes)
    numbers[is_node] = np.repeat(cu_queries[:-1] + batch.num_linear, batch.num_nodes) + before
    ends[is_node] = numbers[is_node] + sizes
    return TreeOrder(numbers, ends)


def _preorder(
    node_parents: Ints,  # [total nodes]; counted within the row, -1 for its last token
    num_nodes: Ints,  # [num_rows]
) -> tuple[Ints, Ints]:
    """Nodes in each node's subtree, itself included, and nodes of its row before it in preorder: [total nodes] each."""
    row_of = np.repeat(np.arange(len(num_nodes)), num_nodes)
    parents = np.where(node_parents < 0, -1, cumulated(num_nodes)[row_of] + node_parents)
    sizes = np.ones(len(parents), np.int64)
    for _, ancestors in _levels(parents):
        np.add.at(sizes, ancestors, 1)
    families = np.where(parents < 0, -1 - row_of, parents)  # siblings have one number in common
    by_family = np.argsort(families, kind="stable")
    behind = np.cumsum(sizes[by_family]) - sizes[by_family]
    _, first, family = np.unique(families[by_family], return_index=True, return_inverse=True)
    older = np.empty(len(parents), np.int64)  # nodes below the siblings before it
    older[by_family] = behind - behind[first][family]
    before = older.copy()
    for nodes, ancestors in _levels(parents):
        before[nodes] += older[ancestors] + 1
    return sizes, before


def _levels(parents: Ints) -> list[tuple[Ints, Ints]]:
    """Pairs of (nodes, an ancestor of each), one list for parents, one for grandparents, and so on."""
    levels = []
    nodes = np.flatnonzero(parents >= 0)
    ancestors = parents[nodes]
    while len(nodes):
        levels.append((nodes, ancestors))
        ancestors = parents[ancestors]
        nodes, ancestors = nodes[ancestors >= 0], ancestors[ancestors >= 0]
    return levels
