"""Values known on both sides of a growth: buffers, and what a class makes of numbers alone.

Where they grow they say which channel is which: rotary frequencies, or the slopes of position-biased
heads, stand in the grown class at other places than the source's, with new ones between. Where they only
differ by a factor, that factor enters the scale equations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgeon.axes.maps import NEW, Index, Maps
from surgeon.axes.store import Axis, Cat
from surgeon.errors import PlanError, fail
from surgeon.graph.calls import Axes
from surgeon.graph.capture import Captured
from surgeon.graph.closed import evaluate
from surgeon.graph.inference import Anatomy

TOLERANCE = 2e-6  # relative: a few roundings of float32, in which classes compute such values


@dataclass(frozen=True)
class Known:
    """A value of the source and of the grown class."""

    what: str  # in words, for messages
    axes: Axes
    source: Tensor
    grown: Tensor


def known_values(
    anatomy: Anatomy,
    grown: Captured,
    twins: Mapping[str, str],
    source_buffers: Mapping[str, Tensor],
    grown_buffers: Mapping[str, Tensor],
) -> dict[str, Known]:
    """By node name: the buffers that the graph reads, and the closed nodes."""
    found: dict[str, Known] = {}
    for placeholder, name in anatomy.captured.buffers.items():
        if anatomy.nodes[placeholder].users and name in source_buffers and name in grown_buffers:
            pair = source_buffers[name], grown_buffers[name]
            found[placeholder] = Known(f"its buffer {name}", anatomy.parameter_axes(name), *pair)
    typed = [name for name in anatomy.closed if anatomy.values[name][0] is not None]
    before = evaluate(anatomy.nodes[name] for name in typed)
    grown_nodes = {node.name: node for node in grown.nodes}
    after = evaluate(grown_nodes[twins[name]] for name in typed)
    for name in typed:
        value = anatomy.values[name][0]
        assert value is not None
        axes = tuple(anatomy.store.resolve(axis) for axis in value.axes)
        found[name] = Known(
            f"what it makes of numbers in {anatomy.where(name)}", axes, before[name], after[twins[name]]
        )
    return found


def known_maps(
    anatomy: Anatomy, dims: Mapping[int, Index], known: Mapping[str, Known]
) -> dict[int, tuple[Index, str]]:
    """The maps of dims along which a known value grows, each with that value in words: its source channels
    must stand in it (rotary frequencies do, every n-th); the others are new."""
    found: dict[int, tuple[Index, str]] = {}
    maps = Maps(anatomy.store, dims)
    for value in known.values():
        if not value.source.is_floating_point():
            continue
        for i, axis in enumerate(value.axes):
            others = [a for j, a in enumerate(value.axes) if j != i]
            if any(maps.grows(a) for a in others):
                continue
            for dim, before, after in _single(axis, maps):
                if dim not in dims:
                    continue
                source = _channels(value.source, i)[before]
                grown = _channels(value.grown, i)[after]
                if len(grown) != len(dims[dim]):
                    continue
                index = match_values(source, grown, dims[dim])
                if index is not None and not np.array_equal(index, dims[dim]):
                    found[dim] = index, value.what
    return found


def _single(axis: Axis, maps: Maps) -> Iterator[tuple[int, slice, slice]]:
    """The dims that an axis is, or that lie end to end in it, with where they lie in source and target."""
    before = after = 0
    parts = axis[0].parts if len(axis) == 1 and isinstance(axis[0], Cat) else (axis,)
    for part in parts:
        size, target = maps.store.size(part), maps.target_size(part)
        if len(part) == 1 and isinstance(part[0], int):
            yield part[0], slice(before, before + size), slice(after, after + target)
        before, after = before + size, after + target


def _channels(value: Tensor, axis: int) -> NDArray[np.float64]:
    """One row for each channel of an axis."""
    rows = value.double().movedim(axis, 0)
    return np.asarray(rows.reshape(len(rows), -1).numpy())


def match_values(source: NDArray[np.float64], grown: NDArray[np.float64], clone: Index) -> Index | None:
    """The map under which the rows of `grown` are those of `source`: the clone if it fits, else each
    source row once and the rest NEW; None when some source row is missing."""
    source, grown = source.reshape(len(source), -1), grown.reshape(len(grown), -1)
    if np.allclose(grown, source[clone], rtol=TOLERANCE, atol=0):
        return clone
    index = np.full(len(grown), NEW, dtype=np.int64)
    for channel, row in enumerate(source):
        close = np.isclose(grown, row[None, :], rtol=TOLERANCE, atol=0).all(1)
        near = np.flatnonzero(close & (index == NEW))
        if not len(near):
            return None
        index[near[0]] = channel
    return index


def known_scales(maps: Maps, known: Mapping[str, Known]) -> dict[str, float]:
    """The factor by which each known value differs from its expansion; it must be one factor for all."""
    return {name: factor for name, value in known.items() if (factor := _factor(maps, value)) != 1.0}


def _factor(maps: Maps, value: Known) -> float:
    wide = torch.float64 if value.source.is_floating_point() else value.source.dtype
    before, after = value.source.to(wide), value.grown.to(wide)
    keep = torch.ones(after.shape, dtype=torch.bool)
    for dim, axis in enumerate(value.axes):
        index = torch.from_numpy(maps.index(axis))
        before = before.index_select(dim, index.clamp(min=0))
        shape = [-1 if i == dim else 1 for i in range(after.ndim)]
        keep = keep & (index != NEW).reshape(shape)
    a, b = before[keep], after[keep]
    if torch.equal(a, b):
        return 1.0
    if a.is_floating_point():
        if torch.allclose(a, b, rtol=TOLERANCE, atol=1e-30, equal_nan=True):
            return 1.0
        ratio = b / a
        first = float(ratio.flatten()[0])
        if torch.isfinite(ratio).all() and first > 0 and (ratio / first - 1).abs().max() <= TOLERANCE:
            return first
    raise fail(
        PlanError,
        "S323",
        f"the grown class computes other values for {value.what}",
        help="what depends on it cannot grow: grow other dims",
    )
