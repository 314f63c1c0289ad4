"""The built-in kinds: what an op without a fixed signature means for axes.

Each function takes a call and the store, unifies what the op ties, pins what it fixes, and returns
the axes of the outputs. The table at the end is keyed by the language's kind names.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch import fx

from surgeon.axes.store import UNIT, Axis, AxisConflict, Cat, Store, parts
from surgeon.graph.calls import Axes, Call, Outputs, broadcast, fresh_axes, pinned_axes
from surgeon.graph.einsums import einsum
from surgeon.graph.positions import along, index, pad, put, strided, unfold
from surgeon.graph.spatial import convolution, fold, group_norm, patches, window

MAX_POSITIONS = 64  # an axis read by position is taken apart up to this size, and pinned beyond


def pointwise(call: Call, store: Store) -> Outputs:
    return [broadcast(store, [value.axes for _, value in call.tensors()])]


def identity(call: Call, store: Store) -> Outputs:
    return [call.axes(call.args[0])]


def reshape(call: Call, store: Store) -> Outputs:
    (shape,) = call.shapes
    assert shape is not None
    axes, out = call.axes(call.args[0]), list[Axis]()
    for old, new in segments(tuple(store.size(a) for a in axes), shape):
        sizes = shape[new]
        try:
            out += store.regroup(tuple(factor for axis in axes[old] for factor in axis), sizes)
        except AxisConflict as conflict:
            out += _rearranged(call, store, axes[old], sizes, str(conflict))
    return [tuple(out)]


def _rearranged(call: Call, store: Store, axes: Axes, sizes: tuple[int, ...], reason: str) -> Axes:
    """Axes of whose positions others are made, in a way that no product tells: none of them may grow."""
    for axis in axes:
        store.pin(axis, "S302", reason)
    made = fresh_axes(store, sizes, call.node.name)
    for axis in made:
        store.pin(axis, "S302", reason)
    return made


def segments(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """The stretches of axes that a view turns into each other, as short as sizes allow. Where a size that
    only data tell is among them, the products may differ: then axes of one size at the end are the same."""
    found, i, j = list[tuple[slice, slice]](), 0, 0
    if before and after and before[-1] == after[-1] and prod(before) != prod(after):
        last = slice(len(before) - 1, len(before)), slice(len(after) - 1, len(after))
        return [*segments(before[:-1], after[:-1]), last]
    while i < len(before) or j < len(after):
        start, left, right = (i, j), 1, 1
        while (left != right or (i, j) == start) and (i < len(before) or j < len(after)):
            if j == len(after) or (i < len(before) and left <= right):
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        found.append((slice(start[0], i), slice(start[1], j)))
    return found


def permutation(call: Call) -> list[int]:
    """For each output axis the input axis it is."""
    rank = len(call.axes(call.args[0]))
    order = list(range(rank))
    if "dims" in call.names:
        return [call.axis_arg(d, rank) for d in call.arg("dims")]
    if "dim0" in call.names:
        a, b = call.axis_arg(call.arg("dim0"), rank), call.axis_arg(call.arg("dim1"), rank)
        order[a], order[b] = order[b], order[a]
        return order
    return order[::-1]  # t, numpy_T


def permute(call: Call, store: Store) -> Outputs:
    axes = call.axes(call.args[0])
    return [tuple(axes[i] for i in permutation(call))]


def unsqueeze(call: Call, store: Store) -> Outputs:
    axes = list(call.axes(call.args[0]))
    axes.insert(call.axis_arg(call.arg("dim"), len(axes) + 1), UNIT)
    return [tuple(axes)]


def squeezed(call: Call, store: Store) -> list[int]:
    """The input axes that a squeeze keeps."""
    axes = call.axes(call.args[0])
    given = call.arg("dim")
    if given is None:
        asked = list(range(len(axes)))
    else:
        asked = [
            call.axis_arg(d, len(axes)) for d in (given if isinstance(given, (list, tuple)) else [given])
        ]
    return [i for i, axis in enumerate(axes) if i not in asked or store.size(axis) != 1]


def squeeze(call: Call, store: Store) -> Outputs:
    axes = call.axes(call.args[0])
    return [tuple(axes[i] for i in squeezed(call, store))]


def expand(call: Call, store: Store) -> Outputs:
    (shape,) = call.shapes
    assert shape is not None
    axes = call.axes(call.args[0])
    axes = (UNIT,) * (len(shape) - len(axes)) + axes
    out = [
        store.fresh(size, f"{call.node.name}[{i}]") if size != 1 and store.size(axis) == 1 else axis
        for i, (axis, size) in enumerate(zip(axes, shape, strict=True))
    ]
    return [tuple(out)]


def slice_bounds(call: Call, size: int) -> tuple[int, int, int] | None:
    """Start, stop and step of a slice, or None when they are known only at run time."""
    start, stop, step = call.arg("start"), call.arg("end"), call.arg("step", 1)
    start = 0 if start is None else start
    stop = size if stop is None else stop
    if not all(isinstance(v, int) for v in (start, stop, step)):
        return None
    start, stop, step = slice(start, stop, step).indices(size)
    return start, stop, step


def slice_(call: Call, store: Store) -> Outputs:
    axes = list(call.axes(call.args[0]))
    (shape,) = call.shapes
    assert shape is not None
    dim = call.axis_arg(call.arg("dim", 0), len(axes))
    axis, size = axes[dim], store.size(axes[dim])
    bounds = slice_bounds(call, size)
    if bounds == (0, size, 1):
        return [tuple(axes)]
    if bounds is None or len(range(*bounds)) != shape[dim]:
        store.pin(axis, "S305", "it is sliced by a length known only when the model runs")
        axes[dim] = store.fresh(shape[dim], f"{call.node.name}[{dim}]")
        store.pin(axes[dim], "S305", "its length is known only when the model runs")
        return [tuple(axes)]
    start, stop, step = bounds
    if step == 1:
        try:
            axes[dim] = store.slice(axis, start, stop)
        except AxisConflict as conflict:
            (axes[dim],) = _rearranged(call, store, (axis,), (shape[dim],), str(conflict))
    elif size % step == 0 and shape[dim] == size // step:
        axes[dim], phase = store.regroup(axis, (size // step, step))
        store.units(phase)
    else:
        raise AxisConflict(f"a slice with step {step} does not divide {size}", store.leaves(axis))
    return [tuple(axes)]


def _take_apart(store: Store, axis: Axis) -> None:
    """Positions along `axis` are read one by one."""
    if store.size(axis) <= MAX_POSITIONS:
        store.units(axis)
    else:
        store.pin(axis, "S306", "it is read by position")


def select(call: Call, store: Store) -> Outputs:
    axes = list(call.axes(call.args[0]))
    axis = axes.pop(call.axis_arg(call.arg("dim", 0), len(axes)))
    given, at = call.value(call.args[0]), call.arg("index")
    if given is not None and given.alike:  # whichever position is read
        return [tuple(axes)]
    if not isinstance(at, int):
        _take_apart(store, axis)
        return [tuple(axes)]
    try:
        store.slice(axis, at % store.size(axis), at % store.size(axis) + 1)
    except AxisConflict as conflict:
        store.pin(axis, "S306", f"one of its positions is read: {conflict}")
    return [tuple(axes)]


def split_sizes(call: Call, store: Store) -> tuple[int, list[int]]:
    """The axis that a split cuts and the sizes of its pieces, read from the outputs."""
    axes = call.axes(call.args[0])
    dim = call.axis_arg(call.arg("dim", 0), len(axes))
    return dim, [shape[dim] for shape in call.shapes if shape is not None]


def split(call: Call, store: Store) -> Outputs:
    axes = call.axes(call.args[0])
    if "unbind" in str(call.node.target):
        dim = call.axis_arg(call.arg("dim", 0), len(axes))
        _take_apart(store, axes[dim])
        return [axes[:dim] + axes[dim + 1 :]] * len(call.shapes)
    dim, sizes = split_sizes(call, store)
    if any(isinstance(size, fx.Node) for size in call.arg("split_sizes") or ()):
        return _split_by_data(call, store, dim, sizes)
    if sum(sizes) != store.size(axes[dim]):
        raise AxisConflict("it is split by sizes known only when the model runs", store.leaves(axes[dim]))
    outputs, at = [], 0
    for size in sizes:
        outputs.append((*axes[:dim], store.slice(axes[dim], at, at + size), *axes[dim + 1 :]))
        at += size
    return outputs


def _split_by_data(call: Call, store: Store, dim: int, sizes: list[int]) -> Outputs:
    """Pieces whose lengths are known only at run time; the other axes go along."""
    axes = call.axes(call.args[0])
    pieces = [store.fresh(size, f"{call.node.name}[{dim}]") for size in sizes]
    for axis in (axes[dim], *pieces):
        store.pin(axis, "S305", "it is split by sizes known only when the model runs")
    store.apart[(Cat(tuple(pieces)),)] = axes[dim]
    return [(*axes[:dim], piece, *axes[dim + 1 :]) for piece in pieces]


def _zip_others(call: Call, store: Store, several: list[Axes], skip: int) -> list[Axis]:
    """The axes of tensors that are joined along another. Where two of them are products of other factors, of
    one size, these may not grow; the rest goes along."""
    merged = list(several[0])
    for axes in several[1:]:
        for i, axis in enumerate(axes):
            if i == skip:
                continue
            try:
                merged[i] = store.unify(merged[i], axis)
            except AxisConflict as conflict:
                pair = merged[i], axis
                if len({store.size(a) for a in pair}) > 1 or any(parts(store, a) > 1 for a in pair):
                    raise
                (merged[i],) = _rearranged(call, store, pair, (store.size(axis),), str(conflict))
    return merged


def joined(call: Call, store: Store) -> list[Axes]:
    """The tensors of a concatenation; empty ones, whatever their rank, add nothing."""
    several = [call.axes(t) for t in call.args[0]]
    return [axes for axes in several if all(store.size(axis) for axis in axes)]


def concatenate(call: Call, store: Store) -> Outputs:
    several = joined(call, store)
    if not several:
        raise AxisConflict("nothing is joined", ())
    dim = call.axis_arg(call.arg("dim", 0), len(several[0]))
    out = _zip_others(call, store, several, dim)
    laid = (Cat(tuple(axes[dim] for axes in several)),)
    out[dim] = store.resolve(store.apart.get(laid, laid))
    return [tuple(out)]


def stack(call: Call, store: Store) -> Outputs:
    several = [call.axes(t) for t in call.args[0]]
    out = _zip_others(call, store, several, -1)
    dim = call.axis_arg(call.arg("dim", 0), len(out) + 1)
    out.insert(dim, (Cat((UNIT,) * len(several)),) if len(several) > 1 else UNIT)
    return [tuple(out)]


def reduced(call: Call) -> list[int]:
    """The axes that a reduction runs over."""
    rank = len(call.axes(call.args[0]))
    given = call.arg("dim")
    if given is None or given == []:
        return list(range(rank))
    return sorted(call.axis_arg(d, rank) for d in (given if isinstance(given, (list, tuple)) else [given]))


def reduce(call: Call, store: Store) -> Outputs:
    axes, gone = call.axes(call.args[0]), reduced(call)
    for i in gone:
        if len(call.shapes) > 1:  # values with their positions
            store.pin(axes[i], "S306", "it is read by position")
        if call.flag == "soft":
            store.pin(axes[i], "S303", "a softmax runs over it")
    if call.arg("keepdim", False):
        kept = tuple(UNIT if i in gone else axis for i, axis in enumerate(axes))
    else:
        kept = tuple(axis for i, axis in enumerate(axes) if i not in gone)
    return [kept] * len(call.shapes)


def softmax(call: Call, store: Store) -> Outputs:
    axes = call.axes(call.args[0])
    store.pin(axes[call.axis_arg(call.arg("dim"), len(axes))], "S303", "a softmax runs over it")
    return [axes]


def repeat(call: Call, store: Store) -> Outputs:
    """Every channel several times over: the times are an axis of their own, inside (``interleave``) or
    outside the repeated one."""
    (shape,) = call.shapes
    assert shape is not None
    axes = call.axes(call.args[0])
    inside = "interleave" in str(call.node.target)
    if inside and call.arg("dim") is None:
        axes = (tuple(factor for axis in axes for factor in axis),)
    axes = (UNIT,) * (len(shape) - len(axes)) + axes
    out = []
    for i, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        old = store.size(axis)
        if old != size and (not old or size % old):
            raise AxisConflict("an axis is repeated by a number known only when the model runs", ())
        times = store.fresh(size // old if old else 1, f"{call.node.name}[{i}]")
        out.append(store.resolve((*axis, *times) if inside else (*times, *axis)))
    return [tuple(out)]


def complex_(call: Call, store: Store) -> Outputs:
    """Pairs of real numbers along the last axis joined to complex ones, or those parted again."""
    axes = call.axes(call.args[0])
    if call.flag == "joined":
        store.units(axes[-1])
        return [axes[:-1]]
    pair = store.fresh(2, f"{call.node.name}[{len(axes)}]")
    store.units(pair)
    return [(*axes, store.resolve(pair))]


def uniform(call: Call, store: Store) -> Outputs:
    """The same number everywhere: any map of its axes is right. Shaped like another tensor, it has
    that one's axes."""
    if call.args and call.value(call.args[0]) is not None and "size" not in call.names:
        return [call.axes(call.args[0])]
    return [fresh_axes(store, shape or (), call.node.name) for shape in call.shapes]


def made(call: Call, store: Store) -> Outputs:
    for _, value in call.tensors():
        for axis in value.axes:
            store.pin(axis, "S301", "something is made from it inside the graph")
    return pinned_axes(store, call, "S301", "it is made inside the graph")


def ignore(call: Call, store: Store) -> Outputs:
    return [() for _ in call.shapes]


KINDS: dict[str, Callable[[Call, Store], Outputs]] = {
    "pointwise": pointwise,
    "identity": identity,
    "reshape": reshape,
    "permute": permute,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "expand": expand,
    "slice": slice_,
    "select": select,
    "split": split,
    "concatenate": concatenate,
    "stack": stack,
    "reduce": reduce,
    "softmax": softmax,
    "einsum": einsum,
    "convolution": convolution,
    "window": window,
    "group_norm": group_norm,
    "index": index,
    "put": put,
    "unfold": unfold,
    "patches": patches,
    "fold": fold,
    "strided": strided,
    "repeat": repeat,
    "along": along,
    "pad": pad,
    "complex": complex_,
    "uniform": uniform,
    "made": made,
    "ignore": ignore,
}
