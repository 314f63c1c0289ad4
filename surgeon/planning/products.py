"""Scales of products: contractions, attention, norms, convolutions. One rule for all: the scales of the
factors add up (in logs), and a sum over a grown axis counts its copies, unless a parameter shares itself
out over them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx

from surgeon.axes.store import Axis
from surgeon.graph import signatures
from surgeon.graph.calls import Axes, Call
from surgeon.graph.einsums import einsum_names
from surgeon.graph.spatial import convolution_parts, is_transposed
from surgeon.planning.cells import Cellwise
from surgeon.planning.scales import Cells, Conflict, as_cells, zeros


@dataclass(frozen=True)
class Term:
    """A factor of a product: its cells with one label per axis, and what each axis is."""

    cells: Cells
    labels: list[str]
    axes: Axes
    shared: frozenset[str]  # the labels along which it is a shared-out parameter


class Products(Cellwise):
    """The equations of ops that multiply tensors."""

    def _term(self, node: fx.Node, labels: list[str], call: Call) -> Term:
        value = call.value(node)
        shared = frozenset(label for i, label in enumerate(labels) if self.roles.shares(value, i))
        return Term(self.of(node), labels, self.axes_of(node.name), shared)

    def product(self, terms: list[Term], kept: list[str], name: str) -> Cells:
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
                found = [t.axes[t.labels.index(label)] for t in terms if label in t.labels]
                axis = max(found, key=self.anatomy.store.size, default=())  # one of size one is broadcast
                shape = [1] * len(order)
                counts = self.log_counts(axis, name)
                shape[position] = len(counts)
                total = total + counts.reshape(shape)
            first = np.take(total, [0], axis=position)
            self.equal_all([first, total], name, "pieces of different scale are summed")
            total = first
        total = as_cells(total)
        return total.reshape(total.shape[: len(kept)])

    def _signature(self, call: Call) -> list[Cells | None]:
        rule, name = call.rule, call.node.name
        assert rule.signature is not None
        terms: dict[str, Term] = {}
        axes_by_name: dict[str, Axis] = {}
        matched = signatures.match(call)
        sizes = signatures.known_sizes(matched, self.anatomy.store)
        for tensor in matched:
            found = signatures.factored(tensor.names, tensor.axes, sizes, self.anatomy.store)
            labels = self._labels([f.name for f in found], tensor.argument)
            for part in found:
                if axes_by_name.get(part.name, ()) == ():  # one of size one is broadcast
                    axes_by_name[part.name] = part.axis
            axes = tuple(self.anatomy.store.resolve(f.axis) for f in found)
            value = call.value(tensor.node)
            shared = frozenset(
                la for la, f in zip(labels, found, strict=True) if self.roles.shares(value, f.place)
            )
            cells = self.of(tensor.node).reshape(self.shape(axes))
            terms[tensor.argument] = Term(cells, labels, axes, shared)
        apart: set[str] = {"bias"}
        for statement in rule.exact:
            apart.update(statement.members)
            self._exact_product(call, statement.members, terms, axes_by_name)
        for role in rule.roles:
            if role.word == "norm":
                for axis_name in role.axes:
                    self._uniform_over(self._normalized(call) or axes_by_name[axis_name], name)
        multiplied = [term for argument, term in terms.items() if argument not in apart]
        factor = sum(self.drifted(call, i) for i in signatures.factors(rule))
        summed = signatures.summed(call)
        outputs: list[Cells | None] = []
        for number, (pattern, value) in enumerate(
            zip(rule.signature.outputs, self.anatomy.values[name], strict=False)
        ):
            if value is None:
                outputs.append(None)
                continue
            axes = self.axes_of(name, number)
            if "_" in pattern.names:  # an output that nothing reads
                outputs.append(zeros(self.shape(axes)))
                continue
            laid_out = signatures.factored(
                signatures.lay(pattern, len(axes)), axes, sizes, self.anatomy.store
            )
            shape = self.shape(tuple(f.axis for f in laid_out))
            kept = self._labels([f.name for f in laid_out], None)
            # An output that lacks an axis which another has does not depend on what multiplies that one.
            here = [
                t for t in multiplied if all(la in kept or la in summed or la[0] in "_." for la in t.labels)
            ]
            cells = np.broadcast_to(as_cells(self.product(here, kept, name) + factor), shape)
            bias = terms.get("bias")
            if bias is not None and set(bias.labels) <= set(kept):
                labels = [label for label in kept if label in bias.labels]
                laid = self.product([bias], labels, name)
                spread = laid.reshape([laid.shape[labels.index(k)] if k in labels else 1 for k in kept])
                cells = self.equal_all([cells, spread], name, "a bias of another scale is added")
            outputs.append(cells.reshape(self.shape(axes)))
        return outputs + [None] * (len(self.anatomy.values[name]) - len(outputs))

    def _labels(self, names: list[str], argument: str | None) -> list[str]:
        """Names as labels: what ``...`` stands for is counted from the right, and in an `argument` an axis
        without a name is one by itself."""
        labels, back = list[str](), names.count("")
        for i, name in enumerate(names):
            if name in ("_", "1") and argument is not None:
                name = f"_{argument}{i}"
            elif not name:
                name, back = f"...{back}", back - 1
            labels.append(name)
        return labels

    def _normalized(self, call: Call) -> Axis:
        """All that `normalized_shape` says statistics run over, where an op has it."""
        given = call.arg("normalized_shape")
        if not isinstance(given, (list, tuple)):
            return ()
        axes = self.axes_of(call.args[0].name)
        return tuple(factor for axis in axes[len(axes) - len(given) :] for factor in axis)

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
                dims = tuple(self.anatomy.store.leaves(axis))
                self.system.conflicts.append(Conflict(name, reason, math.exp(ratio - count), dims))
                return

    def _einsum(self, call: Call) -> Cells:
        operands, result = einsum_names(call)
        terms = [self._term(t, names, call) for names, t in zip(operands, call.args[1], strict=True)]
        return np.broadcast_to(
            self.product(terms, result, call.node.name), self.shape(self.axes_of(call.node.name))
        )

    def _convolution(self, call: Call) -> Cells:
        store, name = self.anatomy.store, call.node.name
        gx, ix, gw, out, inp = (store.resolve(a) for a in convolution_parts(call, store))
        x, weight = self.axes_of(call.args[0].name), self.axes_of(call.args[1].name)
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
        shape = self.shape(self.axes_of(name))
        cells = cells.reshape((*shape[: lead + 1], *(1,) * spatial))
        bias = call.arg("bias")
        if call.value(bias) is not None:
            laid = self.of(bias).reshape((-1, *(1,) * spatial))
            cells = self.equal_all([cells, laid], name, "a bias of another scale is added")
        return np.broadcast_to(cells, shape)
