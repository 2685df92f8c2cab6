"""SparseGPT inside one block of columns: what chapter 04 derives, and what makes it fast. Chapter 04.

Column by column, each pruned weight sends its error to the columns on its right. That loop is `_prune_columns`. It is
slow, for each step reads and writes the whole rest of the block. So the block is cut into halves: the left half is
pruned, what it sends to the right half is one matrix product, then the right half is pruned. `_visit` does so down to
panels of a few columns. The numbers are those of the loop, up to the order of the sums.
"""

from typing import Any, NamedTuple

from minprune.patterns import NM

_LEAF = 8  # columns that are visited one by one: more of them send more to each other, fewer need more products


class Block(NamedTuple):
    """One block of columns, tensors or NumPy arrays: w, E, kept (block, d_out), gain (block, 1), later (block, block).

    gain: 1 / U_qq. E: row q is w_q / U_qq where weight q was pruned; before column q is visited, the gain alone. later:
    later[p, q] is what one unit of error in column q takes off column p > q.
    """

    w: Any
    E: Any
    kept: Any
    gain: Any
    later: Any

    def as_numpy(self) -> "Block":
        """The same memory for many small steps: on the CPU NumPy's views, which take a third of the time to call."""
        return Block(*(part.numpy() if part.device.type == "cpu" else part for part in self))


def prune_block(block: Block, groups: NM | None) -> None:
    """Prune a block in place: w gets its zeros and updates, E its errors, and with N:M `kept` its mask.

    groups: the pattern whose groups are to be chosen when they are reached; None: the mask `kept` is given.
    """
    arrays = block.as_numpy()
    if not groups:
        _mark(arrays, slice(None))
    _visit(block, arrays, groups, 0, len(block.w))
    pruned = arrays.w
    pruned *= arrays.kept
    pruned += 0.0  # turns the product's -0.0 into 0.0


# The columns of a panel, one by one: equation by equation the loop of the chapter.


def _prune_columns(block: Block, groups: NM | None, start: int, end: int) -> None:
    """Columns start to end one by one; each sends its errors to those after it, up to `end`."""
    w, E, later = block.w, block.E, block.later
    for q in range(start, end):
        if groups and q % groups.m == 0:
            _choose(block, groups, q)
        error, rest = E[q], w[q + 1 : end]  # named, because `E[q] *= ...` would also copy the row onto itself
        error *= w[q]  # (d_out,): w_q / U_qq in the rows where weight q goes, 0 in the others
        if q + 1 < end:  # the weights on the right make up for it
            rest -= later[q + 1 : end, q, None] * error


def _choose(block: Block, groups: NM, start: int) -> None:
    """The mask of the group that begins at column start, from its weights as they are now."""
    here = slice(start, start + groups.m)
    block.kept[here] = groups.keep_places(abs(block.w[here] * block.gain[here]))
    _mark(block, here)


def _mark(block: Block, here: slice) -> None:
    """Begin the errors of these columns: the gain where a weight goes, 0 where it is kept."""
    error = block.E[here]
    error[:] = ~block.kept[here]
    error *= block.gain[here]


# What makes it fast: halves of halves, and one product between them.


def _visit(block: Block, arrays: Block, groups: NM | None, start: int, end: int) -> None:
    """Columns start to end: the left half, what it sends to the right half, then that. groups: what is to be chosen."""
    size = end - start
    if groups and size == groups.m > _LEAF:
        _choose(arrays, groups, start)
    if size <= _LEAF:
        _prune_columns(arrays, groups if groups and groups.m <= _LEAF else None, start, end)
        return
    unit = groups.m if groups and size > groups.m else 1  # a group that is not chosen yet is never cut in two
    middle = start + size // unit // 2 * unit
    _visit(block, arrays, groups, start, middle)
    block.w[middle:end].addmm_(block.later[middle:end, start:middle], block.E[start:middle], alpha=-1)
    _visit(block, arrays, groups, middle, end)
