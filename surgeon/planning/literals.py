"""The numbers inside a graph that are sizes: what each becomes when the dims grow.

``view(x, [b, s, 6, 4])`` of a model whose heads double reads ``view(x, [b, s, 12, 4])``. Used to write
the grown graph of a plain module, and to check a grown transformers class against the plan.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import fx

from surgeon.axes.maps import Maps
from surgeon.axes.store import Axis, Store
from surgeon.errors import PlanError, fail
from surgeon.graph.calls import Axes, Call
from surgeon.graph.inference import Anatomy
from surgeon.graph.kinds import slice_bounds, split_sizes
from surgeon.graph.places import place_of
from surgeon.graph.positions import dense, steps_of
from surgeon.graph.spatial import convolution_parts, normalised_groups

SHAPE_NAMES = ("size", "shape", "self_size")


def grown_args(node: fx.Node, anatomy: Anatomy, maps: Maps) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `node` with every size literal as the plan wants it."""
    args, kwargs = list(node.args), dict(node.kwargs)
    call = anatomy.calls.get(node.name)
    if call is None or node.name in anatomy.refused:
        return tuple(args), kwargs
    for name, value in _changed(call, anatomy, maps).items():
        position = call.names.index(name)
        if position < len(args):
            args[position] = value
        elif name in kwargs:
            kwargs[name] = value
    return tuple(args), kwargs


def _changed(call: Call, anatomy: Anatomy, maps: Maps) -> dict[str, Any]:
    kind = call.rule.kind.name if call.rule.kind else ""
    changed: dict[str, Any] = {}
    if kind in ("reshape", "expand", "uniform"):
        outputs = anatomy.values[call.node.name]
        for name in SHAPE_NAMES:
            given = call.arg(name)
            if isinstance(given, (list, tuple)) and outputs[0] is not None:
                changed[name] = _sizes(given, outputs[0].axes, maps, call)
        parts = call.arg("sizes")  # of unflatten: those of the axes that one axis becomes
        if isinstance(parts, (list, tuple)) and outputs[0] is not None:
            at = call.axis_arg(call.arg("dim"), len(call.axes(call.args[0])))
            changed["sizes"] = _sizes(parts, outputs[0].axes[at : at + len(parts)], maps, call)
    elif kind == "repeat":
        changed.update(_repeat(call, anatomy, maps))
    elif kind == "strided":
        changed.update(_strided(call, anatomy, maps))
    elif kind == "slice":
        changed.update(_slice(call, maps))
    elif kind == "select":
        changed.update(_select(call, maps))
    elif kind == "split" and "unbind" not in str(call.node.target):
        changed.update(_split(call, anatomy, maps))
    changed.update({name: maps.target_size(axis) for name, axis in group_axes(call, anatomy.store).items()})
    normalized = call.arg("normalized_shape")
    if isinstance(normalized, (list, tuple)):
        axes = call.axes(call.args[0])[-len(normalized) :]
        changed["normalized_shape"] = _sizes(normalized, axes, maps, call)
    return changed


def group_axes(call: Call, store: Store) -> dict[str, Axis]:
    """The axes whose sizes a call states by the name of an argument, and by no axis of a tensor."""
    kind = call.rule.kind.name if call.rule.kind else ""
    if kind == "group_norm":
        return {"num_groups": normalised_groups(call, store)[0]}
    if kind == "convolution" and call.arg("groups", 1) != 1:
        return {"groups": convolution_parts(call, store)[0]}
    return {}


def _sizes(given: Any, axes: Axes, maps: Maps, call: Call) -> list[Any]:
    """Sizes as given where they are -1 or do not grow; grown where they are numbers. One that is reckoned
    from the inputs' sizes as the graph runs is what the others leave over; a -1 beside it becomes a number.

    Raises PlanError S325 where that does not tell it.
    """
    grown: list[Any] = []
    reckoned = False
    for size, axis in zip(given, axes, strict=True):
        reckoned |= maps.grows(axis) and isinstance(size, fx.Node)
        new = maps.target_size(axis) if isinstance(size, int) else -1
        grown.append(new if size != -1 and maps.grows(axis) else size)
    if not reckoned:
        return grown
    if call.rule.kind is None or call.rule.kind.name != "reshape":
        raise _reckoned(call)
    made = call.node.meta["val"].shape
    if grown.count(-1) > 1 and len(made) == len(grown):
        grown = [
            maps.target_size(axis) if size == -1 and isinstance(known, int) else new
            for size, axis, known, new in zip(given, axes, made, grown, strict=True)
        ]
    if grown.count(-1) > 1:
        raise _reckoned(call)
    return grown


