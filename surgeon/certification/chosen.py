"""Calls whose arguments are chosen by hand: those that no signature or schema tells."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Spec = tuple[int, ...] | Tensor
Case = tuple[Callable[..., Any], tuple[Spec, ...]]

aten = torch.ops.aten


def _calls(op: Any, *choices: tuple[tuple[int, ...], tuple[Any, ...]]) -> list[Case]:
    """One tensor of a shape, then the arguments as they are."""
    return [(lambda x, op=op, args=args: op(x, *args), (shape,)) for shape, args in choices]


def _softmax(op: Any) -> Iterable[Case]:
    for dim in (-1, 1):
        last = (False,) if str(op).split(".")[1] in ("_softmax", "_log_softmax") else ()
        yield from _calls(op, ((2, 3, 4), (dim, *last)))


def _reduce(op: Any) -> Iterable[Case]:
    """Reductions over one axis or several, kept or not, as far as the overload takes them."""
    shape = (2, 3, 4)
    for args in ((), (1,), (-1, True), ([0, 2],), ([1], True), ([0, 1, 2],)):
        yield from _calls(op, (shape, args))
    yield (lambda x: op(x > 0, 1), (shape,))


def _window(op: Any) -> Iterable[Case]:
    name = str(op)
    spatial = int(re.findall(r"(\d)d", name)[0])
    shape = (2, 3, *(6, 4, 5)[:spatial])
    if "upsample" in name:
        aligned = () if "nearest" in name else (False,)
        op = getattr(aten, name.split(".")[1]).default
        yield from _calls(op, (shape, ([7] * spatial, *aligned)), (shape, ([3] * spatial, *aligned)))
        return
    if "_pad" in name:
        yield from _calls(op, (shape, ([1, 2] * spatial,)), (shape[1:], ([0, 1] * spatial,)))
        return
    adaptive = "adaptive" in name
    for size in (2, 1) if adaptive else (2, 3):
        yield from _calls(op, (shape, ([size] * spatial,)), (shape[1:], ([size] * spatial,)))


def _attention(*shapes: tuple[int, ...], masked: bool = False, **options: Any) -> Case:
    """Queries, keys, values and, where it is `masked`, a mask."""
    op = aten.scaled_dot_product_attention.default
    if masked:
        return lambda q, k, v, mask: op(q, k, v, mask, **options), shapes
    return lambda q, k, v: op(q, k, v, **options), shapes


def _convolution(transposed: bool, spatial: int) -> list[Case]:
    """Plain, grouped and depthwise, with and without a bias."""
    names = ("conv_transpose{}d", "conv{}d")
    packet = getattr(aten, names[0 if transposed else 1].format(spatial))
    op = packet.input if transposed and spatial > 1 else packet.default
    cases: list[Case] = []
    choices = [(1, True), (2, True), (1, False), (6, False)]
    for groups, bias in choices if spatial == 2 else choices[:2]:
        channels, out = 6, 4 if groups < 6 else 6
        weight = (channels, out // groups) if transposed else (out, channels // groups)
        shapes: tuple[Spec, ...] = ((2, channels, *(5,) * spatial), (*weight, *(2,) * spatial))
        middle = ([1] * spatial, [0] * spatial, *([[0] * spatial] if transposed else []))
        after = (groups,) if transposed else ([1] * spatial, groups)

        def function(
            x: Tensor, w: Tensor, b: Tensor | None = None, middle: Any = middle, after: Any = after
        ) -> Any:
            return op(x, w, b, *middle, *after)

        cases.append((function, (*shapes, (out,)) if bias else shapes))
    return cases


def _general_convolution() -> list[Case]:
    cases: list[Case] = []
    for transposed, groups in itertools.product((False, True), (1, 2)):
        weight = (6, 4 // groups) if transposed else (4, 6 // groups)

        def function(x: Tensor, w: Tensor, b: Tensor, t: bool = transposed, g: int = groups) -> Any:
            return aten.convolution.default(x, w, b, [1, 1], [1, 1], [1, 1], t, [0, 0], g)

        cases.append((function, ((2, 6, 5, 4), (*weight, 3, 3), (4,))))
    return cases


def _einsum(equation: str, *shapes: Spec) -> Case:
    return lambda *tensors: aten.einsum.default(equation, list(tensors)), shapes


def _bags(name: str) -> list[Case]:
    """Sums, means and extremes of rows, in bags of uneven sizes; sums of weighted rows."""
    op, starts = getattr(aten, name).default, torch.tensor([0, 1, 4])
    plain: list[Case] = [
        (lambda w, i, how=how: op(w, i, starts, False, how)[0], ((5, 3), BAGGED)) for how in (0, 1, 2)
    ]
    return [*plain, (lambda w, i, each: op(w, i, starts, False, 0, False, each)[0], ((5, 3), BAGGED, (6,)))]


def _of_pairs(name: str) -> list[Case]:
    """An op of complex numbers, given and read as pairs of real ones."""
    op = getattr(aten, name).default

    def function(pairs: Tensor) -> Tensor:
        made = op(aten.view_as_complex.default(pairs))
        return aten.view_as_real.default(aten.resolve_conj.default(made)) if made.is_complex() else made

    return [(function, (PAIRS,))]


COMPLEX = ("imag", "_conj", "_conj_physical", "conj_physical", "resolve_conj", "resolve_neg", "angle")


def _places(count: int, *shape: int) -> Tensor:
    """Where in a plane of `count` places each value goes, in each channel others, none of them twice."""
    generator = torch.Generator().manual_seed(5)
    planes = [torch.randperm(count, generator=generator) for _ in range(shape[0] * shape[1])]
    return torch.stack(planes)[:, : math.prod(shape[2:])].reshape(shape)


PAIRS = (3, 4, 5, 2)
BAGGED = torch.tensor([4, 0, 2, 2, 1, 3])
IDS = torch.tensor([[0, 2, 1], [1, 1, 0]])
TABLE: dict[str, list[Case]] = {
    "aten.einsum": [
        _einsum("bi,oi->bo", (2, 3), (4, 3)),
        _einsum("bhse,bhte->bhst", (2, 3, 4, 5), (2, 3, 6, 5)),
        _einsum("...i,ij->...j", (2, 5, 3), (3, 4)),
        _einsum("i,j->ij", (3,), (4,)),
        _einsum("bi,ij,bj->b", (2, 3), (3, 4), (2, 4)),
        _einsum("ii->i", (3, 3)),
        _einsum("bi,bi", (2, 3), (2, 3)),
        _einsum("bij->b", (2, 3, 4)),
    ],
    **{f"aten.conv{n}d": _convolution(False, n) for n in (1, 2, 3)},
    **{f"aten.conv_transpose{n}d": _convolution(True, n) for n in (1, 2, 3)},
    "aten.convolution": _general_convolution(),
    "aten.view": _calls(
        aten.view.default, ((4, 6), (4, 2, 3)), ((4, 6), ([4, 2, 3],)), ((2, 3, 5), ([6, 5],))
    )
    + _calls(aten.view.default, ((2, 3, 5), ([2, -1],)), ((2, 6, 4), ([2, 3, 2, 4],)), ((2, 6), ([12],))),
    "aten.reshape": _calls(
        aten.reshape.default, ((4, 6), ([4, 2, 3],)), ((2, 3, 5), ([-1, 5],)), ((4, 6), ([6, 4],))
    ),
    "aten.flatten": _calls(aten.flatten.using_ints, ((2, 3, 5), ()), ((2, 3, 5), (1,)), ((2, 3, 5), (0, 1))),
    "aten.unflatten": _calls(aten.unflatten.int, ((4, 6), (1, [2, 3])), ((6, 5), (0, [-1, 2]))),
    "aten.transpose": _calls(aten.transpose.int, ((2, 3, 4), (0, 1)), ((2, 3, 4), (-1, 0))),
    "aten.t": _calls(aten.t.default, ((3, 4), ())),
    "aten.numpy_T": _calls(aten.numpy_T.default, ((2, 3, 4), ())),
    "aten.permute": _calls(aten.permute.default, ((2, 3, 4), ([2, 0, 1],)), ((2, 3, 4), ([0, -1, 1],))),
    "aten.unsqueeze": _calls(aten.unsqueeze.default, ((3, 4), (0,)), ((3, 4), (-1,)), ((3, 4), (1,))),
    "aten.squeeze": _calls(aten.squeeze.default, ((3, 1, 4), ()))
    + _calls(aten.squeeze.dim, ((3, 1, 4), (1,)), ((3, 1, 4), (0,)))
    + _calls(aten.squeeze.dims, ((1, 3, 1), ([0, 2],))),
    "aten.expand": _calls(
        aten.expand.default, ((3, 1), ([3, 4],)), ((3, 4), ([2, -1, -1],)), ((3, 4), ([2, 3, 4],))
    ),
    "aten.slice": _calls(
        aten.slice.Tensor,
        ((6, 5), (0, 0, 2)),
        ((6, 5), (1, 1, 4)),
        ((6, 5), (0, -3)),
        ((6, 5), (0, 0, 100)),
        ((6, 5), (0, 0, 6, 2)),
        ((6, 5), (0, 1, 6, 3)),
        ((6, 5), (-1, None, -1)),
    ),
    "aten.select": _calls(aten.select.int, ((4, 5), (0, 1)), ((4, 5), (-1, -2))),
    "aten.split": _calls(aten.split.Tensor, ((6, 4), (2,)), ((6, 4), (3, 1)))
    + _calls(aten.split.sizes, ((6, 4), ([1, 2, 3],))),
    "aten.split_with_sizes": _calls(
        aten.split_with_sizes.default, ((6, 4), ([1, 5],)), ((6, 4), ([1, 1, 2], 1))
    ),
    "aten.chunk": _calls(aten.chunk.default, ((6, 4), (2,)), ((6, 5), (3, 1))),
    "aten.unbind": _calls(aten.unbind.int, ((3, 4), ()), ((3, 4), (-1,))),
    "aten.cat": [
        (lambda x, y: aten.cat.default([x, y]), ((3, 4), (2, 4))),
        (lambda x, y: aten.cat.default([x, y, x], -1), ((3, 4), (3, 2))),
        (lambda x: aten.cat.default([x, x], 1), ((3, 4),)),
    ],
    "aten.scaled_dot_product_attention": [
        _attention((3, 2, 4), (3, 5, 4), (3, 5, 6)),
        _attention((7, 3, 2, 4), (7, 3, 5, 4), (7, 3, 5, 6), (7, 3, 2, 5), masked=True),
        _attention((7, 3, 2, 4), (7, 1, 5, 4), (7, 1, 5, 6), (1, 2, 5), masked=True),  # broadcast
        _attention((7, 6, 2, 4), (7, 3, 5, 4), (7, 3, 5, 8), enable_gqa=True),
        _attention((7, 6, 2, 4), (7, 3, 5, 4), (7, 3, 5, 8), (7, 6, 2, 5), masked=True, enable_gqa=True),
        _attention((7, 6, 5, 4), (7, 3, 5, 4), (7, 3, 5, 8), is_causal=True, scale=0.3, enable_gqa=True),
        _attention((7, 3, 2, 4), (7, 1, 5, 4), (7, 1, 5, 6), enable_gqa=True),
    ],
    "aten.stack": [
        (lambda x, y: aten.stack.default([x, y]), ((3, 4), (3, 4))),
        (lambda x, y: aten.stack.default([x, y], -1), ((3, 4), (3, 4))),
    ],
    "aten.index": [
        (lambda x, i: aten.index.Tensor(x, [i]), ((3, 4), IDS)),
        (lambda x, i: aten.index.Tensor(x, [None, i]), ((5, 3, 4), IDS)),
        (lambda x, i, j: aten.index.Tensor(x, [i, j]), ((3, 4, 2), IDS, IDS)),
        (lambda x, i, j: aten.index.Tensor(x, [i, None, j]), ((3, 4, 3), IDS, IDS)),
        (lambda x: aten.index.Tensor(x, [IDS > 0]), ((2, 3, 4),)),
    ],
    "aten.index_put": [
        (lambda x, y: aten.index_put.default(x, [IDS], y), ((3, 4), (2, 3, 4))),
        (lambda x, y: aten.index_put.default(x, [None, IDS], y, True), ((5, 3, 4), (4,))),
        (lambda x, y: aten.index_put.default(x, [IDS > 0], y), ((2, 3, 4), (3, 4))),
        (lambda x, y: aten.index_put.default(x, [IDS, None, IDS], y), ((3, 4, 3), (2, 3, 4))),
    ],
    "aten.index_add": [(lambda x, y: aten.index_add.default(x, 0, IDS[0], y), ((4, 3), (3, 3)))],
    "aten.index_copy": [(lambda x, y: aten.index_copy.default(x, -1, IDS[0], y), ((2, 4), (2, 3)))],
    **{f"aten.{name}": _bags(name) for name in ("_embedding_bag", "_embedding_bag_forward_only")},
    **{f"aten.{name}": _of_pairs(name) for name in COMPLEX},
    "aten.complex": [(lambda x, y: aten.view_as_real.default(aten.complex.default(x, y)), ((3, 4), (3, 4)))],
    "aten._fft_r2c": [
        (
            lambda x, dims=dims: aten.view_as_real.default(aten._fft_r2c.default(x, dims, 0, True)),
            ((3, 4, 6),),
        )
        for dims in ([1], [-1], [0, 2])
    ],
    "aten._fft_c2c": [
        (lambda x: aten._fft_c2c.default(aten.view_as_complex.default(x), [1], 1, True).real, (PAIRS,))
    ],
    "aten._fft_c2r": [
        (lambda x, n=n: aten._fft_c2r.default(aten.view_as_complex.default(x), [1], 2, n), (PAIRS,))
        for n in (6, 7)
    ],
    "aten.unfold": _calls(aten.unfold.default, ((2, 6), (1, 3, 1)), ((6, 2, 3), (0, 2, 2))),
    "aten.im2col": _calls(
        aten.im2col.default,
        ((2, 3, 5, 4), ([3, 1], [1, 1], [1, 0], [1, 1])),
        ((2, 4, 5, 4), ([2, 2], [1, 1], [0, 0], [2, 1])),
    ),
    "aten.grid_sampler": [
        (lambda x, g: aten.grid_sampler.default(x, g, 0, 0, False), ((2, 3, 5, 4), (2, 6, 7, 2))),
        (lambda x, g: aten.grid_sampler.default(x, g, 0, 1, True), ((2, 3, 5, 4), (2, 6, 7, 2))),
    ],
    "aten.grid_sampler_2d": [
        (lambda x, g: aten.grid_sampler_2d.default(x, g, 0, 0, False), ((2, 3, 5, 4), (2, 6, 7, 2)))
    ],
    "aten.grid_sampler_3d": [
        (
            lambda x, g: aten.grid_sampler_3d.default(x, g, 0, 1, False),
            ((2, 3, 4, 5, 6), (2, 3, 2, 4, 3)),
        )
    ],
    "aten.max_unpool2d": [
        (lambda x, i: aten.max_unpool2d.default(x, i, [4, 6]), ((2, 3, 2, 3), _places(24, 2, 3, 2, 3)))
    ],
    "aten.max_unpool3d": [
        (
            lambda x, i: aten.max_unpool3d.default(x, i, [2, 4, 2], [2, 2, 2], [0, 0, 0]),
            ((2, 3, 1, 2, 1), _places(16, 2, 3, 1, 2, 1)),
        )
    ],
    "aten.linalg_cross": [
        (lambda x, y: aten.linalg_cross.default(x, y), ((2, 4, 3), (2, 4, 3))),
        (lambda x, y: aten.linalg_cross.default(x, y, dim=1), ((2, 3, 4), (1, 3, 4))),
    ],
    "aten.bucketize.Tensor": [
        (lambda x: aten.bucketize.Tensor(x, torch.tensor([-1.0, 0.0, 0.7])), ((3, 4),)),
    ],
    "aten.acosh": [(lambda x: aten.acosh.default(1.5 + x.abs()), ((3, 4),))],
    "aten.fill.Scalar": _calls(aten.fill.Scalar, ((3, 4), (0.5,))),
    "aten.col2im": _calls(
        aten.col2im.default,
        ((2, 9, 20), ([5, 4], [3, 1], [1, 1], [1, 0], [1, 1])),
        ((2, 16, 6), ([5, 4], [2, 2], [1, 1], [0, 0], [2, 1])),
    ),
    # Copies are dropped from graphs, but before what is read by strides.
    "aten.clone": [(lambda x: aten.as_strided.default(aten.clone.default(x), [3, 4], [4, 1]), ((3, 4),))],
    "aten.contiguous": [
        (lambda x: aten.as_strided.default(aten.contiguous.default(x), [3, 4], [4, 1]), ((3, 4),))
    ],
    "aten.as_strided": _calls(
        aten.as_strided.default,
        ((3, 6, 4), ([3, 3, 4, 4], [24, 8, 4, 1])),
        ((3, 2, 4, 2), ([3, 3, 4, 2], [16, 4, 2, 1])),
    ),
    "aten.index_select": [
        (lambda x, i: aten.index_select.default(x, 0, i), ((3, 4), IDS[0])),
        (lambda x, i: aten.index_select.default(x, -1, i), ((4, 3), IDS[0])),
    ],
    "aten.repeat": _calls(aten.repeat.default, ((3, 4), ([1, 2],)), ((3, 4), ([2, 3, 1],))),
    "aten.tile": _calls(aten.tile.default, ((3, 4), ([2],)), ((3, 4), ([2, 2],))),
    "aten.repeat_interleave.self_int": _calls(
        aten.repeat_interleave.self_int, ((3, 4), (2, 0)), ((3, 4), (2, -1)), ((3, 4), (3,))
    ),
    "aten.gather": [
        (lambda x, i: aten.gather.default(x, 0, i), ((4, 6), IDS)),  # of some columns
        (lambda x, i: aten.gather.default(x, 0, i), ((4, 3), IDS)),
        (lambda x, i: aten.gather.default(x, -1, i), ((2, 5), IDS)),
    ],
    "aten.scatter": [
        (lambda x, i: aten.scatter.value(x, 1, i, 2.0), ((2, 5), IDS)),
        (lambda x, i: aten.scatter.value(x, 1, i, 0), ((2, 5), IDS)),
        (lambda x, i, y: aten.scatter.src(x, 1, i, y), ((2, 5), torch.tensor([[0, 4], [3, 1]]), (2, 2))),
    ],
    "aten.scatter_add": [(lambda x, i, y: aten.scatter_add.default(x, 1, i, y), ((2, 5), IDS, (2, 3)))],
    "aten.scatter_reduce": [
        (
            lambda x, i, y, how=how, own=own: aten.scatter_reduce.two(x, 1, i, y, how, include_self=own),
            ((2, 5), IDS, (2, 3)),
        )
        for how in ("sum", "prod", "mean", "amax", "amin")
        for own in (True, False)
    ]
    + [(lambda x, i, y: aten.scatter_reduce.two(x, 0, i, y, "sum"), ((4, 6), IDS, (2, 3)))],  # some columns
    "aten.select_scatter": [(lambda x, y: aten.select_scatter.default(x, y, 1, 2), ((3, 4), (3,)))],
    "aten.flip": _calls(aten.flip.default, ((3, 4), ([0],)), ((3, 4, 2), ([1, -1],))),
    "aten.roll": _calls(aten.roll.default, ((3, 4), ([1], [0])), ((3, 4, 2), ([1, -1], [1, -1]))),
    "aten.group_norm": [
        (lambda x, w, b: aten.group_norm.default(x, 2, w, b), ((2, 6, 3), (6,), (6,))),
        (lambda x, w, b: aten.group_norm.default(x, 1, w, b), ((2, 4, 3, 2), (4,), (4,))),
        (lambda x: aten.group_norm.default(x, 3), ((2, 6, 4),)),
    ],
    "aten.cumsum": _calls(aten.cumsum.default, ((3, 4), (0,)), ((2, 3, 4), (-1,))),
    "aten.cumprod": _calls(aten.cumprod.default, ((3, 4), (0,)), ((2, 3, 4), (-1,))),
    "aten.logcumsumexp": _calls(aten.logcumsumexp.default, ((3, 4), (0,)), ((2, 3, 4), (-1,))),
    "aten.topk": _calls(aten.topk.default, ((3, 4), (2,)), ((3, 4), (2, 0)), ((3, 4), (4,))),
    "aten.sort": _calls(aten.sort.default, ((3, 4), ()), ((3, 4), (0, True))),
    "aten.argsort": _calls(aten.argsort.default, ((3, 4), ()), ((3, 4), (0, True))),
    "aten.pad": _calls(aten.pad.default, ((3, 4), ([1, 0],)), ((3, 4, 2), ([0, 0, 2, 1],)))
    + _calls(aten.pad.default, ((3, 4), ([1, 1], "constant", 2.0))),
    "aten.constant_pad_nd": _calls(
        aten.constant_pad_nd.default, ((3, 4), ([0, 1],)), ((3, 4), ([1, 1], 2.0))
    ),
    "aten.linalg_vector_norm": _calls(
        aten.linalg_vector_norm.default,
        ((3, 4), (2, [1])),
        ((3, 4, 2), (2, [-1], True)),
        ((3, 4), (2, [0, 1])),
    ),
    "aten.norm": _calls(aten.norm.ScalarOpt_dim, ((3, 4), (2, [1])), ((3, 4, 2), (2, [-1], True))),
    "aten.var": [
        *_calls(aten.var.dim, ((3, 4), ([1],)), ((3, 4, 2), ([-1, 0], False, True))),
        (lambda x: aten.var.correction(x, [1], correction=2), ((3, 4),)),
    ],
    "aten.std": [
        *_calls(aten.std.dim, ((3, 4), ([1],)), ((3, 4, 2), ([-1], False, True))),
        (lambda x: aten.std.correction(x), ((3, 4),)),
    ],
    "aten.logsumexp": _calls(aten.logsumexp.default, ((3, 4), ([1],)), ((3, 4, 2), ([-1], True))),
    "aten.view_as_complex": [
        (lambda x: aten.abs.default(aten.view_as_complex.default(x)), ((3, 4, 2),)),
    ],
    "aten.view_as_real": [
        (lambda x: aten.view_as_real.default(aten.view_as_complex.default(x)), ((3, 4, 2),)),
    ],
    "aten.polar": [(lambda x, y: aten.view_as_real.default(aten.polar.default(x, y)), ((3, 4), (3, 4)))],
    "aten.concat": [(lambda x, y: aten.concat.default([x, y], -1), ((3, 4), (3, 2)))],
    "aten.concatenate": [(lambda x, y: aten.concatenate.default([x, y], -1), ((3, 4), (3, 2)))],
    "aten.copy": [(lambda x, y: aten.copy.default(x, y), ((3, 4), (4,)))],
    "aten.max.other": [(lambda x, y: aten.max.other(x, y), ((3, 4), (4,)))],
    "aten.min.other": [(lambda x, y: aten.min.other(x, y), ((3, 4), (4,)))],
    "aten.new_empty": _calls(aten.new_empty.default, ((3, 4), ([2, 4],))),
    "aten.empty": [(lambda: aten.empty.memory_format([3, 4]), ())],
    "aten.empty_like": _calls(aten.empty_like.default, ((3, 4), ())),
    "aten.max.default": _calls(aten.max.default, ((2, 3, 4), ())),
    "aten.min.default": _calls(aten.min.default, ((2, 3, 4), ())),
    "aten.max": _calls(aten.max.dim, ((2, 3, 4), (1,)), ((2, 3, 4), (-1, True))),
    "aten.min": _calls(aten.min.dim, ((2, 3, 4), (1,)), ((2, 3, 4), (-1, True))),
    "aten.to": _calls(aten.to.dtype, ((3, 4), (torch.float64,))),
    "aten._to_copy": [(lambda x: aten._to_copy.default(x, dtype=torch.float64), ((3, 4),))],
    "aten.type_as": [(lambda x, y: aten.type_as.default(x, y), ((3, 4), (2,)))],
    "aten.zeros": [(lambda: aten.zeros.default([3, 4]), ())],
    "aten.ones": [(lambda: aten.ones.default([3, 4]), ())],
    "aten.full": [(lambda: aten.full.default([3, 4], 1.5), ())],
    "aten.scalar_tensor": [(lambda: aten.scalar_tensor.default(1.5), ())],
    "aten.new_zeros": _calls(aten.new_zeros.default, ((3, 4), ([2, 4],))),
    "aten.new_ones": _calls(aten.new_ones.default, ((3, 4), ([2, 4],))),
    "aten.new_full": _calls(aten.new_full.default, ((3, 4), ([2, 4], 1.5))),
    "aten.arange": [(lambda: aten.arange.start_step(0.0, 5.0, 1.0), ())],
    "aten.linspace": [(lambda: aten.linspace.default(0.0, 1.0, 5), ())],
    "aten.eye": [(lambda: aten.eye.default(4), ())],
    "aten.triu": _calls(aten.triu.default, ((4, 3), ()), ((2, 3, 4), (1,))),
    "aten.tril": _calls(aten.tril.default, ((4, 3), ()), ((2, 3, 4), (-1,))),
}
"""Ops whose arguments are chosen by hand."""

BY_KIND: dict[str, Callable[[Any], Iterable[Case]]] = {
    "softmax": _softmax,
    "reduce": _reduce,
    "window": _window,
}
"""Kinds whose ops all take alike arguments."""
