"""Random axes: products and concatenations of dims, nested."""

from __future__ import annotations

from itertools import count
from math import prod

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from surgeon.axes.maps import NEW, Index
from surgeon.axes.store import Axis, Cat, Store

Shape = int | tuple[str, tuple["Shape", ...]]  # a dim's size, or ("product" | "cat", inner shapes)

SHAPES: st.SearchStrategy[Shape] = st.recursive(
    st.integers(2, 5),
    lambda inner: st.tuples(
        st.sampled_from(["product", "cat"]), st.lists(inner, min_size=1, max_size=3).map(tuple)
    ),
    max_leaves=5,
)


def build(store: Store, shape: Shape) -> Axis:
    if isinstance(shape, int):
        return store.fresh(shape)
    kind, inner = shape
    axes = [build(store, s) for s in inner]
    return (Cat(tuple(axes)),) if kind == "cat" else tuple(f for axis in axes for f in axis)


def size_of(shape: Shape) -> int:
    if isinstance(shape, int):
        return shape
    kind, inner = shape
    return (sum if kind == "cat" else prod)(size_of(s) for s in inner)


def divisors(size: int) -> list[int]:
    return [d for d in range(1, size + 1) if size % d == 0]


def laid_out(shape: Shape, store: Store, axis: Axis, maps: dict[int, Index]) -> NDArray[np.int64]:
    """The grown axis by laying out a real tensor of source channels: dims are taken one by one from a
    numbered array, concatenations put together piece by piece. `axis` is as `build` made it, its dims
    numbered in the order of the shape (its leaves may come in another, and more than once)."""
    leaves = count(min(store.leaves(axis)))

    def grown(s: Shape, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        if isinstance(s, int):
            index = maps.get(next(leaves), np.arange(s))
            return np.where(index == NEW, NEW, numbers[index])
        kind, inner = s
        if kind == "cat":
            bounds = np.cumsum([0, *map(size_of, inner)])
            parts = [grown(i, numbers[a:b]) for i, a, b in zip(inner, bounds[:-1], bounds[1:], strict=True)]
            return np.concatenate(parts)
        grid = np.zeros(1, dtype=np.int64)
        for i in inner:
            local = grown(i, np.arange(size_of(i)))
            table = grid[:, None] * size_of(i) + local[None, :]
            grid = np.where((grid[:, None] == NEW) | (local[None, :] == NEW), NEW, table).reshape(-1)
        return np.where(grid == NEW, NEW, numbers[grid])

    return grown(shape, np.arange(size_of(shape)))
