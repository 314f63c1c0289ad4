"""Values known on both sides of a growth: buffers, and what a class makes of numbers alone.

Where they grow they say which channel is which: rotary frequencies, or the slopes of position-biased
heads, stand in the grown class at other places than the source's, with new ones between. Where they only
differ by a factor, that factor enters the scale equations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgeon.axes.maps import NEW, Index, Maps, filled_map
from surgeon.errors import PlanError, fail
from surgeon.graph.calls import Axes
from surgeon.graph.captured import Captured
from surgeon.graph.closed import computes, evaluate
from surgeon.graph.inference import Anatomy

TOLERANCE = 2e-6  # relative: a few roundings of float32, in which classes compute such values


@dataclass(frozen=True)
class Known:
    """A value of the source and of the grown class."""

    what: str  # in words, for messages
    axes: Axes
    source: Tensor
    grown: Tensor
    enters: str = ""  # the place of the first op that reads it


@dataclass(frozen=True)
class Placed:
    """Where the source's channels of a dim stand in a known value of the grown class, and which it is."""

    index: Index  # each source channel once, the others NEW
    what: str


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
            axes, pair = anatomy.parameter_axes(name), (source_buffers[name], grown_buffers[name])
            found[placeholder] = Known(f"its buffer {name}", axes, *pair, _reader(anatomy, placeholder))
    typed = [name for name in anatomy.closed if anatomy.values[name][0] is not None]
    before = evaluate(anatomy.nodes[name] for name in typed)
    grown_nodes = {node.name: node for node in grown.nodes}
    after = evaluate(grown_nodes[twins[name]] for name in typed)
    for name in typed:
        value = anatomy.values[name][0]
        assert value is not None
        axes = tuple(anatomy.store.resolve(axis) for axis in value.axes)
        what = f"what it makes of numbers in {anatomy.where(name)}"
        found[name] = Known(what, axes, before[name], after[twins[name]], _reader(anatomy, name))
    return found


def _reader(anatomy: Anatomy, name: str) -> str:
    return next((anatomy.where(user.name) for user in anatomy.nodes[name].users if computes(user)), "")


def known_maps(anatomy: Anatomy, dims: Mapping[int, Index], known: Mapping[str, Known]) -> dict[int, Placed]:
    """The dims along which a known value grows otherwise than by copies: its source channels must stand
    in it (rotary frequencies do, every n-th)."""
    found: dict[int, Placed] = {}
    maps = Maps(anatomy.store, dims)
    for value in known.values():
        for dim, source, grown in _rows(value, maps):
            index = match_values(source, grown, dims[dim])
            if index is not None and not np.array_equal(index, dims[dim]):
                found[dim] = Placed(index, value.what)
    return found


def settled_maps(
    anatomy: Anatomy, dims: Mapping[int, Index], placed: Mapping[int, Placed], measured: Set[int]
) -> Maps:
    """The maps of all dims. Between the source's channels of a placed dim the grown ones are new, and what
    makes them is zero. Where statistics are taken over the dim (`measured`) they are copies, and the known
    value alone holds something else there: it is partial."""
    settled, partial = dict(dims), {}
    for dim, place in placed.items():
        size = anatomy.store.sizes[dim]
        if dim in measured and len(place.index) % size == 0:
            settled[dim], partial[dim] = filled_map(place.index, size), place.index
        else:
            settled[dim] = place.index
    return Maps(anatomy.store, settled, partial)


def _rows(value: Known, maps: Maps) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """The dims along which a known value grows, with one row per channel of it in source and target. A
    dim may be an axis, a factor of one, or lie end to end with others, in several places."""
    planned = tuple(maps.target_size(axis) for axis in value.axes)
    if not value.source.is_floating_point() or tuple(value.grown.shape) != planned:
        return
    for i, axis in enumerate(value.axes):
        if any(maps.grows(a) for j, a in enumerate(value.axes) if j != i):
            continue
        sides = [tensor.double().movedim(i, 0) for tensor in (value.source, value.grown)]
        found: dict[int, list[list[NDArray[np.float64]]]] = {}
        before = after = 0
        for word in maps.store.words(axis):
            size, target = maps.store.size(word), maps.target_size(word)
            growing = [leaf for leaf in maps.store.leaves(word) if leaf in maps.dims]
            if len(growing) == 1 and growing[0] in word:
                (dim,) = growing
                inner = maps.store.size(word[word.index(dim) + 1 :])
                pieces = sides[0][before : before + size], sides[1][after : after + target]
                pair = [_channels(p, n, inner) for p, n in zip(pieces, _sizes(dim, maps), strict=True)]
                found.setdefault(dim, []).append(pair)
            before, after = before + size, after + target
        for dim, pairs in found.items():
            source, grown = (np.concatenate(side, axis=1) for side in zip(*pairs, strict=True))
            yield dim, source, grown


