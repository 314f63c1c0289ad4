"""New channels that may carry something: those that whatever reads them multiplies by zero.

Where all that makes a new channel is zero, and all that reads it as well, neither gets a gradient: each
one's is a multiple of the other. One side is enough to keep the function. So the weights of the other
are copies of the source's: the keys of new rotary pairs, which meet queries that are zero (Gesmundo and
Maile 2023 leave one side of each transform free; here it is never zero where it need not be).
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from torch import fx

from surgeon.axes.maps import NEW, Maps
from surgeon.axes.store import Axis
from surgeon.graph import signatures
from surgeon.graph.calls import Call
from surgeon.graph.inference import Anatomy
from surgeon.graph.kinds import reduced
from surgeon.graph.places import starred
from surgeon.planning.partial import NONE, Dims, measured_axes
from surgeon.planning.roles import Roles, Sum, summed_axes

LAID = {"identity", "reshape", "permute", "unsqueeze", "squeeze", "expand", "slice", "select", "split"}
"""Kinds that only lay channels out anew: what was zero is zero."""


def carrying(anatomy: Anatomy, maps: Maps, roles: Roles) -> frozenset[str]:
    """The placeholders of parameters whose new channels need not be zero. What is read last is taken first:
    of queries and keys that meet in new channels, the keys."""
    dims = frozenset(dim for dim, index in maps.dims.items() if (index == NEW).any())
    groups: dict[str, set[str]] = {}
    for placeholder, name in anatomy.captured.parameters.items():
        if placeholder in roles.uses and _made_along(anatomy, roles, placeholder, dims):
            groups.setdefault(starred(name), set()).add(placeholder)
    found = frozenset[str]()
    for group in reversed(groups.values()):
        made = NONE.union(*(_made_along(anatomy, roles, p, dims) for p in group))
        flow = _Flow(anatomy, roles, dims, found | group).follow()
        heard = all(any(flow.of(use.call.node) & made for use in roles.uses[p]) for p in group)
        if heard and not flow.read & made:
            found |= group
    return found


def _made_along(anatomy: Anatomy, roles: Roles, placeholder: str, dims: Dims) -> Dims:
    """The dims along which a parameter makes channels."""
    value = anatomy.values[placeholder][0]
    shared = roles.shared.get(placeholder, frozenset())
    axes = value.axes if value is not None else ()
    return _within(anatomy, (a for i, a in enumerate(axes) if i not in shared), dims)


def _within(anatomy: Anatomy, axes: Iterator[Axis] | tuple[Axis, ...], dims: Dims) -> Dims:
    return frozenset(leaf for axis in axes for leaf in anatomy.store.leaves(axis)) & dims


@dataclass
class _Flow:
    """One pass over a graph: along which dims each value may be other than zero at the new channels, if the
    parameters `filled` are; and `read`, the dims along which such channels would be read."""

    anatomy: Anatomy
    roles: Roles
    dims: Dims
    filled: Set[str]
    loud: dict[str, Dims] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)

    def follow(self) -> _Flow:
        captured = self.anatomy.captured
        for node in captured.nodes:
            values = self.anatomy.values.get(node.name)
            if not values or not any(values):
                continue
            axes = tuple(axis for value in values if value is not None for axis in value.axes)
            found = self._node(node) & _within(self.anatomy, axes, self.dims)
            if found:
                self.loud[node.name] = found
        for name in (*(node.name for node in captured.results), *captured.rewritten):
            self.read |= self.loud.get(name, NONE)
        return self

    def _node(self, node: fx.Node) -> Dims:
        captured, call = self.anatomy.captured, self.anatomy.calls.get(node.name)
        if node.op == "placeholder":
            if node.name not in captured.parameters:
                return self.dims
            made = _made_along(self.anatomy, self.roles, node.name, self.dims)
            return made if captured.tied_placeholder(node.name) in self.filled else NONE
        if node.name in self.anatomy.closed:
            return self.dims
        if call is None:  # one of several outputs
            return self.of(node.all_input_nodes[0])
        for axis in measured_axes(call, self.anatomy):
            for other, _ in call.tensors():
                self.read |= self.of(other) & _within(self.anatomy, (axis,), self.dims)
        if node.name in self.anatomy.refused:
            self.read |= self._any(call)
            return self.dims
        if call.rule.signature is not None:
            return self._signature(call)
        return self._kind(call, call.rule.kind.name if call.rule.kind else "")

    def of(self, node: fx.Node) -> Dims:
        return self.loud.get(node.name, NONE)

    def _any(self, call: Call) -> Dims:
        return NONE.union(*(self.of(node) for node, _ in call.tensors()))

    def _silent(self, factors: list[fx.Node]) -> Dims:
        """The dims along which a product is zero at the new channels, as one of its factors is."""
        silent = NONE
        for node in factors:
            value = self.anatomy.values[node.name][0]
            silent |= _within(self.anatomy, value.axes if value else (), self.dims) - self.of(node)
        return silent

    def _sums(self, call: Call) -> None:
        """A sum reads new channels unless one of those that are multiplied along it is zero there."""
        several: dict[str, list[Sum]] = {}
        for one in summed_axes(call):
            several.setdefault(one.label, []).append(one)
        for label in several.values():
            dims, silent = NONE, NONE
            for one in label:
                value = call.value(one.node)
                assert value is not None
                here = _within(self.anatomy, (value.axes[one.axis],), self.dims)
                dims |= here
                silent |= here if self.roles.shares(value, one.axis) else here - self.of(one.node)
            self.read |= dims - silent

    def _signature(self, call: Call) -> Dims:
        self._sums(call)
        matched = signatures.match(call)
        apart = {"bias", *(member for statement in call.rule.exact for member in statement.members)}
        factors = [m.node for m in matched if m.argument not in apart]
        added = NONE.union(*(self.of(m.node) for m in matched if m.argument == "bias"))
        if factors:
            return (self.dims - self._silent(factors)) | added
        return self.dims

    def _kind(self, call: Call, kind: str) -> Dims:
        if kind == "einsum":
            self._sums(call)
            return self.dims - self._silent(list(call.args[1]))
        if kind == "convolution":
            self._sums(call)
            bias = call.arg("bias")
            added = self.of(bias) if isinstance(bias, fx.Node) else NONE
            return (self.dims - self._silent([call.args[0], call.args[1]])) | added
        if kind == "reduce":
            axes = call.axes(call.args[0])
            over = _within(self.anatomy, tuple(axes[i] for i in reduced(call)), self.dims)
            self.read |= self.of(call.args[0]) & over
            return self.of(call.args[0])
        if kind == "pointwise":
            return self._pointwise(call)
        return self._any(call) if kind in LAID | {"repeat", "concatenate", "stack", "complex"} else self.dims

    def _pointwise(self, call: Call) -> Dims:
        if call.flag == "multiplicative":
            return self.dims - self._silent([node for node, _ in call.tensors()])
        if call.flag == "quotient" and isinstance(call.args[0], fx.Node):
            return self.dims - self._silent([call.args[0]])
        if call.flag == "additive" and not any(isinstance(a, (int, float)) and a for a in call.args[:2]):
            return self._any(call)
        return self._any(call) if call.flag == "homogeneous" else self.dims


__all__ = ["carrying"]
