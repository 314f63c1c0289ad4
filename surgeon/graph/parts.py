"""Ops that torch keeps whole, by parts that the rules speak of."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def weight_norm(direction: Tensor, gain: Tensor, dim: int = 0) -> Tensor:
    """``direction · gain / ‖direction‖``, the norm over all axes but one (Salimans and Kingma 2016)."""
    others = [i for i in range(direction.ndim) if i != dim % direction.ndim]
    return direction * (gain / torch.linalg.vector_norm(direction, 2, others, keepdim=True))


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """One half of an axis, gated by the other."""
    value, gate = x.chunk(2, dim)
    return value * torch.sigmoid(gate)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """What is below zero by a slope, one for all or one for each channel of axis 1."""
    if slope.numel() > 1:
        slope = slope.reshape([-1 if i == 1 else 1 for i in range(x.ndim)])
    return torch.relu(x) - slope * torch.relu(-x)


def instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """A norm of groups of one channel; by running statistics, a batch norm (Ulyanov et al. 2016)."""
    if use_input_stats:
        return torch.group_norm(x, x.shape[1], weight, bias, eps)
    return torch.batch_norm(x, weight, bias, mean, variance, False, momentum, eps, cudnn_enabled)


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch norm by the statistics of what it reads: of all axes but the channels', which a weight that is
    standardised so has no batch in (Qiao et al. 2019)."""
    others = [i for i in range(x.ndim) if i != 1]
    along = [-1 if i == 1 else 1 for i in range(x.ndim)]
    mean = torch.mean(x, others, keepdim=True)
    inverse = torch.rsqrt(torch.var(x, others, correction=0, keepdim=True) + eps)
    made = (x - mean) * inverse
    if weight is not None:
        made = made * weight.reshape(along)
    if bias is not None:
        made = made + bias.reshape(along)
    return made, mean.reshape(-1), inverse.reshape(-1)


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Channels become pixels (Shi et al. 2016)."""
    *front, channels, height, width = x.shape
    x = x.reshape(*front, channels // factor**2, factor, factor, height, width)
    n = len(front)
    x = x.permute(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return x.reshape(*front, channels // factor**2, height * factor, width * factor)


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    *front, channels, height, width = x.shape
    x = x.reshape(*front, channels, height // factor, factor, width // factor, factor)
    n = len(front)
    x = x.permute(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*front, channels * factor**2, height // factor, width // factor)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """The first channel of every group, then the second (Zhang et al. 2018)."""
    apart = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    return apart.transpose(1, 2).reshape(x.shape)


def argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    if dim is None:
        return _whole(argmax(x.reshape(-1), 0), x, keepdim)
    return torch.max(x, dim, keepdim)[1]


def argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    if dim is None:
        return _whole(argmin(x.reshape(-1), 0), x, keepdim)
    return torch.min(x, dim, keepdim)[1]


def _whole(found: Tensor, x: Tensor, keepdim: bool) -> Tensor:
    return found.reshape([1] * x.ndim) if keepdim else found


def addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a * b if value == 1 else value * (a * b))


def addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a / b if value == 1 else value * (a / b))


def lerp(x: Tensor, y: Tensor, weight: Any) -> Tensor:
    """From one to the other, by a number or by a tensor of them."""
    return x + weight * (y - x)


def var_mean(
    x: Tensor,
    dim: list[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> tuple[Tensor, Tensor]:
    axes = list(range(x.ndim)) if dim is None else dim
    return torch.var(x, axes, correction=correction, keepdim=keepdim), torch.mean(x, axes, keepdim)


def prod(x: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The last of the running products."""
    if dim is None:
        return torch.cumprod(x.reshape(-1), 0, dtype=dtype)[-1]
    made = torch.cumprod(x, dim, dtype=dtype).select(dim, -1)
    return made.unsqueeze(dim) if keepdim else made


def prod_all(x: Tensor, *, dtype: Any = None) -> Tensor:
    return prod(x, dtype=dtype)


def largest(x: Tensor) -> Tensor:
    return torch.amax(x, list(range(x.ndim)))


def smallest(x: Tensor) -> Tensor:
    return torch.amin(x, list(range(x.ndim)))


