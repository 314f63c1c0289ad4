"""What each kind of op asks of the scales of its inputs, and gives for its output.

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

from surgeon.axes.maps import NEW, Maps
from surgeon.axes.store import Axis, parts
from surgeon.graph import signatures
from surgeon.graph.calls import Axes, Call
from surgeon.graph.inference import Anatomy, is_float
from surgeon.graph.kinds import (
    convolution_parts,
    einsum_names,
    is_transposed,
    permutation,
    reduced,
    split_sizes,
)
from surgeon.planning.roles import Roles
from surgeon.planning.scales import ZERO, Cells, Conflict, Form, System, as_cells, zeros

Drift = Mapping[tuple[str, int], tuple[float, float]]
"""Numbers that differ between the source graph and the grown class's: (node, argument) to both."""


@dataclass(frozen=True)
class Term:
    """A factor of a product: its cells with one label per axis, and what each axis is."""

    cells: Cells
    labels: list[str]
    axes: Axes
    shared: frozenset[str]  # the labels along which it is a shared-out parameter


@dataclass
class Equations:
    """The scale equations of a whole graph, collected in one pass over its nodes."""

    anatomy: Anatomy
    maps: Maps
    roles: Roles
    drift: Drift
    buffer_scales: Mapping[str, float]
    system: System = field(default_factory=System)
    cells: dict[str, list[Cells | None]] = field(default_factory=dict)
    parameters: dict[str, Cells] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)  # parameter placeholder -> c of (w + c)

    def collect(self) -> Equations:
        """Visit every node once, in order."""
        anchored = dict(self._anchors())
        self._number_unknowns({parameter: node for node, parameter in anchored.items()})
        for node in self.anatomy.captured.graph.nodes:
            values = self.anatomy.values.get(node.name)
            if node.op == "output":
                self._outputs(node)
            elif values is None:
                continue
            elif node.op == "placeholder":
                self.cells[node.name] = [self._placeholder(node, anchored)]
            elif node.name not in self.anatomy.calls:  # getitem, sizes
                self.cells[node.name] = self._getitem(node)
            elif node.name in anchored:
                parameter, call = anchored[node.name], self.anatomy.calls[node.name]
                self.offsets[parameter] = next(float(a) for a in call.args if isinstance(a, (int, float)))
                self.cells[node.name] = [self.parameters[parameter]]
            else:
                self.cells[node.name] = self._call(self.anatomy.calls[node.name])
        return self

    # ── helpers ─────────────────────────────────────────────────────────────────────────

    def shape(self, axes: Axes) -> tuple[int, ...]:
        return tuple(parts(self.anatomy.store, axis) for axis in axes)

    def _axes(self, name: str, output: int = 0) -> Axes:
        value = self.anatomy.values[name][output]
        assert value is not None
        return tuple(self.anatomy.store.resolve(a) for a in value.axes)

    def of(self, node: fx.Node) -> Cells:
        cells = self.cells[node.name][0]
        assert cells is not None
        return cells

    def exact(self, cells: Cells, node: str, reason: str) -> None:
        for form in cells.flat:
            self.system.require_zero(form, node, reason)

    def equal(self, cells: Cells, other: Cells, node: str, reason: str) -> None:
        for a, b in zip(*np.broadcast_arrays(cells, other), strict=True):
            for x, y in zip(np.ravel(a), np.ravel(b), strict=True):
                self.system.require_zero(x - y, node, reason)

    def _equal_all(self, several: list[Cells], node: str, reason: str) -> Cells:
        shape = np.broadcast_shapes(*(c.shape for c in several))
        out = np.broadcast_to(several[0], shape)
        for cells in several[1:]:
            for x, y in zip(out.flat, np.broadcast_to(cells, shape).flat, strict=True):
                self.system.require_zero(x - y, node, reason)
        return out

    def log_counts(self, axis: Axis, node: str) -> NDArray[Any]:
        """Per piece of an axis, the logarithm of how many copies a sum over it runs through."""
        counts = self.maps.multiplicity(axis)
        if None in counts:
            reason = "its channels are not all copied equally often"
            self.system.conflicts.append(Conflict(node, reason, math.nan))
        return np.array([0.0 if c is None else math.log(c) for c in counts])

    def log_ratio(self, axis: Axis) -> float:
        return math.log(self.maps.target_size(axis) / self.anatomy.store.size(axis))

    def drifted(self, call: Call, position: int) -> float:
        """The logarithm of how a number of the grown class differs from the source's."""
        pair = self.drift.get((call.node.name, position))
        return 0.0 if pair is None else math.log(abs(pair[1])) - math.log(abs(pair[0]))

    # ── leaves ──────────────────────────────────────────────────────────────────────────

    def _number_unknowns(self, anchors: Mapping[str, str]) -> None:
        """One block of unknowns per parameter, numbered in the order in which the graph reads them."""
        waiting = set(self.anatomy.captured.parameters)
        for reader in self.anatomy.calls.values():
            for node, _ in reader.tensors():
                if node.name in waiting:
                    waiting.remove(node.name)
                    owner = anchors.get(node.name, node.name)
                    self.parameters[node.name] = self.system.unknowns(self.shape(self._axes(owner)))

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
        shape = self.shape(self._axes(node.name))
        captured = self.anatomy.captured
        if node.name in self.parameters and node.name not in anchored.values():
            return self.parameters[node.name]
        cells = zeros(shape)
        factor = self.buffer_scales.get(captured.buffers.get(node.name, ""), 1.0)
        return as_cells(cells + math.log(factor)) if factor != 1.0 else cells

    def _getitem(self, node: fx.Node) -> list[Cells | None]:
        values = self.anatomy.values[node.name]
        if values[0] is None:
            return [None]
        source, which = node.args
        return [self.cells[source.name][which]]  # type: ignore[union-attr, index]

    def _outputs(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            cells = self.cells.get(source.name, [None])[0]
            if cells is not None and is_float(source):
                self.exact(cells, source.name, "it is an output of the model")

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
            total = self._equal_all(cells, name, "values of different scale are added")
            numbers = [a for a in call.args[:2] if isinstance(a, (int, float))]
            if len(tensors) == 1 and any(n != 0 for n in numbers):
                self.exact(total, name, "a constant is added to it")
            return total
        if flag == "select":
            branches = [c for (i, a), c in zip(tensors, cells, strict=True) if is_float(a)]
            total = self._equal_all(
                [np.broadcast_to(b, out) for b in branches], name, "a choice mixes scales"
            )
            numbers = [a for a in call.args if isinstance(a, (int, float)) and not isinstance(a, bool)]
            if any(n != 0 and math.isfinite(n) for n in numbers):
                self.exact(total, name, "a constant replaces some of it")
            return total
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

    def _identity(self, call: Call) -> Cells:
        return self.of(call.args[0])

    def _reshape(self, call: Call) -> Cells:
        return self.of(call.args[0]).reshape(self.shape(self._axes(call.node.name)))

    _unsqueeze = _squeeze = _reshape

    def _permute(self, call: Call) -> Cells:
        return self.of(call.args[0]).transpose(permutation(call))

    def _expand(self, call: Call) -> Cells:
        cells = self.of(call.args[0])
        shape = self.shape(self._axes(call.node.name))
        return np.broadcast_to(cells.reshape((1,) * (len(shape) - cells.ndim) + cells.shape), shape)

    def _pick(self, call: Call, dim: int, channels: NDArray[np.int64], output: int = 0) -> Cells:
        """The cells of a piece of the first argument: `channels` are those it takes along `dim`."""
        old = self._source_parts(self._axes(call.args[0].name)[dim])[channels]
        axes = self._axes(call.node.name, output)
        cells = self.of(call.args[0])
        if len(axes) < cells.ndim:  # select: the axis goes
            return np.take(cells, int(old[0]), axis=dim)
        new = self._source_parts(axes[dim])
        _, first = np.unique(new, return_index=True)
        return np.take(cells, old[first], axis=dim)

    def _source_parts(self, axis: Axis) -> NDArray[np.int64]:
        return Maps(self.anatomy.store, {}).parts(axis)

    def _slice(self, call: Call) -> Cells:
        axes = self._axes(call.args[0].name)
        dim = call.axis_arg(call.arg("dim", 0), len(axes))
        size = self.anatomy.store.size(axes[dim])
        length = self.anatomy.store.size(self._axes(call.node.name)[dim])
        start, stop, step = call.arg("start"), call.arg("end"), call.arg("step", 1)
        known = all(v is None or isinstance(v, int) for v in (start, stop, step))
        channels = np.arange(size)[slice(start, stop, step)] if known else np.arange(min(length, size))
        if len(channels) != length or not length:
            return zeros(self.shape(self._axes(call.node.name)))
        return self._pick(call, dim, channels)

    def _select(self, call: Call) -> Cells:
        axes = self._axes(call.args[0].name)
        dim = call.axis_arg(call.arg("dim", 0), len(axes))
        position = call.arg("index")
        size = self.anatomy.store.size(axes[dim])
        channel = position % size if isinstance(position, int) else 0
        return self._pick(call, dim, np.array([channel]))

    def _split(self, call: Call) -> list[Cells | None]:
        axes = self._axes(call.args[0].name)
        if "unbind" in str(call.node.target):
            dim = call.axis_arg(call.arg("dim", 0), len(axes))
            return [self._pick(call, dim, np.array([i]), i) for i in range(len(call.shapes))]
        dim, sizes = split_sizes(call, self.anatomy.store)
        starts = np.cumsum([0, *sizes])
        return [
            self._pick(call, dim, np.arange(starts[i], starts[i] + size), i) for i, size in enumerate(sizes)
        ]

    def _joined(self, call: Call, dim: int, pieces: list[tuple[Cells, NDArray[np.int64]]]) -> Cells:
        """Cells of tensors laid end to end along `dim`; each piece with its channels' parts."""
        new = self._source_parts(self._axes(call.node.name)[dim])
        _, first = np.unique(new, return_index=True)
        others = np.broadcast_shapes(*(np.take(c, [0], axis=dim).shape for c, _ in pieces))
        taken = []
        offset = 0
        for cells, channels in pieces:
            here = first[(first >= offset) & (first < offset + len(channels))] - offset
            shape = (*others[:dim], len(here), *others[dim + 1 :])
            taken.append(np.broadcast_to(np.take(cells, channels[here], axis=dim), shape))
            offset += len(channels)
        return np.concatenate(taken, axis=dim)

    def _concatenate(self, call: Call) -> Cells:
        tensors = [t for t in call.args[0] if self._axes(t.name)]
        dim = call.axis_arg(call.arg("dim", 0), len(self._axes(tensors[0].name)))
        tensors = [t for t in tensors if self.anatomy.store.size(self._axes(t.name)[dim])]
        return self._joined(
            call, dim, [(self.of(t), self._source_parts(self._axes(t.name)[dim])) for t in tensors]
        )

    def _stack(self, call: Call) -> Cells:
        rank = len(self._axes(call.node.name))
        dim = call.axis_arg(call.arg("dim", 0), rank)
        one = np.zeros(1, dtype=np.int64)
        return self._joined(call, dim, [(np.expand_dims(self.of(t), dim), one) for t in call.args[0]])

    def _reduce(self, call: Call) -> Cells:
        name, cells = call.node.name, self.of(call.args[0])
        axes = self._axes(call.args[0].name)
        for i in reduced(call):
            shape = [1] * cells.ndim
            shape[i] = cells.shape[i]
            if call.flag in ("sum", "mean"):
                cells = cells + self.log_counts(axes[i], name).reshape(shape)
            if call.flag == "mean":
                cells = cells - self.log_ratio(axes[i])
            if call.flag == "extreme" and NEW in self.maps.index(axes[i]):
                self.system.conflicts.append(
                    Conflict(name, "an extreme is taken over new channels", math.nan)
                )
            first = np.take(cells, [0], axis=i)
            cells = self._equal_all([first, cells], name, "pieces of different scale are summed")
            cells = np.take(cells, [0], axis=i)
        return cells.reshape(self.shape(self._axes(name)))

    def _softmax(self, call: Call) -> Cells:
        self.exact(self.of(call.args[0]), call.node.name, "a softmax reads it")
        return zeros(self.of(call.args[0]).shape)

    def _window(self, call: Call) -> Cells:
        shape = self.shape(self._axes(call.node.name))
        cells = self.of(call.args[0])
        return np.broadcast_to(cells[tuple(slice(0, n) for n in shape)], shape)

    def _index(self, call: Call) -> Cells:
        for node, _ in call.tensors():
            self.exact(self.of(node), call.node.name, "it is read by position")
        return zeros(self.shape(self._axes(call.node.name)))

    def _uniform(self, call: Call) -> list[Cells | None]:
        outputs = self.anatomy.values[call.node.name]
        return [None if v is None else zeros(self.shape(v.axes)) for v in outputs]

    _made = _ignore = _uniform

    # ── products ────────────────────────────────────────────────────────────────────────

    def _term(self, node: fx.Node, labels: list[str], call: Call) -> Term:
        value = call.value(node)
        shared = frozenset(label for i, label in enumerate(labels) if self.roles.shares(value, i))
        return Term(self.of(node), labels, self._axes(node.name), shared)

    def product(self, terms: list[Term], kept: list[str], name: str, extra: float = 0.0) -> Cells:
        """The cells of a product of `terms`, summed over the labels that are not `kept`."""
        order = list(dict.fromkeys([*kept, *(label for t in terms for label in t.labels)]))
        total: Cells = zeros((1,) * len(order))
        for term in terms:
            present = [label for label in order if label in term.labels]
            cells = term.cells.transpose([term.labels.index(label) for label in present])
            shape = [cells.shape[present.index(label)] if label in present else 1 for label in order]
            total = total + cells.reshape(shape)
        for position, label in enumerate(order):
            if label in kept:
                continue
            if not any(label in t.shared for t in terms):
                axis = next((t.axes[t.labels.index(label)] for t in terms if label in t.labels), ())
                shape = [1] * len(order)
                counts = self.log_counts(axis, name)
                shape[position] = len(counts)
                total = total + counts.reshape(shape)
            if extra:
                total, extra = total + extra, 0.0
            first = np.take(total, [0], axis=position)
            self._equal_all([first, total], name, "pieces of different scale are summed")
            total = first
        total = as_cells(total + extra)
        return total.reshape(total.shape[: len(kept)])

    def _signature(self, call: Call) -> list[Cells | None]:
        rule, name = call.rule, call.node.name
        assert rule.signature is not None
        terms: dict[str, Term] = {}
        axes_by_name: dict[str, Axis] = {}
        for tensor in signatures.match(call):
            rank = len(tensor.axes)
            labels = [""] * rank
            for axis_name, i in tensor.named.items():
                labels[i] = axis_name if axis_name not in ("_", "1") else f"_{tensor.argument}{i}"
                axes_by_name.setdefault(axis_name, tensor.axes[i])
            rest = [i for i in range(rank) if not labels[i]]
            for back, i in enumerate(reversed(rest), start=1):
                labels[i] = f"...{back}"
            terms[tensor.argument] = self._term(tensor.node, labels, call)
        apart: set[str] = {"bias"}
        for statement in rule.exact:
            apart.update(statement.members)
            self._exact_product(call, statement.members, terms, axes_by_name)
        for role in rule.roles:
            if role.word == "norm":
                for axis_name in role.axes:
                    self._uniform_over(axes_by_name[axis_name], name)
        multiplied = [term for argument, term in terms.items() if argument not in apart]
        outputs: list[Cells | None] = []
        for number, (pattern, value) in enumerate(
            zip(rule.signature.outputs, self.anatomy.values[name], strict=False)
        ):
            if value is None:
                outputs.append(None)
                continue
            shape = self.shape(self._axes(name, number))
            extra = len(shape) - len(pattern.names)
            kept = list(pattern.names)
            if pattern.ellipsis is not None:
                kept[pattern.ellipsis : pattern.ellipsis] = [f"...{b}" for b in range(extra, 0, -1)]
            cells = np.broadcast_to(self.product(multiplied, kept, name), shape)
            if "bias" in terms:
                bias = terms["bias"]
                labels = [label for label in kept if label in bias.labels]
                laid = self.product([bias], labels, name)
                spread = laid.reshape([laid.shape[labels.index(k)] if k in labels else 1 for k in kept])
                cells = self._equal_all([cells, spread], name, "a bias of another scale is added")
            outputs.append(cells)
        return outputs + [None] * (len(self.anatomy.values[name]) - len(outputs))

    def _exact_product(
        self, call: Call, members: tuple[str, ...], terms: dict[str, Term], axes: Mapping[str, Axis]
    ) -> None:
        assert call.rule.signature is not None
        patterns = {a.name: i for i, a in enumerate(call.rule.signature.args)}
        numbers = 0.0
        for member in members:
            if member in terms:
                continue
            position = patterns.get(member)
            given = call.args[position] if position is not None and position < len(call.args) else None
            if isinstance(given, (int, float)):
                assert position is not None
                numbers += self.drifted(call, position)
            else:
                for default in call.rule.defaults:
                    if default.argument == member:
                        numbers += float(default.exponent) * self.log_ratio(axes[default.axis])
        factors = [terms[m] for m in members if m in terms]
        count: dict[str, int] = {}
        for term in factors:
            for label in term.labels:
                count[label] = count.get(label, 0) + 1
        output_names = {n for out in call.rule.signature.outputs for n in out.names}
        kept = [
            label for label in count if label in output_names or label.startswith("...") or count[label] == 1
        ]
        cells = as_cells(self.product(factors, kept, call.node.name) + numbers)
        self.exact(cells, call.node.name, "the op must read " + " · ".join(members) + " unscaled")

    def _uniform_over(self, axis: Axis, name: str) -> None:
        """Mean and variance over `axis` survive only when all its channels are copied equally often."""
        ratio = self.log_ratio(axis)
        for count in self.log_counts(axis, name):
            if abs(count - ratio) > 1e-12:
                reason = "statistics over it change: its channels are not all copied equally often"
                self.system.conflicts.append(Conflict(name, reason, math.exp(ratio - count)))
                return

    def _einsum(self, call: Call) -> Cells:
        operands, result = einsum_names(call)
        terms = [self._term(t, names, call) for names, t in zip(operands, call.args[1], strict=True)]
        return np.broadcast_to(
            self.product(terms, result, call.node.name), self.shape(self._axes(call.node.name))
        )

    def _convolution(self, call: Call) -> Cells:
        store, name = self.anatomy.store, call.node.name
        gx, ix, gw, out, inp = (store.resolve(a) for a in convolution_parts(call, store))
        x, weight = self._axes(call.args[0].name), self._axes(call.args[1].name)
        spatial = len(weight) - 2
        lead = len(x) - spatial - 1
        places = [f"s{i}" for i in range(spatial)]
        batch = [f"b{i}" for i in range(lead)]
        cells, kernel = self.of(call.args[0]), self.of(call.args[1])
        lead_shape, tail = cells.shape[:lead], cells.shape[lead + 1 :]
        channels = self.shape((gx, ix))
        x_axes = (*x[:lead], gx, ix, *x[lead + 1 :])
        x_term = Term(
            cells.reshape((*lead_shape, *channels, *tail)), [*batch, "g", "i", *places], x_axes, frozenset()
        )
        if is_transposed(call):
            w_axes, labels = (gw, inp, out, *weight[2:]), ["g", "i", "o"]
        else:
            w_axes, labels = (gw, out, inp, *weight[2:]), ["g", "o", "i"]
        shared = self.roles.shares(call.value(call.args[1]), 0 if is_transposed(call) else 1)
        w_term = Term(
            kernel.reshape(self.shape(w_axes)),
            [*labels, *(f"k{i}" for i in range(spatial))],
            w_axes,
            frozenset("i" if shared else ""),
        )
        cells = self.product([x_term, w_term], [*batch, "g", "o"], name)
        shape = self.shape(self._axes(name))
        cells = cells.reshape((*shape[: lead + 1], *(1,) * spatial))
        bias = call.arg("bias")
        if call.value(bias) is not None:
            laid = self.of(bias).reshape((-1, *(1,) * spatial))
            cells = self._equal_all([cells, laid], name, "a bias of another scale is added")
        return np.broadcast_to(cells, shape)


def solve_scales(
    anatomy: Anatomy,
    maps: Maps,
    roles: Roles,
    drift: Drift | None = None,
    buffer_scales: Mapping[str, float] | None = None,
) -> Equations:
    """Collect and solve the scale equations of a graph; conflicts are left in ``system.conflicts``."""
    return Equations(anatomy, maps, roles, drift or {}, buffer_scales or {}).collect()


__all__ = ["ZERO", "Drift", "Equations", "Form", "solve_scales"]
