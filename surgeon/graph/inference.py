"""Inference: the op rules applied to a captured graph, node by node, as a type checker would.

Every parameter axis starts as a fresh dim; each op's rule unifies axes; what stays equal is one dim.
An op without a rule pins whatever reaches it, so that a growth that would pass through it is refused
by name. The result is an :class:`Anatomy`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
import torch
from torch import fx

from surgeon.axes.store import AxisConflict, Pin, Store
from surgeon.graph import signatures
from surgeon.graph.calls import (
    Axes,
    Call,
    Origin,
    Value,
    bind,
    fresh_axes,
    pinned_axes,
    rule_for,
    rules_by_name,
)
from surgeon.graph.captured import Captured
from surgeon.graph.closed import frontier
from surgeon.graph.kinds import KINDS, permutation, squeezed
from surgeon.graph.places import place_of
from surgeon.graph.positions import indexed
from surgeon.language.syntax import OpRule

Values = dict[str, tuple[Value | None, ...]]


@dataclass(frozen=True)
class Anatomy:
    """A graph whose every tensor has typed axes. `values` is keyed by node name."""

    captured: Captured
    store: Store
    values: Mapping[str, tuple[Value | None, ...]] = field(repr=False)
    calls: Mapping[str, Call] = field(repr=False)
    refused: frozenset[str] = frozenset()  # nodes no rule could type: their axes are pinned
    closed: frozenset[str] = frozenset()  # nodes that are computed from numbers alone, as buffers are
    rules: Mapping[str, OpRule] = field(default_factory=dict, repr=False)  # by op name

    @cached_property
    def nodes(self) -> Mapping[str, fx.Node]:
        return {node.name: node for node in self.captured.graph.nodes}

    def parameter_axes(self, name: str) -> Axes:
        """The axes of a parameter or buffer, by its own name."""
        return self._axes_by_name[name]

    @cached_property
    def _axes_by_name(self) -> Mapping[str, Axes]:
        found = {}
        for table in (self.captured.parameters, self.captured.buffers):
            for placeholder, name in table.items():
                value = self.values[placeholder][0]
                assert value is not None
                found[name] = tuple(self.store.resolve(a) for a in value.axes)
        return found

    def tensors(self) -> Iterator[tuple[str, int, Axes]]:
        """Node name, output number and resolved axes of every tensor of the graph."""
        for name, outputs in self.values.items():
            for i, value in enumerate(outputs):
                if value is not None:
                    yield name, i, tuple(self.store.resolve(a) for a in value.axes)

    @cached_property
    def coupling(self) -> nx.Graph:
        """What tied which dims: dims as nodes, the op that tied them on the edges."""
        graph: nx.Graph[int] = nx.Graph()
        for a, b, node in self.store.ties:
            graph.add_edge(a, b, node=node)
        return graph

    def where(self, node: str) -> str:
        """A node's place in words; of a weight or buffer its name."""
        held = self.captured.parameters.get(node) or self.captured.buffers.get(node)
        return held or (str(place_of(self.nodes[node])) if node in self.nodes else node)

    def describe_pin(self, pin: Pin) -> str:
        return f"{pin.reason}: {self.where(pin.node)}" if pin.node else pin.reason


def infer(captured: Captured, rules: tuple[OpRule, ...], closed: frozenset[str] = frozenset()) -> Anatomy:
    """Apply `rules` to every node of a graph. Never fails: what cannot be typed is pinned. The `closed`
    nodes are typed as buffers are, where something else reads them, and not at all within."""
    store = Store()
    values: Values = {}
    calls: dict[str, Call] = {}
    refused: set[str] = set()
    tied: dict[str, Value] = {}
    table = rules_by_name(rules)
    outermost = {node.name for node in frontier(captured, closed)}
    for node in captured.graph.nodes:
        store.here = node.name
        shapes = captured.shapes[node.name]
        if node.op == "placeholder":
            values[node.name] = _placeholder(node, captured, store, shapes, tied)
        elif node.name in closed:
            (shape,) = shapes if node.name in outermost else (None,)
            axes = tuple(store.fresh(size) for size in shape) if shape is not None else None
            values[node.name] = (None,) * len(shapes) if axes is None else (Value(axes, made=True),)
        elif node.op == "call_function" and node.target is operator.getitem:
            values[node.name] = _getitem(node, values)
        elif node.op == "call_function":
            values[node.name] = _call(node, table, store, values, shapes, calls, refused)
    _name_dims(captured, store, values)
    return Anatomy(captured, store, values, calls, frozenset(refused), closed, table)


