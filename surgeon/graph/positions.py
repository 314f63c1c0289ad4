"""Kinds of ops that read or write an axis by position: lookups, scatters, sorts, running sums, paddings.

What lies along such an axis is pinned; the other axes go along.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from surgeon.axes.store import UNIT, Axis, AxisConflict, Cat, Store
from surgeon.graph.calls import (
    Axes,
    Call,
    Outputs,
    broadcast,
    fresh_axes,
    known_numbers,
    pinned_axes,
)


def indexed(call: Call) -> list[int] | None:
    """The axes that ``x[:, i, j]`` indexes; None where the result is not laid out axis for axis: indices
    apart from each other, of which one holds truth values, or truth values beside others."""
    if "dim" in call.names:
        return [call.axis_arg(call.arg("dim"), len(call.axes(call.args[0])))]
    given: list[Any] = list(call.args[1]) if isinstance(call.args[1], (list, tuple)) else []
    where = [i for i, g in enumerate(given) if g is not None]
    values = [given[i].meta["val"] for i in where]
    if len(values) == 1 and values[0].dtype == torch.bool:
        return list(range(where[0], where[0] + values[0].ndim))
    whole = all(v.dtype != torch.bool for v in values)
    return where if where and whole and where == list(range(where[0], where[-1] + 1)) else None


def _indices(call: Call) -> list[Axes]:
    """The axes of the tensors that say where."""
    chosen = call.arg("index") if call.arg("index") is not None else call.args[1]
    several = chosen if isinstance(chosen, (list, tuple)) else [chosen]
    return [call.axes(c) for c in several if c is not None]


def _refused(call: Call, store: Store) -> Outputs:
    for _, value in call.tensors():
        for axis in value.axes:
            store.pin(axis, "S306", "it is read by position")
    return pinned_axes(store, call, "S306", "it comes from reading by position")


def _is_truth(call: Call) -> bool:
    """Whether an index is a mask, which lies along the axes that it indexes."""
    return any(
        node.meta["val"].dtype == torch.bool
        for given in call.args[1:2]
        for node in (given if isinstance(given, (list, tuple)) else [])
        if node is not None
    )


def index(call: Call, store: Store) -> Outputs:
    """``x[:, i, j]``: indexed axes are read by position; axes without an index stay."""
    axes, where = list(call.axes(call.args[0])), indexed(call)
    if where is None:
        return _refused(call, store)
    chosen = call.arg("index") if call.arg("index") is not None else call.args[1]
    known = _positions(chosen, where)
    if known is not None:
        with contextlib.suppress(AxisConflict):  # single positions of a product: no piece of it
            axes[where[0]] = _picked(store, axes[where[0]], known)
            return [tuple(axes)]
    _fix(call, store, where)
    if _is_truth(call):
        (shape,) = call.shapes
        assert shape is not None
        places: Axes = (store.fresh(shape[where[0]], f"{call.node.name}[{where[0]}]"),)
        store.pin(places[0], "S306", "its length is known only when the model runs")
    else:
        places = broadcast(store, _indices(call))
    return [(*axes[: where[0]], *places, *axes[where[-1] + 1 :])]


def _fix(call: Call, store: Store, where: list[int]) -> None:
    """What is indexed does not grow; a mask lies along it."""
    axes = call.axes(call.args[0])
    for i in where:
        store.pin(axes[i], "S306", "it is read by position")
    if _is_truth(call):
        (mask,) = _indices(call)
        for i, axis in zip(where, mask, strict=True):
            store.unify(axes[i], axis)


def placed(call: Call, where: list[int]) -> tuple[fx.Node, list[int]]:
    """The tensor that an op puts into its first one, and which of its axes, its rank filled up at the
    left, lie where the index says."""
    count = 1 if _is_truth(call) else max(len(axes) for axes in _indices(call))
    return call.arg("values", call.arg("source")), list(range(where[0], where[0] + count))


def put(call: Call, store: Store) -> Outputs:
    """``x[:, i] = y``: indexed axes are written by position; the others go along, in both alike."""
    axes, where = list(call.axes(call.args[0])), indexed(call)
    if where is None:
        return _refused(call, store)
    _fix(call, store, where)
    node, spots = placed(call, where)
    given = call.axes(node)
    given = (UNIT,) * (len(axes) - len(where) + len(spots) - len(given)) + given
    for i in spots:
        store.pin(given[i], "S306", "it is written by position")
    others = [*range(where[0]), *range(where[-1] + 1, len(axes))]
    for i, axis in zip(others, (*given[: spots[0]], *given[spots[-1] + 1 :]), strict=True):
        if store.size(axis) != 1:
            axes[i] = store.unify(axes[i], axis)
    return [tuple(axes)]


def unfold(call: Call, store: Store) -> Outputs:
    """Windows that slide along one axis, laid along a new last one."""
    axes, (shape,) = list(call.axes(call.args[0])), call.shapes
    assert shape is not None
    dim = call.axis_arg(call.arg("dimension"), len(axes))
    store.pin(axes[dim], "S306", "windows slide along it")
    axes[dim] = store.fresh(shape[dim], f"{call.node.name}[{dim}]")
    window = store.fresh(shape[-1], f"{call.node.name}[{len(shape) - 1}]")
    for axis in (axes[dim], window):
        store.pin(axis, "S306", "it comes from windows that slide")
    return [(*axes, window)]


@dataclass(frozen=True)
class Strided:
    """What ``as_strided`` does to the axes of a dense tensor: `front` and `back` axes stay as they are; those
    between are read as one row, each of the new ones in steps of so many places (`steps`)."""

    front: int
    back: int
    steps: tuple[int, ...]


def steps_of(call: Call) -> Strided:
    """Raises AxisConflict where memory is read in a way that the axes do not tell."""
    given = call.args[0].meta["val"]
    old = list(zip(given.shape, given.stride(), strict=True))
    new = list(zip(call.arg("size"), call.arg("stride"), strict=True))
    alike = [a == b or (a[0] == b[0] == 1) for a, b in zip(old, new, strict=False)]
    ends = [a == b or (a[0] == b[0] == 1) for a, b in zip(old[::-1], new[::-1], strict=False)]
    front = (*alike, False).index(False)
    for back in range(min((*ends, False).index(False), len(old) - front, len(new) - front), -1, -1):
        row = [axis for axis in old[front : len(old) - back] if axis[0] != 1]
        unit, length = (row[-1][1], math.prod(size for size, _ in row)) if row else (1, 1)
        laid = all(a[1] == b[0] * b[1] for a, b in itertools.pairwise(row))
        asked = new[front : len(new) - back]
        reach = sum((size - 1) * step for size, step in asked)
        laid = laid and all(step % unit == 0 for _, step in asked) and reach // unit < length
        if laid and not call.arg("storage_offset") and dense(given) is not None:
            return Strided(front, back, tuple(step // unit for _, step in asked))
    raise AxisConflict("its place in memory is read", ())


def dense(given: torch.Tensor) -> list[int] | None:
    """The axes of a tensor in the order in which they lie in memory, outermost first; None where it has
    gaps or overlaps."""
    order = sorted(range(given.ndim), key=lambda i: (-given.stride()[i], i))
    return order if given.permute(order).is_contiguous() else None


def strided(call: Call, store: Store) -> Outputs:
    """Axes read from memory in steps: those in between are read by position."""
    axes, (shape,) = call.axes(call.args[0]), call.shapes
    assert shape is not None
    read = steps_of(call)
    front, back = read.front, read.back
    made = fresh_axes(store, shape[front : len(shape) - back], call.node.name)
    for axis in (*axes[front : len(axes) - back], *made):
        store.pin(axis, "S306", "windows slide along it")
    return [(*axes[:front], *made, *axes[len(axes) - back :])]


def _positions(chosen: Any, where: list[int]) -> list[int] | None:
    """The positions of ``x[:, [-2]]``, where the model writes them as numbers."""
    given = [c for c in (chosen if isinstance(chosen, (list, tuple)) else [chosen]) if c is not None]
    return known_numbers(given[0]) if len(where) == len(given) == 1 else None


def _picked(store: Store, axis: Axis, positions: list[int]) -> Axis:
    """Single positions of an axis, which are taken apart from the end that they are counted from: there
    they stay, whatever grows beyond them."""
    size = store.size(axis)
    for position in positions:
        ends = range(1, position + 2) if position >= 0 else range(size + position, size)
        for at in ends:
            if 0 < at < size:
                store.cut(axis, at)
    return (Cat((UNIT,) * len(positions)),) if len(positions) > 1 else UNIT


def worked(call: Call) -> list[int]:
    """The axes that an op like a sort or a running sum works along."""
    given = call.arg("dims") if "dims" in call.names else call.arg("dim", -1)
    rank = len(call.axes(call.args[0]))
    if given is None:
        return list(range(rank))
    return [call.axis_arg(d, rank) for d in (given if isinstance(given, (list, tuple)) else [given])]


def _full(axes: Axes, rank: int, dims: list[int]) -> Axes:
    """The axes of one of the tensors; one that stands for a single position lacks the axis worked along."""
    return (*axes[: dims[0]], UNIT, *axes[dims[0] :]) if len(axes) == rank - 1 and len(dims) == 1 else axes


def padded(call: Call) -> list[int]:
    """The axes that a padding changes; the widths are given from the last axis on."""
    rank, widths = len(call.axes(call.args[0])), list(call.arg("pad"))
    pairs = [widths[i : i + 2] for i in range(0, len(widths), 2)]
    return [rank - 1 - i for i, pair in enumerate(pairs) if any(w != 0 for w in pair)]


def pad(call: Call, store: Store) -> Outputs:
    (shape,) = call.shapes
    assert shape is not None
    axes = list(call.axes(call.args[0]))
    for i in padded(call):
        store.pin(axes[i], "S306", "it is padded to another length")
        axes[i] = store.fresh(shape[i], f"{call.node.name}[{i}]")
        store.pin(axes[i], "S306", "it is padded to this length")
    return [tuple(axes)]


def along(call: Call, store: Store) -> Outputs:
    """One axis (or a few) is read in order; the others go along, in all tensors alike."""
    axes = list(call.axes(call.args[0]))
    dims = worked(call)
    several = [_full(value.axes, len(axes), dims) for _, value in call.tensors()]
    if not dims or any(len(given) != len(axes) for given in several):
        raise AxisConflict("it reads its elements in one row", ())
    for given in several:
        for i, axis in enumerate(given):
            if i in dims:
                store.pin(axis, "S306", "it is read by position")
            else:
                axes[i] = store.unify(axes[i], axis)
    outputs = []
    for shape in call.shapes:
        assert shape is not None
        out = list(axes)
        for i in dims:
            if store.size(axes[i]) != shape[i]:
                out[i] = store.fresh(shape[i], f"{call.node.name}[{i}]")
                store.pin(out[i], "S306", "it comes from reading by position")
        outputs.append(tuple(out))
    return outputs