def _sizes(dim: int, maps: Maps) -> tuple[int, int]:
    return maps.store.sizes[dim], len(maps.dims[dim])


def _channels(value: Tensor, size: int, inner: int) -> NDArray[np.float64]:
    """One row for each channel of a dim that is a factor of the first axis, `inner` what lies within."""
    outer = len(value) // (size * inner)  # said, as a value may be empty along another axis
    rows = value.reshape(outer, size, inner, *value.shape[1:]).movedim(1, 0)
    return np.asarray(rows.flatten(1).numpy())


def match_values(source: NDArray[np.float64], grown: NDArray[np.float64], clone: Index) -> Index | None:
    """The map under which the rows of `grown` are those of `source`: the clone if it fits, else each
    source row once, at the place that is nearest, and the rest NEW; None when some source row is missing."""
    source, grown = source.reshape(len(source), -1), grown.reshape(len(grown), -1)
    if np.allclose(grown, source[clone], rtol=TOLERANCE, atol=0):
        return clone
    index = np.full(len(grown), NEW, dtype=np.int64)
    for channel, row in enumerate(source):
        near = np.flatnonzero(_is_near(grown, row) & (index == NEW))
        if not len(near):
            return None
        gaps = np.abs(grown[near] - row[None, :]).max(1)
        index[near[gaps.argmin()]] = channel
    return index


def _is_near(grown: NDArray[np.float64], row: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows are `row`."""
    return np.asarray(np.isclose(grown, row[None, :], rtol=TOLERANCE, atol=0).all(1))


def known_scales(
    anatomy: Anatomy, maps: Maps, known: Mapping[str, Known]
) -> tuple[dict[str, float | None], dict[str, frozenset[int]]]:
    """The factor by which each known value differs from its expansion, where it is not one, and the dims
    along which it is partial; by node name. None stands for any factor: what is made of numbers, and is zero
    or infinite throughout, is the same times each. Raises PlanError S323 where it is no one factor."""
    factors: dict[str, float | None] = {}
    partial: dict[str, frozenset[int]] = {}
    for name, value in known.items():
        along = frozenset(d for axis in value.axes for d in maps.store.leaves(axis) if d in maps.placed)
        factor = _factor(maps, value, frozenset())
        if factor is None and along:
            factor, partial[name] = _factor(maps, value, along), along
        if factor is None:
            raise _other_values(anatomy, maps, value)
        if factor != 1.0:
            factors[name] = factor
        elif name in anatomy.closed and _has_no_scale(value.source):
            factors[name] = None
    return factors, partial


def _has_no_scale(value: Tensor) -> bool:
    return value.is_floating_point() and bool(((value == 0) | value.isinf()).all())


def _factor(maps: Maps, value: Known, partial: Set[int]) -> float | None:
    wide = torch.float64 if value.source.is_floating_point() else value.source.dtype
    before, after = value.source.to(wide), value.grown.to(wide)
    keep = torch.ones(after.shape, dtype=torch.bool)
    for dim, axis in enumerate(value.axes):
        index = torch.from_numpy(maps.index(axis, partial))
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
    return None


def _other_values(anatomy: Anatomy, maps: Maps, value: Known) -> PlanError:
    """The refusal of a value that no map and no factor explains: how many of the source's channels the
    grown class has at no place, and where the value enters."""
    notes = [f"it enters {value.enters}"] if value.enters else []
    grown = {d for axis in value.axes for d in maps.store.leaves(axis) if d in maps.dims}
    for _, source, rows in _rows(value, maps):
        missing = sum(not _is_near(rows, row).any() for row in source)
        if missing:
            places = f"{missing} of its {len(source)} channels stand at no place"
            notes.insert(0, f"{places} among the {len(rows)} of the grown class")
    labels = list(dict.fromkeys(anatomy.store.labels[d] for d in sorted(grown) if anatomy.store.labels[d]))
    stuck = labels[0] if labels else "what depends on it"
    return fail(
        PlanError,
        "S323",
        f"the grown class computes other values for {value.what}",
        notes=tuple(notes),
        help=f"{stuck} cannot grow: grow dims that this value does not depend on (ffn, head_dim)",
    )