def _reckoned(call: Call) -> PlanError:
    return fail(
        PlanError,
        "S325",
        "a size that is reckoned from the inputs' sizes would have to grow",
        notes=(str(place_of(call.node)),),
        help="write the size of the dim that grows as an axis of its own, or as -1",
    )


def _repeat(call: Call, anatomy: Anatomy, maps: Maps) -> dict[str, Any]:
    """How often each axis is repeated: the grown sizes, divided; an empty axis as often as it was."""
    (out,) = anatomy.values[call.node.name]
    assert out is not None
    axes = call.axes(call.args[0])
    axes = ((),) * (len(out.axes) - len(axes)) + axes
    dim = call.arg("dim")
    if isinstance(call.arg("repeats"), int) and dim is None:  # all axes in one row
        axes = (tuple(factor for axis in call.axes(call.args[0]) for factor in axis),)
    sizes = [(maps.target_size(a), maps.target_size(b)) for a, b in zip(axes, out.axes, strict=True)]
    times = [after // before if before else None for before, after in sizes]
    name = "repeats" if "repeats" in call.names else "dims"
    if isinstance(call.arg(name), fx.Node):  # counted as the graph runs
        return {}
    if isinstance(call.arg("repeats"), int):
        at = call.axis_arg(dim, len(axes)) if dim is not None else 0
        size = {"output_size": maps.target_size(out.axes[at])} if call.arg("output_size") else {}
        return {name: call.arg("repeats") if times[at] is None else times[at]} | size
    given = call.arg(name)  # of tile, those of the last axes
    last = times[len(times) - len(given) :]
    pairs = zip(given, last, strict=True)
    return {name: [n if isinstance(n, fx.Node) or t is None else t for n, t in pairs]}


def _strided(call: Call, anatomy: Anatomy, maps: Maps) -> dict[str, Any]:
    """The sizes and strides of ``as_strided``, in memory whose axes lie in the same order."""
    (out,) = anatomy.values[call.node.name]
    assert out is not None
    read, given, axes = steps_of(call), call.args[0].meta["val"], call.axes(call.args[0])
    order = dense(given)
    assert order is not None
    steps, inner = [int(step) for step in given.stride()], 1
    for i in reversed(order):
        if given.shape[i] != 1:
            steps[i], inner = inner, inner * maps.target_size(axes[i])
    last = len(axes) - read.back
    row = [i for i in range(read.front, last) if given.shape[i] != 1]
    between = [step * (steps[row[-1]] if row else 1) for step in read.steps]
    strides = [*steps[: read.front], *between, *steps[last:]]
    return {"size": _sizes(call.arg("size"), out.axes, maps, call), "stride": strides}


def _worked(call: Call) -> Axis:
    """The axis of the first argument that the op takes something of."""
    axes = call.axes(call.args[0])
    return axes[call.axis_arg(call.arg("dim", 0), len(axes))]


def _select(call: Call, maps: Maps) -> dict[str, Any]:
    axis, at, given = _worked(call), call.arg("index"), call.value(call.args[0])
    if given is not None and given.alike:
        return {}
    return {"index": _bound(at, axis, maps)} if isinstance(at, int) and maps.grows(axis) else {}


def _slice(call: Call, maps: Maps) -> dict[str, Any]:
    axis = _worked(call)
    if not maps.grows(axis):
        return {}
    if call.arg("step", 1) != 1:  # it starts in the first stride and runs to the end
        bounds = slice_bounds(call, maps.store.size(axis))
        assert bounds is not None
        whole = call.arg("end") in (None, sys.maxsize)
        return {"start": bounds[0]} | ({} if whole else {"end": maps.target_size(axis)})
    return {
        name: _bound(given, axis, maps)
        for name in ("start", "end")
        if isinstance(given := call.arg(name), int) and given not in (0, sys.maxsize)
    }


def _bound(given: int, axis: Axis, maps: Maps) -> int:
    """A slice's bound in the grown axis; a bound from the end stays one."""
    size = maps.store.size(axis)
    place = min(max(given + size if given < 0 else given, 0), size)
    before = maps.target_size(maps.store.slice(axis, 0, place)) if place else 0
    return before - maps.target_size(axis) if given < 0 else before


def _split(call: Call, anatomy: Anatomy, maps: Maps) -> dict[str, Any]:
    dim, _ = split_sizes(call, anatomy.store)
    if not maps.grows(call.axes(call.args[0])[dim]):
        return {}
    outputs = anatomy.values[call.node.name]
    grown = [maps.target_size(v.axes[dim]) for v in outputs if v is not None]
    name = next(name for name in ("split_sizes", "split_size", "chunks") if name in call.names)
    if not isinstance(call.arg(name), (list, tuple)):  # of an axis that holds one of the inputs' sizes
        raise _reckoned(call)
    return {name: grown}
