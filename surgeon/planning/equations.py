"""What each kind of op asks of the scales of its inputs, and gives for its output: one pass over a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import fx

from surgeon.axes.maps import NEW, Maps
from surgeon.graph.calls import Axes, Call
from surgeon.graph.inference import Anatomy, is_float, is_whole
from surgeon.graph.kinds import reduced
from surgeon.graph.spatial import normalised_groups, pooled
from surgeon.planning.cells import Drift
from surgeon.planning.rearranged import Rearranged
from surgeon.planning.roles import Roles
from surgeon.planning.scales import Cells, Conflict, as_cells, has_scale, zeros

KEPT = "it is an output of the model"  # the reason of an equation of one


class Equations(Rearranged):
    """The scale equations of a whole graph, collected in one pass over its nodes."""

    def collect(self) -> Equations:
        """Visit every node once, in order."""
        anchored = dict(self._anchors())
        self._number_unknowns({parameter: node for node, parameter in anchored.items()})
        for node in self.anatomy.captured.graph.nodes:
            values = self.anatomy.values.get(node.name)
            if node.op == "output":
                self._outputs()
            elif values is None:
                continue
            elif node.op == "placeholder":
                self.cells[node.name] = [self._placeholder(node, anchored)]
            elif node.name in self.anatomy.closed:
                self.cells[node.name] = [None if v is None else self._known(node) for v in values]
            elif node.name not in self.anatomy.calls:  # getitem, sizes
                self.cells[node.name] = self._getitem(node)
            elif node.name in anchored:
                parameter, call = anchored[node.name], self.anatomy.calls[node.name]
                self.offsets[parameter] = next(float(a) for a in call.args if isinstance(a, (int, float)))
                self.cells[node.name] = [self.parameters[parameter]]
            else:
                self.cells[node.name] = self._call(self.anatomy.calls[node.name])
                if is_whole(node):
                    self.exact(self.of(node), node.name, "whole numbers take no scale")
        return self

    # ── leaves ──────────────────────────────────────────────────────────────────────────

    def _number_unknowns(self, anchors: Mapping[str, str]) -> None:
        """One block of unknowns per parameter, numbered in the order in which the graph reads them."""
        waiting = set(self.anatomy.captured.parameters)
        for reader in self.anatomy.calls.values():
            for node, _ in reader.tensors():
                if node.name in waiting:
                    waiting.remove(node.name)
                    owner = anchors.get(node.name, node.name)
                    self.parameters[node.name] = self.system.unknowns(self.shape(self.axes_of(owner)))

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        """The users of a node that compute something from it (not the assertions)."""
        return [u for u in node.users if any(v is not None for v in self.anatomy.values.get(u.name, ()))]

    def _anchors(self) -> list[tuple[str, str]]:
        """Nodes ``w + c`` that are the only reader of a parameter w: the scale belongs to the sum,
        and the parameter is solved for (a gain stored as its distance from one)."""
        found = []
        for node in self.anatomy.captured.graph.nodes:
            if node.name not in self.anatomy.captured.parameters:
                continue
            reader = node
            while len(readers := self._readers(reader)) == 1:
                (reader,) = readers
                call = self.anatomy.calls.get(reader.name)
                kind = call.rule.kind if call is not None else None
                if call is None or kind is None:
                    break
                numbers = [a for a in call.args[:2] if isinstance(a, (int, float))]
                tensors = list(call.tensors())
                if kind.name == "pointwise" and kind.flag == "additive" and len(tensors) == 1:
                    adding = "add" in str(reader.target) and call.arg("alpha", 1) == 1
                    if adding and numbers and numbers[0] != 0:
                        found.append((reader.name, node.name))
                    break
                if kind.name != "identity":
                    break
        return found

    def _placeholder(self, node: fx.Node, anchored: Mapping[str, str]) -> Cells | None:
        if self.anatomy.values[node.name][0] is None:
            return None
        if node.name in self.parameters and node.name not in anchored.values():
            return self.parameters[node.name]
        return self._known(node)

    def _known(self, node: fx.Node) -> Cells:
        """A value that no parameter stands for: its scale is what it is."""
        shape = self.shape(self.axes_of(node.name))
        factor = self.known_scales.get(node.name, 1.0)
        if factor is None:
            return self.system.unknowns(shape)
        return as_cells(zeros(shape) + math.log(factor)) if factor != 1.0 else zeros(shape)

    def _getitem(self, node: fx.Node) -> list[Cells | None]:
        values = self.anatomy.values[node.name]
        if values[0] is None:
            return [None]
        source, which = node.args
        assert isinstance(source, fx.Node) and isinstance(which, int)
        return [self.cells[source.name][which]]

    def _outputs(self) -> None:
        loose = []
        for source in self.anatomy.captured.results:
            cells = self.cells.get(source.name, [None])[0]
            if cells is None or not is_float(source):
                continue
            if source.name in self.loose:
                loose.append(cells)
            else:
                self.exact(cells, source.name, KEPT)
        for name, placeholder in self.anatomy.captured.rewritten.items():
            new, old = self.cells[name][0], self.cells[placeholder][0]
            if new is not None and old is not None:
                self.equal_all([old, new], name, "a pass through the model rewrites it at another scale")
        for cells in loose:  # last, so that they bind nothing which another equation needs
            for form in cells.flat:
                self.system.prefer_zero(form)

    # ── calls ───────────────────────────────────────────────────────────────────────────

    def _call(self, call: Call) -> list[Cells | None]:
        name = call.node.name
        outputs = self.anatomy.values[name]
        if name in self.anatomy.refused:
            for node, _ in call.tensors():
                self.exact(self.of(node), name, "an op without a rule reads it")
            return [None if v is None else zeros(self.shape(v.axes)) for v in outputs]
        if call.rule.signature:
            return self._signature(call)
        assert call.rule.kind is not None
        handler = getattr(self, f"_{call.rule.kind.name}")
        result = handler(call)
        several = result if isinstance(result, list) else [result] * len(outputs)
        if len(several) > 1:  # of an extreme and where it stands, the place is the same in any scale
            made = call.node.meta["val"]
            several = [
                c if c is None or v.is_floating_point() or v.is_complex() else zeros(as_cells(c).shape)
                for c, v in zip(several, made, strict=True)
            ]
        return [None if cells is None else as_cells(cells) for cells in several]

    def _pointwise(self, call: Call) -> Cells:
        name, flag = call.node.name, call.flag
        tensors = [(i, a) for i, a in enumerate(call.args) if call.value(a) is not None]
        cells = [self.of(a) for _, a in tensors]
        out = np.broadcast_shapes(*(c.shape for c in cells))
        if not is_float(call.node) or flag == "nonlinear":
            for c in cells:
                self.exact(c, name, "a non-linear op reads it")
            return zeros(out)
        if flag == "homogeneous":
            return cells[0]
        if flag == "additive":
            total = self.equal_all(cells, name, "values of different scale are added")
            numbers = [a for a in call.args[:2] if isinstance(a, (int, float))]
            if len(tensors) == 1 and any(n != 0 for n in numbers):
                self.exact(total, name, "a constant is added to it")
            return total
        if flag == "select":
            branches = [c for (i, a), c in zip(tensors, cells, strict=True) if is_float(a)]
            spread = [np.broadcast_to(b, out) for b in branches]
            total = self.equal_all(spread or [zeros(out)], name, "a choice mixes scales")
            numbers = [a for a in call.args if isinstance(a, (int, float))]
            if any(has_scale(n) for n in numbers):
                self.exact(total, name, "a constant replaces some of it")
            return total
        if flag == "over":  # what is written over is not read
            return np.broadcast_to(cells[1], out)
        if flag == "power":
            assert call.rule.kind is not None
            given = call.rule.kind.value
            exponent = float(given) if given is not None else call.args[1]
            if not isinstance(exponent, (int, float)):
                for c in cells:
                    self.exact(c, name, "a power of it is taken")
                return zeros(out)
            return cells[0] * float(exponent)
        total = zeros(out)
        for position, a in enumerate(call.args[:2]):
            sign = -1.0 if flag == "quotient" and position == 1 else 1.0
            if call.value(a) is not None:
                total = total + self.of(a) * sign
            else:
                total = total + self.drifted(call, position) * sign
        if flag == "quotient" and call.arg("rounding_mode") is not None:
            self.exact(as_cells(total), name, "it is rounded")
        return total

    def _reduce(self, call: Call) -> Cells:
        name, cells = call.node.name, self.of(call.args[0])
        if call.flag == "soft":
            self.exact(cells, name, "a softmax reads it")
        axes = self.axes_of(call.args[0].name)
        for i in reduced(call):
            shape = [1] * cells.ndim
            shape[i] = cells.shape[i]
            if call.flag in ("sum", "mean"):
                cells = cells + self.log_counts(axes[i], name).reshape(shape)
            if call.flag == "norm":  # the p-th root of a sum of p-th powers
                order = float(call.arg("ord", call.arg("p", 2)))
                if order > 0:
                    cells = cells + self.log_counts(axes[i], name).reshape(shape) / order
                elif self.maps.grows(axes[i]):
                    reason = f"a norm of order {order:g} is taken over it"
                    self.system.conflicts.append(Conflict(name, reason, math.nan))
            if call.flag == "mean":
                cells = cells - self.log_ratio(axes[i])
            if call.flag == "extreme" and NEW in self.maps.index(axes[i]):
                self.system.conflicts.append(
                    Conflict(name, "an extreme is taken over new channels", math.nan)
                )
            cells = self._one_piece(cells, i, name)
        if call.flag in ("variance", "deviation"):
            cells = cells * 2.0 + self._spread_ratio(call, axes)
            cells = cells * (1.0 if call.flag == "variance" else 0.5)
        return as_cells(cells).reshape(self.shape(self.axes_of(name)))

    def _spread_ratio(self, call: Call, axes: Axes) -> float:
        """The logarithm of how a variance over copies differs from that over the source's channels: not
        at all, but for the correction that is taken from their number."""
        gone = tuple(factor for i in reduced(call) for factor in axes[i])
        self._uniform_over(gone, call.node.name)
        given = call.arg("correction", call.arg("unbiased", 1))
        correction = 1.0 if given is None else float(given)
        size = self.anatomy.store.size(gone)
        count = self.maps.target_size(gone)
        if size <= correction:
            return 0.0  # not a number, on both sides
        return math.log(count / size) - math.log((count - correction) / (size - correction))

    def _softmax(self, call: Call) -> Cells:
        self.exact(self.of(call.args[0]), call.node.name, "a softmax reads it")
        return zeros(self.of(call.args[0]).shape)

    def _window(self, call: Call) -> Cells:
        cells = self.of(call.args[0])
        for i in pooled(call):
            cells = self._one_piece(cells, i, call.node.name)
        return np.broadcast_to(cells, self.shape(self.axes_of(call.node.name)))

    def _group_norm(self, call: Call) -> Cells:
        x, name = call.args[0], call.node.name
        self.exact(self.of(x), name, "statistics are taken of it")
        axes = self.axes_of(x.name)
        _, within = normalised_groups(call, self.anatomy.store)
        self._uniform_over((*within, *(factor for axis in axes[2:] for factor in axis)), name)
        cells = zeros(self.shape(self.axes_of(name)))
        along = (1, -1, *(1 for _ in axes[2:]))
        if call.value(weight := call.arg("weight")) is not None:
            cells = as_cells(cells + self.of(weight).reshape(along))
        if call.value(bias := call.arg("bias")) is not None:
            cells = self.equal_all(
                [cells, self.of(bias).reshape(along)], name, "a bias of another scale is added"
            )
        return cells

    def _repeat(self, call: Call) -> Cells:
        cells = self.of(call.args[0])
        inside = "interleave" in str(call.node.target)
        if inside and call.arg("dim") is None:
            cells = cells.reshape(-1)
        shape = self.shape(self.axes_of(call.node.name))
        cells = cells.reshape((1,) * (len(shape) - cells.ndim) + cells.shape)
        for i, size in enumerate(shape):
            times = size // cells.shape[i]  # of the pieces, if the times were taken apart themselves
            cells = np.repeat(cells, times, axis=i) if inside else np.concatenate([cells] * times, axis=i)
        return cells

    def _complex(self, call: Call) -> Cells:
        cells = self.of(call.args[0])
        if call.flag == "joined":
            return self._one_piece(cells, cells.ndim - 1, call.node.name)[..., 0]
        return np.broadcast_to(cells[..., None], self.shape(self.axes_of(call.node.name)))

    def _uniform(self, call: Call) -> list[Cells | None]:
        given = next((call.arg(n) for n in ("fill_value", "value", "s") if n in call.names), 1.0)
        scaled = call.flag != "zero" and (not isinstance(given, (int, float)) or has_scale(given))
        if not scaled and is_float(call.node):  # the same times anything
            return [self.system.unknowns(self.shape(self.axes_of(call.node.name)))]
        return self._ignore(call)

    def _ignore(self, call: Call) -> list[Cells | None]:
        outputs = self.anatomy.values[call.node.name]
        return [None if v is None else zeros(self.shape(v.axes)) for v in outputs]

    def _made(self, call: Call) -> list[Cells | None]:
        for node, _ in call.tensors():
            self.exact(self.of(node), call.node.name, "something is made from it")
        return self._ignore(call)


def solve_scales(
    anatomy: Anatomy,
    maps: Maps,
    roles: Roles,
    drift: Drift | None = None,
    known_scales: Mapping[str, float | None] | None = None,
    loose: frozenset[str] = frozenset(),
) -> Equations:
    """Collect and solve the scale equations of a graph; conflicts are left in ``system.conflicts``. The
    outputs in `loose` keep scale one only where nothing else is in the way."""
    return Equations(anatomy, maps, roles, drift or {}, known_scales or {}, loose).collect()