def _name_dims(captured: Captured, store: Store, values: Values) -> None:
    """Call each dim after an axis of a parameter, where one holds it: the op that it was first seen in may
    not be known to anyone."""
    axes = [
        (f"{name}[{i}]", axis)
        for placeholder, name in captured.parameters.items()
        for value in values[placeholder]
        if value is not None
        for i, axis in enumerate(value.axes)
    ]
    known = {label for label, _ in axes}
    for label, axis in axes:
        for dim in store.leaves(axis):
            if store.labels[dim] not in known:
                store.labels[dim] = label


def _placeholder(
    node: fx.Node,
    captured: Captured,
    store: Store,
    shapes: tuple[tuple[int, ...] | None, ...],
    tied: dict[str, Value],
) -> tuple[Value | None, ...]:
    (shape,) = shapes if len(shapes) == 1 else (None,)
    if shape is None:
        return (None,)
    name = captured.parameters.get(node.name) or captured.buffers.get(node.name)
    twin = captured.tied_placeholder(node.name)
    if twin in tied:  # another name of a tied parameter: the same axes
        return (tied[twin],)
    axes = fresh_axes(store, shape, name or node.name)
    if name is None:
        reason = "it is an axis of an input" if node.name in captured.inputs else "it is a constant"
        for axis in axes:
            store.pin(axis, "S301", reason)
        return (Value(axes, made=True),)
    if node.name in captured.parameters:
        origin = Origin(twin, tuple(frozenset([i]) for i in range(len(axes))))
        tied[twin] = Value(axes, origin=origin)
        return (tied[twin],)
    return (Value(axes),)


def _getitem(node: fx.Node, values: Values) -> tuple[Value | None, ...]:
    source, which = node.args
    assert isinstance(source, fx.Node) and isinstance(which, int)
    outputs = values.get(source.name, ())
    return (outputs[which] if which < len(outputs) else None,)


def _call(
    node: fx.Node,
    table: Mapping[str, OpRule],
    store: Store,
    values: Values,
    shapes: tuple[tuple[int, ...] | None, ...],
    calls: dict[str, Call],
    refused: set[str],
) -> tuple[Value | None, ...]:
    if all(shape is None for shape in shapes):
        return (None,) * len(shapes)  # sizes and assertions: no tensor comes out
    rule = rule_for(node, table)
    call = bind(node, rule or MISSING, values, shapes)
    calls[node.name] = call
    made = all(value.made for _, value in call.tensors())
    try:
        if rule is None:
            raise AxisConflict("", ())
        outputs = signatures.infer(call, store) if rule.signature else KINDS[_kind(rule)](call, store)
        _check(outputs, shapes, store)
    except AxisConflict as conflict:
        refused.add(node.name)
        outputs = _give_up(call, store, rule, made, conflict)
    origins = _origins(call, store) if rule is not None else None
    alike = rule is not None and node.name not in refused and _alike(call)
    return tuple(
        None if shape is None else Value(axes, made, origins[i] if origins else None, alike)
        for i, (axes, shape) in enumerate(zip(outputs, shapes, strict=True))
    )


MISSING = OpRule(names=(), tag=None, signature=None, kind=None)


def _kind(rule: OpRule) -> str:
    assert rule.kind is not None
    return rule.kind.name


def _alike(call: Call) -> bool:
    """Whether the same number comes out everywhere: where the op says so, or lays out what is alike."""
    kind = call.rule.kind.name if call.rule.kind else ""
    given = call.value(call.args[0]) if call.args else None
    return kind == "uniform" or (kind in LAYOUTS and given is not None and given.alike)