def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """What stands in a row and a column of the same number, or apart by `offset`."""
    x = x.movedim((dim1, dim2), (-2, -1))
    row, column = max(-offset, 0), max(offset, 0)
    along = torch.arange(max(min(x.shape[-2] - row, x.shape[-1] - column), 0), device=x.device)
    return x[..., along + row, along + column]


def cdist(x: Tensor, y: Tensor, p: float, compute_mode: int | None) -> Tensor:
    """How far each row is from each other one; of equal rows the gradient is zero, as torch has it."""
    return torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)


def euclidean_dist(x: Tensor, y: Tensor) -> Tensor:
    """The same, as torch has it for many rows."""
    return cdist(x, y, 2.0, None)


def slice_scatter(
    x: Tensor, y: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """One piece of an axis written over: what lies before it, the new piece, and what lies behind. The
    result lies in memory as `x` does: views may come after."""
    size, steps = x.shape[dim], x.stride()
    if not isinstance(size, int):  # symbolic: all of it or nothing
        whole = start in (0, None) and end in (sys.maxsize, None) and step == 1
        return y.clone() if whole else NotImplemented
    first, stop, stride = slice(start, end, step).indices(size)
    if stride != 1:
        return torch.index_copy(x, dim, torch.arange(first, stop, stride, device=x.device), y)
    order = list(range(x.ndim))
    if all(isinstance(n, int) for n in steps):
        order.sort(key=lambda i: -steps[i])
    if order != list(range(x.ndim)):
        laid = slice_scatter(x.permute(order), y.permute(order), order.index(dim % x.ndim), start, end)
        return laid.permute([order.index(i) for i in range(x.ndim)])
    before, after = x.narrow(dim, 0, first), x.narrow(dim, max(first, stop), size - max(first, stop))
    return torch.cat([piece for piece in (before, y, after) if piece.shape[dim]], dim)


def masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """Rows put, in their order, where a mask is true: the last axes, along which the mask says the same and
    which the source has, too, or holds flat, lie whole in each row."""
    mask = mask.reshape([1] * (x.ndim - mask.ndim) + list(mask.shape))
    spread, whole = mask.expand(x.shape), 0
    flat = source.ndim == 1 and x.ndim > 1
    while whole < (x.ndim if flat else min(x.ndim, source.ndim)) and spread.stride()[-1 - whole] == 0:
        size = x.shape[-1 - whole]
        if (
            source.numel() % math.prod(x.shape[x.ndim - whole - 1 :])
            if flat
            else source.shape[-1 - whole] != size
        ):
            break
        whole += 1
    front, back = x.shape[: x.ndim - whole], x.shape[x.ndim - whole :]
    for _ in back:
        mask = mask.squeeze(-1) if mask.shape[-1] == 1 else mask.any(-1)
    order = torch.cumsum(mask.expand(front).reshape(-1), 0) - 1  # of each place among those that are true
    rows = source.reshape(-1, *back).index_select(0, order.clamp(min=0)).reshape(*front, *back)
    return torch.where(spread, rows, x)


PARTS: Mapping[Any, Any] = {
    aten.masked_scatter.default: masked_scatter,
    aten._weight_norm.default: weight_norm,
    aten.glu.default: glu,
    aten.prelu.default: prelu,
    aten.instance_norm.default: instance_norm,
    aten._native_batch_norm_legit.no_stats: batch_norm,
    aten.pixel_shuffle.default: pixel_shuffle,
    aten.pixel_unshuffle.default: pixel_unshuffle,
    aten.channel_shuffle.default: channel_shuffle,
    aten.argmax.default: argmax,
    aten.argmin.default: argmin,
    aten.addcmul.default: addcmul,
    aten.addcdiv.default: addcdiv,
    aten.lerp.Scalar: lerp,
    aten.lerp.Tensor: lerp,
    aten.var_mean.correction: var_mean,
    aten._cdist_forward.default: cdist,
    aten._euclidean_dist.default: euclidean_dist,
    aten.diagonal.default: diagonal,
    aten.prod.default: prod_all,
    aten.max.default: largest,
    aten.min.default: smallest,
    aten.prod.dim_int: prod,
    aten.slice_scatter.default: slice_scatter,
}
"""By op, its parts; a rule for the op itself goes before them."""
