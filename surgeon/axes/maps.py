"""Channel maps: where each channel of a grown axis comes from.

A grown dim of size ``t`` has, per target channel, the source channel it copies, or NEW for one
that carries nothing (its producers are zero). A dim's map is a *clone* (``j mod s``) unless stated.
Maps of axes compose from maps of dims, as the axes do. (HyperCloning section 3; NEW channels are the
zero-extended ones of Gesmundo & Maile 2023.)
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from surgeon.axes.store import Axis, Cat, Store

NEW = -1
Index = NDArray[np.int64]


def clone_map(source: int, target: int) -> Index:
    """Channel j of `target` copies channel j mod `source`."""
    return np.arange(target, dtype=np.int64) % source


def copies_of(index: Index, size: int) -> Index:
    """How many times each source channel occurs in a map."""
    return np.bincount(index[index != NEW], minlength=size)


def copy_number(index: Index, size: int) -> Index:
    """For each target channel: the how-manieth copy of its source channel it is, from 0."""
    order = np.argsort(index, kind="stable")
    ranked = index[order]
    first = np.searchsorted(ranked, ranked, side="left")
    number = np.empty(len(index), dtype=np.int64)
    number[order] = np.arange(len(index)) - first
    return number


def filled_map(placed: Index, size: int) -> Index:
    """A map that has each of `size` source channels once, its NEW channels made copies too: all
    source channels are then copied equally often if they can be."""
    index, free = placed.copy(), np.flatnonzero(placed == NEW)
    index[free] = clone_map(size, len(free))
    return index


@dataclass(frozen=True)
class Maps:
    """The maps of all dims that grow, and how they compose.

    `placed` has, for some dims, a second map: that of *partial* values, which hold what the source
    holds at one place for each source channel, and elsewhere (NEW) something else.
    """

    store: Store
    dims: Mapping[int, Index]
    placed: Mapping[int, Index] = field(default_factory=dict)

    def target_size(self, axis: Axis) -> int:
        total = 1
        for factor in self.store.resolve(axis):
            if isinstance(factor, Cat):
                total *= sum(self.target_size(p) for p in factor.parts)
            else:
                total *= len(self.dims[factor]) if factor in self.dims else self.store.sizes[factor]
        return total

    def grows(self, axis: Axis) -> bool:
        return any(dim in self.dims for dim in self.store.leaves(axis))

    def index(self, axis: Axis, partial: Set[int] = frozenset()) -> Index:
        """The map of a whole axis: int64 ``[target size]`` of source channels or NEW; of a value that
        is partial along some dims, NEW also where it holds something else."""
        index, size = np.zeros(1, dtype=np.int64), 1
        for factor in self.store.resolve(axis):
            inner, width = self._factor(factor, partial), self.store.factor_size(factor)
            grid = index[:, None] * width + inner[None, :]
            grid[(index == NEW)[:, None] | (inner == NEW)[None, :]] = NEW
            index, size = grid.reshape(-1), size * width
        return index

    def _factor(self, factor: int | Cat, partial: Set[int]) -> Index:
        if isinstance(factor, int):
            given = (self.placed if factor in partial else self.dims).get(factor)
            return np.arange(self.store.sizes[factor]) if given is None else given
        pieces, offset = [], 0
        for part in factor.parts:
            piece = self.index(part, partial)
            pieces.append(np.where(piece == NEW, NEW, piece + offset))
            offset += self.store.size(part)
        return np.concatenate(pieces)

    def parts(self, axis: Axis) -> Index:
        """For each target channel of `axis`: the number of the piece it lies in (see
        :func:`surgeon.axes.store.parts`)."""
        part, count = np.zeros(1, dtype=np.int64), 1
        for factor in self.store.resolve(axis):
            if isinstance(factor, Cat):
                pieces, inner_count = [], 0
                for piece in factor.parts:
                    numbers = self.parts(piece)
                    pieces.append(numbers + inner_count)
                    inner_count += int(numbers.max()) + 1 if len(numbers) else 0
                inner = np.concatenate(pieces)
            else:
                inner_count, inner = 1, np.zeros(self.target_size((factor,)), dtype=np.int64)
            part = (part[:, None] * inner_count + inner[None, :]).reshape(-1)
            count *= inner_count
        return part

    def multiplicity(self, axis: Axis) -> list[int | None]:
        """Per piece of `axis`: by how many copies a sum over it is multiplied; None where the
        channels of a piece are not all copied equally often."""
        counts: list[int | None] = [1]
        for factor in self.store.resolve(axis):
            inner: list[int | None] = []
            if isinstance(factor, Cat):
                for piece in factor.parts:
                    inner += self.multiplicity(piece)
            elif factor in self.dims:
                each = copies_of(self.dims[factor], self.store.sizes[factor])
                inner.append(int(each[0]) if (each == each[0]).all() else None)
            else:
                inner.append(1)
            counts = [None if a is None or b is None else a * b for a in counts for b in inner]
        return counts
