"""Kinds of ops that work on pictures and signals: convolutions, norms of groups, windows, patches.

Spatial extents are pinned; channels, and their groups, go along.
"""

from __future__ import annotations

import re
from typing import Any

from surgeon.axes.store import UNIT, Axis, AxisConflict, Store
from surgeon.graph.calls import Call, Outputs, fresh_axes


def convolution_parts(call: Call, store: Store) -> tuple[Axis, Axis, Axis, Axis, Axis]:
    """The channel axes of a convolution, groups drawn out: input groups and channels within, weight
    groups and outputs within, and the weight's input channels. Raises AxisConflict where the groups are
    counted as the graph runs (one for each example, say)."""
    x, weight = call.axes(call.args[0]), call.axes(call.args[1])
    groups = call.arg("groups", 1)
    if not isinstance(groups, int):
        raise AxisConflict("its number of groups is known only when the model runs", ())
    transposed = is_transposed(call)
    produced, consumed = (weight[1], weight[0]) if transposed else (weight[0], weight[1])
    channels = x[-(len(weight) - 1)]
    if groups == 1:
        return UNIT, channels, UNIT, produced, consumed
    gx, ix = store.regroup(channels, (groups, store.size(channels) // groups))
    if transposed:
        gw, consumed = store.regroup(consumed, (groups, store.size(consumed) // groups))
    else:
        gw, produced = store.regroup(produced, (groups, store.size(produced) // groups))
    return gx, ix, gw, produced, consumed


def is_transposed(call: Call) -> bool:
    return bool(call.arg("transposed", False)) or "transpose" in str(call.node.target)


def convolution(call: Call, store: Store) -> Outputs:
    (shape,) = call.shapes
    assert shape is not None
    x, weight = call.axes(call.args[0]), call.axes(call.args[1])
    gx, ix, gw, out, inp = convolution_parts(call, store)
    groups = store.unify(gx, gw)
    store.unify(ix, inp)
    channels = store.resolve((*groups, *out))
    if call.value(call.arg("bias")) is not None:
        store.unify(call.axes(call.arg("bias"))[0], channels)
    spatial = len(weight) - 2
    for axis in (*x[len(x) - spatial :], *weight[2:]):
        store.pin(axis, "S304", "it is a spatial extent of a convolution")
    tail = fresh_axes(store, shape[len(shape) - spatial :], call.node.name)
    for axis in tail:
        store.pin(axis, "S304", "it is a spatial extent of a convolution")
    return [(*x[: len(x) - spatial - 1], store.resolve(channels), *tail)]


def normalised_groups(call: Call, store: Store) -> tuple[Axis, Axis]:
    """The groups of a group norm, and the channels within each."""
    channels, groups = call.axes(call.args[0])[1], int(call.arg("num_groups"))
    first, within = store.regroup(channels, (groups, store.size(channels) // groups))
    return first, within


def group_norm(call: Call, store: Store) -> Outputs:
    axes = call.axes(call.args[0])
    groups, within = normalised_groups(call, store)
    channels = store.resolve((*groups, *within))
    for name in ("weight", "bias"):
        if call.value(call.arg(name)) is not None:
            channels = store.unify(channels, call.axes(call.arg(name))[0])
    return [(axes[0], store.resolve(channels), *axes[2:])]


def pooled(call: Call) -> list[int]:
    """The axes that a pooling reaches along: of the last ones, as many as the op's name says
    (``max_pool2d``), those with windows of more than one position."""
    rank = len(call.axes(call.args[0]))
    digits = re.findall(r"(\d)d", str(call.node.target))
    spatial = int(digits[0]) if digits else 1
    return [rank - spatial + i for i in range(spatial) if not _each_by_itself(call, i, spatial)]


def _each_by_itself(call: Call, i: int, spatial: int) -> bool:
    kernel, stride, padding = (call.arg(name) for name in ("kernel_size", "stride", "padding"))

    def at(given: Any) -> Any:
        several = given if isinstance(given, (list, tuple)) else [given]
        return several[i] if len(several) == spatial else several[0] if several else None

    return at(kernel) == 1 and at(stride) in (1, None) and at(padding) in (0, None)


def window(call: Call, store: Store) -> Outputs:
    """Pooling, resizing or padding of the last axes; those with windows of one position go along, in all
    tensors alike."""
    axes, reached = call.axes(call.args[0]), pooled(call)
    for _, value in list(call.tensors())[1:]:
        for i, axis in enumerate(value.axes):
            if i in reached:
                store.pin(axis, "S304", "it is a spatial extent that the op works along")
            else:
                store.unify(axes[i], axis)
    outputs = []
    for shape in call.shapes:
        assert shape is not None
        out = list(axes)
        for i in reached:
            out[i] = store.fresh(shape[i], f"{call.node.name}[{i}]")
            for axis in (axes[i], out[i]):
                store.pin(axis, "S304", "it is a spatial extent that the op works along")
        outputs.append(tuple(out))
    return outputs


def reach(call: Call, name: str, given: Any) -> Any:
    """A number of an op's arguments, as far as it reaches: where a pooling cuts its windows off at the
    edge, one past the whole axis is one of the axis, and so is the step to the next."""
    cut = bool(call.arg("ceil_mode", False)) and call.arg("divisor_override") is None
    if not cut or name not in ("kernel_size", "stride") or any(call.arg("padding", ())):
        return given
    kernel, several = call.arg("kernel_size"), isinstance(given, (list, tuple))
    sizes = call.args[0].meta["val"].shape[-len(kernel) :]
    if any(k < size for k, size in zip(kernel, sizes, strict=True)) or call.arg("dilation", 1) not in (
        1,
        [1],
    ):
        return given
    return [min(n, int(size)) for n, size in zip(given, sizes, strict=True)] if several else given


def patches(call: Call, store: Store) -> Outputs:
    """Patches of a picture, laid beside each other, each with its positions within the channels."""
    axes, (shape,) = call.axes(call.args[0]), call.shapes
    assert shape is not None
    channels = axes[-3]
    within = store.fresh(shape[-2] // store.size(channels), f"{call.node.name}[{len(shape) - 2}]")
    beside = store.fresh(shape[-1], f"{call.node.name}[{len(shape) - 1}]")
    for axis in (*axes[-2:], within, beside):
        store.pin(axis, "S304", "it is a spatial extent of a sliding window")
    return [(*axes[:-3], store.resolve((*channels, *within)), beside)]


def fold(call: Call, store: Store) -> Outputs:
    """Patches put back where they lay in a picture, summed where they overlap."""
    axes, (shape,) = call.axes(call.args[0]), call.shapes
    assert shape is not None
    channels, within = store.regroup(axes[-2], (shape[-3], store.size(axes[-2]) // shape[-3]))
    laid = fresh_axes(store, shape[-2:], call.node.name)
    for axis in (within, axes[-1], *laid):
        store.pin(axis, "S304", "it is a spatial extent of a sliding window")
    return [(*axes[:-2], store.resolve(channels), *laid)]
