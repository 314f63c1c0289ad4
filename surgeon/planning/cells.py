"""The cells of a value: its scales, laid out as the value is, and what all equations about them share.

The scale of a value is an array of linear forms, one cell per piece of its axes (a fused projection's
q, k and v each have their own). These little arrays are laid out as the tensors are, so a view of
the tensor is a reshape of the cells, and a slice of it picks cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from surgeon.axes.maps import Maps
from surgeon.axes.store import Axis, parts
from surgeon.graph.calls import Axes, Call
from surgeon.graph.inference import Anatomy
from surgeon.planning.roles import Roles
from surgeon.planning.scales import Cells, Conflict, System, distinct

Drift = Mapping[tuple[str, int], tuple[float, float]]
"""Numbers that differ between the source graph and the grown class's: (node, argument) to both."""


@dataclass
class Cellwise:
    """A graph, its growth, the system of equations, and the cells found so far by node name."""

    anatomy: Anatomy
    maps: Maps
    roles: Roles
    drift: Drift
    known_scales: Mapping[str, float | None]  # of buffers and closed nodes, by node name; None: any will do
    loose: frozenset[str] = frozenset()  # outputs, by node name, that may come out scaled
    system: System = field(default_factory=System)
    cells: dict[str, list[Cells | None]] = field(default_factory=dict)
    parameters: dict[str, Cells] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)  # parameter placeholder -> c of (w + c)

    def shape(self, axes: Axes) -> tuple[int, ...]:
        return tuple(parts(self.anatomy.store, axis) for axis in axes)

    def axes_of(self, name: str, output: int = 0) -> Axes:
        value = self.anatomy.values[name][output]
        assert value is not None
        return tuple(self.anatomy.store.resolve(a) for a in value.axes)

    def of(self, node: fx.Node) -> Cells:
        cells = self.cells[node.name][0]
        assert cells is not None
        return cells

    def exact(self, cells: Cells, node: str, reason: str) -> None:
        for (form,) in distinct(cells):
            self.system.require_zero(form, node, reason)

    def equal_all(self, several: list[Cells], node: str, reason: str) -> Cells:
        shape = np.broadcast_shapes(*(c.shape for c in several))
        out = np.broadcast_to(several[0], shape)
        for cells in several[1:]:
            for x, y in distinct(out, np.broadcast_to(cells, shape)):
                self.system.require_zero(x - y, node, reason)
        return out

    def log_counts(self, axis: Axis, node: str) -> NDArray[Any]:
        """Per piece of an axis, the logarithm of how many copies a sum over it runs through."""
        counts = self.maps.multiplicity(axis)
        if None in counts:
            dims = tuple(self.anatomy.store.leaves(axis))
            reason = f"a sum runs over {self.uneven(axis)}, whose channels are not all copied equally often"
            self.system.conflicts.append(Conflict(node, reason, math.nan, dims))
        return np.array([0.0 if c is None else math.log(c) for c in counts])

    def uneven(self, axis: Axis) -> str:
        """The dim of an axis that has more copies of some channels than of others, in words."""
        store = self.anatomy.store
        for dim in store.leaves(axis):
            if None in self.maps.multiplicity((dim,)):
                return f"{store.labels[dim]} ({store.sizes[dim]} → {len(self.maps.dims[dim])})"
        return "pieces that grow apart"

    def log_ratio(self, axis: Axis) -> float:
        return math.log(self.maps.target_size(axis) / self.anatomy.store.size(axis))

    def drifted(self, call: Call, position: int) -> float:
        """The logarithm of how a number of the grown class differs from the source's."""
        pair = self.drift.get((call.node.name, position))
        return 0.0 if pair is None else math.log(abs(pair[1])) - math.log(abs(pair[0]))
