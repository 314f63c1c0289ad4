"""One tensor expanded by its transform.

A produced axis is copied (E), a consumed one shared out by a right inverse C of E, ``C·E = 1``
(HyperCloning section 3.1 for the symmetric and diagonal spreads); noise N with ``N·E = 0`` is a random
matrix minus its mean over the copies of each source channel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from surgeon.axes.maps import NEW, copies_of, copy_number
from surgeon.planning.transforms import AxisGrowth, Transform


def expand(tensor: Tensor, transform: Transform, dtype: torch.dtype | None = None) -> Tensor:
    """The grown tensor.

    Args:
        tensor: of shape ``transform.source_shape``, any floating dtype (integers are only copied).
        transform: from the plan.
        dtype: of the arithmetic and the result; by default the tensor's own dtype for the result, and
            float32 or wider for the arithmetic.

    Returns:
        A tensor of shape ``transform.target_shape`` on the same device.
    """
    result_dtype = dtype or tensor.dtype
    if not transform.changes:
        return tensor.to(result_dtype)
    if not tensor.is_floating_point():
        return _copied(tensor, transform)
    work = torch.promote_types(result_dtype, torch.float32)
    factor = _one_factor(transform)
    if factor is not None:  # the same arithmetic for every copy: do it once, before copying
        scaled = tensor if factor == 1.0 else tensor.to(work) * factor
        return _copied(scaled.to(result_dtype), transform)
    weights = _weights(transform)
    out = _copied(tensor, transform).to(work)
    if transform.scale is not None:
        out = _scaled(out, transform)
    for share in weights:
        out = out * share.to(device=out.device, dtype=work)
    if transform.noise is not None:
        out = out + _null_space_noise(out, transform)
    return out.to(result_dtype)


def _one_factor(transform: Transform) -> float | None:
    """The one number that all elements are multiplied by, or None when there is no such number."""
    if transform.noise is not None or (transform.scale is not None and transform.offset):
        return None
    factor = 1.0
    if transform.scale is not None:
        if transform.scale[0].size > 1:
            return None
        factor = float(transform.scale[0].flat[0])
    for axis in transform.axes:
        if axis.spread is None or axis.index is None:
            continue
        if axis.spread.name != "symmetric" or not axis.is_clone:
            return None
        factor /= axis.copies
    return factor


def _copied(tensor: Tensor, transform: Transform) -> Tensor:
    """Every channel copied along every axis; new channels are zero."""
    out = tensor
    for dim, axis in enumerate(transform.axes):
        if axis.index is None:
            continue
        if axis.is_clone:
            out = out.repeat([axis.copies if i == dim else 1 for i in range(out.ndim)])
            continue
        index = torch.from_numpy(np.maximum(axis.index, 0)).to(tensor.device)
        out = out.index_select(dim, index)
        if (axis.index == NEW).any():
            fresh = torch.from_numpy(axis.index == NEW).to(tensor.device)
            out = out.masked_fill(_along(fresh, dim, out.ndim), 0)
    return out


def _along(vector: Tensor, dim: int, rank: int) -> Tensor:
    return vector.reshape([-1 if i == dim else 1 for i in range(rank)])


def _scaled(out: Tensor, transform: Transform) -> Tensor:
    assert transform.scale is not None
    cells, channels = transform.scale
    factors = torch.from_numpy(cells).to(device=out.device, dtype=out.dtype)
    for dim, cell in enumerate(channels):
        factors = factors.index_select(dim, torch.from_numpy(cell).to(out.device))
    offset = transform.offset
    return factors * (out + offset) - offset if offset else factors * out


def _weights(transform: Transform) -> list[Tensor]:
    """The share of each copy, per consumed axis, shaped to broadcast over the grown tensor."""
    rank = len(transform.axes)
    produced = [
        (dim, axis)
        for dim, axis in enumerate(transform.axes)
        if axis.spread is None and axis.index is not None
    ]
    factors = []
    for dim, axis in enumerate(transform.axes):
        if axis.spread is None or axis.index is None:
            continue
        if axis.spread.name == "diagonal" and produced:
            row_dim, rows = produced[0]
            matrix = _diagonal(rows, axis)
            shape = [1] * rank
            shape[row_dim], shape[dim] = matrix.shape
            laid = matrix if row_dim < dim else matrix.T
            factors.append(laid.reshape(shape))
        else:
            factors.append(_along(torch.from_numpy(_shares(axis)), dim, rank))
    return factors


def _shares(axis: AxisGrowth) -> np.ndarray:
    """Per target channel its share; the shares of the copies of a channel sum to one."""
    assert axis.index is not None and axis.spread is not None
    number = copy_number(axis.index, axis.size)
    carried = axis.index != NEW
    if axis.spread.name == "first":
        raw = (number == 0).astype(np.float64)
    elif axis.spread.name == "uneven":
        weights = np.array([float(w) for w in axis.spread.weights])
        raw = weights[number % len(weights)]
    else:
        raw = np.ones(len(number))
    raw = np.where(carried, raw, 0.0)
    total = np.bincount(axis.index[carried], weights=raw[carried], minlength=axis.size)
    return raw / np.where(carried, total[np.maximum(axis.index, 0)], 1.0)


def _diagonal(rows: AxisGrowth, columns: AxisGrowth) -> Tensor:
    """Copy r of the output reads copy ``r mod n`` of the input alone: ``[rows, columns]``."""
    assert rows.index is not None and columns.index is not None
    row = copy_number(rows.index, rows.size)
    column = copy_number(columns.index, columns.size)
    count = copies_of(columns.index, columns.size)[np.maximum(columns.index, 0)]
    chosen = (row[:, None] % np.maximum(count, 1)[None, :]) == column[None, :]
    return torch.from_numpy(chosen & (columns.index != NEW)[None, :]).to(torch.float64)


def _null_space_noise(out: Tensor, transform: Transform) -> Tensor:
    """Gaussian noise at the asked ratio to the tensor's power, with mean zero over the copies of
    every source channel of each consumed axis, so that it reads nothing from cloned inputs."""
    assert transform.noise is not None
    generator = torch.Generator().manual_seed(transform.noise.seed)
    noise = torch.randn(out.shape, generator=generator, dtype=torch.float32).to(out.device, out.dtype)
    axis_dims = [d for d, a in enumerate(transform.axes) if a.spread is not None and a.index is not None]
    dim = axis_dims[0]
    axis = transform.axes[dim]
    assert axis.index is not None
    index = torch.from_numpy(np.maximum(axis.index, 0)).to(out.device)
    counts = torch.from_numpy(np.maximum(copies_of(axis.index, axis.size), 1)).to(out.device, out.dtype)
    shape = list(out.shape)
    shape[dim] = axis.size
    sums = torch.zeros(shape, dtype=out.dtype, device=out.device).index_add_(dim, index, noise)
    means = sums / _along(counts, dim, out.ndim)
    noise = noise - means.index_select(dim, index)
    if (axis.index == NEW).any():
        fresh = torch.from_numpy(axis.index == NEW).to(out.device)
        noise = noise.masked_fill(_along(fresh, dim, out.ndim), 0)
    power = noise.square().mean().sqrt()
    if float(power) == 0.0:  # one copy of each channel: the null space is empty
        return noise
    signal = out.square().mean().sqrt()
    return noise * (signal / power * 10 ** (-transform.noise.snr / 20))