LAYOUTS = frozenset({"identity", "reshape", "permute", "unsqueeze", "squeeze", "expand", "select"})


def _check(outputs: list[Axes], shapes: tuple[tuple[int, ...] | None, ...], store: Store) -> None:
    """A rule that gives other shapes than the op has is wrong here: treat it as missing."""
    for axes, shape in zip(outputs, shapes, strict=False):
        if shape is not None and tuple(store.size(a) for a in axes) != shape:
            raise AxisConflict(
                f"the rule gives shape {tuple(store.size(a) for a in axes)} and the op {shape}",
                [d for a in axes for d in store.leaves(a)],
            )


def _give_up(call: Call, store: Store, rule: OpRule | None, made: bool, conflict: AxisConflict) -> list[Axes]:
    code, reason = ("S308", "an op without a rule reads it") if rule is None else ("S302", f"{conflict}")
    for _, value in call.tensors():
        for axis in value.axes:
            store.pin(axis, code, reason)
    if made:
        return pinned_axes(store, call, "S301", "it is made inside the graph")
    return pinned_axes(store, call, code, reason)


def _origins(call: Call, store: Store) -> list[Origin | None] | None:
    """Follow a parameter through ops that only lay it out anew, or multiply all of it by a number."""
    first = call.args[0] if call.args else None
    value = call.value(first)
    kind = call.rule.kind.name if call.rule.kind else ""
    if value is None or value.origin is None:
        return None
    axes = value.origin.axes
    if kind == "identity" or _times_number(call, kind):
        pass
    elif kind == "permute":
        axes = tuple(axes[i] for i in permutation(call))
    elif kind == "unsqueeze":
        at = call.axis_arg(call.arg("dim"), len(axes) + 1)
        axes = (*axes[:at], frozenset(), *axes[at:])
    elif kind == "squeeze":
        axes = tuple(axes[i] for i in squeezed(call, store))
    elif kind in ("slice", "split") and "unbind" not in str(call.node.target):
        return [value.origin] * len(call.shapes)
    elif kind in ("select", "split"):
        at = call.axis_arg(call.arg("dim", 0), len(axes))
        return [Origin(value.origin.parameter, axes[:at] + axes[at + 1 :])] * len(call.shapes)
    elif kind == "index":
        where, (shape,) = indexed(call), call.shapes
        if where is None or shape is None:
            return None
        chosen = len(shape) - len(axes) + len(where)
        axes = (*axes[: where[0]], *[frozenset[int]()] * chosen, *axes[where[-1] + 1 :])
    elif kind == "reshape":
        (shape,) = call.shapes
        assert shape is not None
        axes = _regrouped(axes, tuple(store.size(a) for a in value.axes), shape)
    else:
        return None
    return [Origin(value.origin.parameter, axes)]


def _times_number(call: Call, kind: str) -> bool:
    """Whether a call multiplies or divides its first argument by one number: it is linear in it."""
    return (
        kind == "pointwise"
        and call.flag in ("multiplicative", "quotient")
        and len(list(call.tensors())) == 1
        and call.arg("rounding_mode") is None
    )


def _regrouped(
    axes: tuple[frozenset[int], ...], before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[frozenset[int], ...]:
    """Which axes each axis of a view came from: those whose stretches of the flat index overlap."""

    def stretches(shape: tuple[int, ...]) -> list[tuple[int, int]]:
        out: list[tuple[int, int]] = []
        inner = 1
        for size in reversed(shape):
            out.insert(0, (inner, inner * size))
            inner *= size
        return out

    sources = list(zip(axes, stretches(before), strict=True))
    return tuple(
        frozenset().union(*(names for names, (a, b) in sources if a < high and b > low and a < b))
        for low, high in stretches(after)
    )


def is_float(node: fx.Node) -> bool:
    """Whether a node's value is one tensor of floating or complex numbers, which may have a scale."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def is_whole(node: fx.Node) -> bool:
    """Whether a node's value is one tensor of whole numbers or truth values."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.is_floating_point() and not value.is_complex()
