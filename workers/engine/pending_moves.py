"""Copies between slots that the next batch carries out before it writes anything.

    books now                            | next batch: read all sources, write all destinations | then its own tokens
    add(source, destination), many times |

Until the batch comes no slot is written. So a source is always where content lies now, and it stays intact even
where its block has been given back and taken anew; whatever is copied from a slot that is itself a destination
comes from that slot's own source. What a slot will hold once the moves are done is what `source_of` it holds now.
"""

from __future__ import annotations


class PendingMoves:
    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._into: dict[int, dict[int, int]] = {}  # block → destination slot in it → source slot

    def source_of(self, slot: int) -> int:
        """Where the content lies now that `slot` will hold after the moves; the slot itself if nothing moves there."""
        into_block = self._into.get(slot // self._block_size)
        return slot if into_block is None else into_block.get(slot, slot)

    def add(self, source: int, destination: int) -> None:
        """Let `destination` come to hold what lies at `source` now, whatever was to be moved there before."""
        into_block = self._into.setdefault(destination // self._block_size, {})
        into_block[destination] = source  # source == destination undoes an earlier move

    def drop_into(self, block: int) -> None:
        """Nobody will read what the block would have come to hold."""
        self._into.pop(block, None)

    def take(self) -> list[tuple[int, int]]:
        """The (source, destination) slots, each destination once; they count as done from here on."""
        moves = self.peek()
        self._into = {}
        return moves

    def peek(self) -> list[tuple[int, int]]:
        return [
            (source, destination)
            for into_block in self._into.values()
            for destination, source in into_block.items()
            if source != destination
        ]
