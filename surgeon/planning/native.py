"""The grown model of a transformers class: the same class, a larger config, checked node by node.

The config's fields are raised, the class is built and traced on meta, and its graph, which must be
isomorphic to the source's, gives every dim its target size. Numbers and buffers that differ between
the two graphs (an embedding normaliser, an attention scale, rotary frequencies) are read off: they
enter the scale equations, fix a channel map, or stop the plan.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, fx

from surgeon.axes.maps import Index, Maps, clone_map
from surgeon.axes.store import Axis
from surgeon.errors import PlanError, fail
from surgeon.graph.captured import Captured
from surgeon.graph.closed import closed_nodes, computes, frontier
from surgeon.graph.inference import Anatomy
from surgeon.graph.places import place_of
from surgeon.graph.signatures import factors
from surgeon.graph.spatial import reach
from surgeon.planning.cells import Drift
from surgeon.planning.growth import Size
from surgeon.planning.known import known_maps, known_scales, known_values, settled_maps
from surgeon.planning.literals import group_axes, grown_args
from surgeon.planning.partial import measured_dims

Found = tuple[int, int, str]
"""A dim, the size it has in the grown class, and the node that tells."""


@dataclass(frozen=True)
class NativeGrowth:
    """How the grown class differs from the source: maps of the dims, drifted numbers and buffers."""

    maps: Maps
    drift: Drift
    scales: Mapping[str, float | None] = field(default_factory=dict)  # of buffers and closed nodes, by node
    known: Mapping[str, Tensor] = field(default_factory=dict, repr=False)  # closed nodes, as grown
    twins: Mapping[str, str] = field(default_factory=dict, repr=False)  # source node -> grown node
    placed: Mapping[int, str] = field(default_factory=dict)  # dims that a known value's places map, and what
    partial: Mapping[str, frozenset[int]] = field(default_factory=dict)  # of known values, by node
    words: Mapping[str, str] = field(default_factory=dict, repr=False)  # the partial ones in words


def compare(
    anatomy: Anatomy,
    grown: Captured,
    source_buffers: Mapping[str, Tensor],
    grown_buffers: Mapping[str, Tensor],
) -> NativeGrowth:
    """Lay the grown class's graph against the source's.

    Raises PlanError S320 (another graph), S321 (sizes that no growth of dims explains), S322 (a
    number that drifted where no scale can follow), S323 (a buffer or a value made of numbers that did).
    """
    closed = closed_nodes(grown) if anatomy.closed else frozenset()
    twins = _pair(anatomy, grown, closed)
    targets = _targets(anatomy, grown, twins)
    _refuse_shrinking(anatomy, targets)
    dims: dict[int, Index] = {
        dim: clone_map(anatomy.store.sizes[dim], target)
        for dim, target in targets.items()
        if target != anatomy.store.sizes[dim]
    }
    known = known_values(anatomy, grown, twins, source_buffers, grown_buffers)
    placed = known_maps(anatomy, dims, known)
    maps = settled_maps(anatomy, dims, placed, measured_dims(anatomy) if placed else frozenset())
    _check_shapes(anatomy, grown, twins, maps)
    drift = _drift(anatomy, grown, twins, maps)
    made = {name: value.grown for name, value in known.items() if name in anatomy.closed}
    whose = {dim: place.what for dim, place in placed.items()}
    scales, partial = known_scales(anatomy, maps, known)
    words = {name: known[name].what for name in partial}
    return NativeGrowth(maps, drift, scales, made, twins, whose, partial, words)


def _pair(anatomy: Anatomy, grown: Captured, closed: frozenset[str]) -> dict[str, str]:
    """Source node to grown node; of closed nodes only those that others read, by whatever op."""
    source_nodes = _outer(anatomy.captured, anatomy.closed)
    grown_nodes = _outer(grown, closed)
    for a, b in zip(source_nodes, grown_nodes, strict=False):
        same_name = a.op != "placeholder" or _known(anatomy.captured, a) == _known(grown, b)
        made = a.name in anatomy.closed, b.name in closed
        other = a.op == "call_function" and a.target is not b.target and not all(made)
        if a.op != b.op or other or not same_name or made[0] != made[1]:
            raise fail(
                PlanError,
                "S320",
                "the class with the grown config computes something else",
                notes=(
                    f"the source has {_known(anatomy.captured, a) or place_of(a)}",
                    f"the grown class has {_known(grown, b) or place_of(b)}",
                ),
                help="grow other dims, or keep the ratio that the class decides by",
            )
    if len(source_nodes) != len(grown_nodes):
        raise fail(PlanError, "S320", "the class with the grown config computes something else")
    return {a.name: b.name for a, b in zip(source_nodes, grown_nodes, strict=True)}


def _outer(captured: Captured, closed: frozenset[str]) -> list[fx.Node]:
    outermost = {node.name for node in frontier(captured, closed)}
    return [n for n in captured.nodes if computes(n) and (n.name not in closed or n.name in outermost)]


def _known(captured: Captured, node: fx.Node) -> str:
    return captured.parameters.get(node.name) or captured.buffers.get(node.name) or ""


def _targets(anatomy: Anatomy, grown: Captured, twins: Mapping[str, str]) -> dict[int, int]:
    """The grown size of every dim, read off axes that are that dim alone, then by division."""
    targets: dict[int, int] = {}
    told: dict[int, str] = {}
    products: list[tuple[tuple[Any, ...], int, str]] = []
    for name, output, axes in anatomy.tensors():
        shape = grown.shapes[twins[name]][output]
        if shape is None or len(shape) != len(axes):
            raise fail(PlanError, "S320", "the class with the grown config computes something else")
        for axis, size in zip(axes, shape, strict=True):
            if len(axis) == 1 and isinstance(axis[0], int):
                _settle(anatomy, targets, told, (axis[0], size, name))
            elif axis:
                products.append((axis, size, name))
    for axis, size, name in _stated(anatomy, grown, twins):
        if len(axis) == 1 and isinstance(axis[0], int):
            _settle(anatomy, targets, told, (axis[0], size, name))
        elif axis:
            products.append((axis, size, name))
    for _ in range(3):
        for axis, size, name in products:
            leaves = list(anatomy.store.leaves(axis))
            unknown = [d for d in dict.fromkeys(leaves) if d not in targets]
            if len(unknown) == 1 and leaves.count(unknown[0]) == 1 and all(isinstance(f, int) for f in axis):
                known = 1
                for dim in leaves:
                    known *= targets.get(dim, 1)
                if size % known == 0:
                    _settle(anatomy, targets, told, (unknown[0], size // known, name))
    return targets


def _stated(anatomy: Anatomy, grown: Captured, twins: Mapping[str, str]) -> Iterator[tuple[Axis, int, str]]:
    """The sizes that numbers of the grown graph state: axis, size and the node that tells."""
    grown_nodes = {node.name: node for node in grown.nodes}
    for name, call in anatomy.calls.items():
        if name in anatomy.refused or name in anatomy.closed:
            continue
        for argument, axis in group_axes(call, anatomy.store).items():
            twin, position = grown_nodes[twins[name]], call.names.index(argument)
            size = twin.args[position] if position < len(twin.args) else twin.kwargs.get(argument)
            if isinstance(size, int):
                yield anatomy.store.resolve(axis), size, name


def _settle(anatomy: Anatomy, targets: dict[int, int], told: dict[int, str], found: Found) -> None:
    """Note the size of a dim that a node of the grown class tells; `told` is who told of each first."""
    dim, size, node = found
    if targets.setdefault(dim, size) != size:
        label = anatomy.store.labels[dim]
        raise fail(
            PlanError,
            "S321",
            f"{label} (size {anatomy.store.sizes[dim]}) would grow to {targets[dim]} and to {size}",
            notes=(
                f"to {targets[dim]} in {anatomy.where(told[dim])}",
                f"to {size} in {anatomy.where(node)}",
            ),
            help="both are one dim in the source: grow both in one ratio, or neither",
        )
    told.setdefault(dim, node)


def _refuse_shrinking(anatomy: Anatomy, targets: Mapping[int, int]) -> None:
    """A class may keep a product and divide it anew: heads that double halve what each of them has."""
    store = anatomy.store
    for dim, target in targets.items():
        if target >= store.sizes[dim]:
            continue
        notes: list[str] = []
        for name in anatomy.captured.parameters.values():
            for i, axis in enumerate(anatomy.parameter_axes(name)):
                leaves = list(store.leaves(axis))
                if not notes and dim in leaves and any(targets.get(d, 0) > store.sizes[d] for d in leaves):
                    before, after = (
                        store.show(axis, {d: str(table.get(d, store.sizes[d])) for d in leaves})
                        for table in ({}, targets)
                    )
                    notes.append(f"{name}[{i}] is {before} in the source and {after} in the grown class")
        raise fail(
            PlanError,
            "S316",
            f"{store.labels[dim]} has a dim of {store.sizes[dim]} that would shrink to {target}",
            notes=tuple(notes),
            help="the class divides one size by another: grow the size that is divided along",
        )


def _check_shapes(anatomy: Anatomy, grown: Captured, twins: Mapping[str, str], maps: Maps) -> None:
    for name, output, axes in anatomy.tensors():
        shape = grown.shapes[twins[name]][output]
        planned = tuple(maps.target_size(axis) for axis in axes)
        if shape != planned:
            raise fail(
                PlanError,
                "S321",
                f"the grown class has a tensor of shape {shape} where the plan has {planned}",
                notes=(anatomy.where(name),),
                help="an axis of size one cannot grow, and tied dims must grow together",
            )


def _drift(anatomy: Anatomy, grown: Captured, twins: Mapping[str, str], maps: Maps) -> Drift:
    """Numbers of the graph that differ from what the plan expects. Sizes must agree exactly."""
    grown_nodes = {node.name: node for node in grown.graph.nodes}
    drift: dict[tuple[str, int], tuple[float, float]] = {}
    for node in anatomy.captured.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if node.name in anatomy.closed or all(v is None for v in anatomy.values.get(node.name, (None,))):
            continue
        twin = grown_nodes[twins[node.name]]
        args, kwargs = grown_args(node, anatomy, maps)
        call = anatomy.calls[node.name]
        for i, (a, b) in enumerate(zip(args, twin.args, strict=True)):
            name = call.names[i] if i < len(call.names) else ""
            a, b = reach(call, name, a), reach(call, name, b)
            _match(a, b, i, node, call.names, anatomy, twins, drift)
        for key, value in kwargs.items():
            position = call.names.index(key) if key in call.names else -1
            _match(value, twin.kwargs.get(key), position, node, call.names, anatomy, twins, drift)
    return drift


def _match(
    a: Any,
    b: Any,
    position: int,
    node: fx.Node,
    names: tuple[str, ...],
    anatomy: Anatomy,
    twins: Mapping[str, str],
    drift: dict[tuple[str, int], tuple[float, float]],
) -> None:
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        if twins[a.name] == b.name:
            return
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            _match(x, y, -1, node, names, anatomy, twins, drift)
        return
    elif a == b or (isinstance(a, float) and isinstance(b, float) and np.isclose(a, b, rtol=1e-12, atol=0)):
        return
    elif (
        _may_drift(node, position, names, anatomy)
        and isinstance(a, (int, float))
        and isinstance(b, (int, float))
        and a * b > 0
    ):
        drift[node.name, position] = float(a), float(b)
        return
    what = names[position] if 0 <= position < len(names) else "a number"
    raise fail(
        PlanError,
        "S322",
        f"the grown class has {what} = {b} where the source has {a}, and no scale can make up for it",
        notes=(anatomy.where(node.name),),
    )


def _may_drift(node: fx.Node, position: int, names: tuple[str, ...], anatomy: Anatomy) -> bool:
    rule = anatomy.calls[node.name].rule
    if rule.kind is not None:
        return rule.kind.flag in ("multiplicative", "quotient") and position in (0, 1)
    if rule.signature is None or not 0 <= position < len(rule.signature.args):
        return False
    members = {m for statement in rule.exact for m in statement.members}
    return rule.signature.args[position].name in members or position in factors(rule)


# ── fields that carry a dim ──────────────────────────────────────────────────────────────


def companions(
    changes: Mapping[str, Size],
    fields: Mapping[str, int],
    pure_dims: Callable[[str], frozenset[int]],
    refused_apart: Callable[[str, str], bool],
) -> dict[str, int]:
    """Fields that carry the same dim as a changed one, and what they become.

    Only fields of the same value can (a dim has one size). `pure_dims` probes a field: the dims of
    the parameter axes that move with it and are one dim alone. `refused_apart` tells whether the class
    takes two fields together alone.
    """
    extra: dict[str, int] = {}
    for name, target in changes.items():
        if not isinstance(target, int):
            continue
        rivals = [f for f, v in fields.items() if v == fields.get(name) and f not in changes and f != name]
        if not rivals:
            continue
        own = pure_dims(name)
        for rival in rivals:
            if own & pure_dims(rival) if own else refused_apart(name, rival):
                extra[rival] = target
    return extra
