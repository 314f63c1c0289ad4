"""One tensor expanded by its transform, whole or any rows of it.

A produced axis is copied (E), a consumed one shared out by a right inverse C of E, ``C·E = 1``
(HyperCloning section 3.1 for the symmetric and diagonal spreads); noise N with ``N·E = 0`` is a random
matrix minus its mean over the copies of each source channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import torch
from torch import Tensor

from surgeon.axes.maps import NEW, Index, copies_of
from surgeon.checkpoints.tensors import BLOCK_ELEMENTS, Box, Held, full, row_at, row_boxes, rows_of
from surgeon.planning.transforms import AxisGrowth, Transform
from surgeon.rewriting.noise import draws_whole, null_space_noise
from surgeon.running.parallel import side_by_side


def expand(
    tensor: Held,
    transform: Transform,
    dtype: torch.dtype | None = None,
    rows: Index | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """The grown tensor, or some of its rows.

    Args:
        tensor: of shape ``transform.source_shape``, any floating dtype (integers are only copied); of one
            that is in files only the rows that are needed are read.
        transform: from the plan.
        dtype: of the arithmetic and the result; by default the tensor's own dtype for the result, and
            float32 or wider for the arithmetic.
        rows: positions on the first axis of the grown tensor; by default all, in order.
        device: of the arithmetic and the result; by default the tensor's own.

    Returns:
        A tensor of shape ``transform.target_shape``, or ``[len(rows), ...]``. Its values do not depend
        on which other rows are asked for.
    """
    if rows is not None and draws_whole(transform):
        whole = expand(tensor, transform, dtype, None, device)
        return whole[torch.from_numpy(rows).to(whole.device)]
    result_dtype = dtype or tensor.dtype
    if transform.noise is not None and transform.is_parted:
        wanted = range(transform.target_shape[0]) if rows is None else rows.tolist()
        made = torch.empty((len(wanted), *transform.target_shape[1:]), dtype=result_dtype, device=device)
        for place, row in enumerate(wanted):
            made[place] = expand(row_at(tensor, row), transform.at(row), dtype, None, device)
        return made
    axes, taken = transform.axes, _rows(tensor, transform, rows).to(device or tensor.device)
    if not transform.changes:
        return taken.to(result_dtype)
    if not taken.is_floating_point():
        return _copied(taken, transform, rows)
    work = torch.promote_types(result_dtype, torch.float32)
    factor = _one_factor(transform)
    if factor is not None:  # the same arithmetic for every copy: do it once, before copying
        scaled = taken if factor == 1.0 else taken.to(work) * factor
        return _copied(scaled.to(result_dtype), transform, rows)
    out = _copied(taken.to(work), transform, rows)
    if transform.scale is not None:
        out = _scaled(out, transform, rows)
    for dim, axis in enumerate(axes):
        if axis.spread is not None and axis.index is not None:
            out *= _shares(transform, dim, axis, rows).to(device=out.device, dtype=work)
    if transform.noise is not None:
        out += null_space_noise(out, transform, rows)
    return out.to(result_dtype)


def blocks(
    tensor: Held, transform: Transform, dtype: torch.dtype | None, device: torch.device
) -> Iterator[Tensor]:
    """The grown tensor on `device` as consecutive blocks of rows, or of what is within one, so that it is
    never held whole."""
    boxes = block_boxes(transform)
    return side_by_side(lambda box: expand_box(tensor, transform, box, dtype, device), boxes, device)


def block_boxes(transform: Transform) -> Iterator[Box]:
    """The boxes that a grown tensor is made in, in the order in which they lie in memory."""
    shape = transform.target_shape
    if draws_whole(transform):
        yield full(shape)
    elif transform.is_parted and prod(shape[1:]) > BLOCK_ELEMENTS:
        for row in range(shape[0]):
            yield from (((row, row + 1), *box) for box in block_boxes(transform.at(row)))
    else:
        yield from row_boxes(shape)


def makes_rows(transform: Transform, box: Box) -> bool:
    """Whether a box of the grown tensor is made without anything around it."""
    if transform.is_parted and box[0][1] - box[0][0] == 1:
        return makes_rows(transform.at(box[0][0]), box[1:])
    return box[1:] == full(transform.target_shape[1:]) and not draws_whole(transform)


def expand_box(
    tensor: Held,
    transform: Transform,
    box: Box,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Some of the grown tensor, as :func:`expand` makes it; of other axes than the first, all is made and
    then cut."""
    if transform.is_parted and box[0][1] - box[0][0] == 1:
        row = box[0][0]
        return expand_box(row_at(tensor, row), transform.at(row), box[1:], dtype, device)[None]
    rows = None if box[:1] == full(transform.target_shape[:1]) else np.arange(*box[0])
    made = expand(tensor, transform, dtype, rows, device)
    return made[tuple(slice(*side) if i else slice(None) for i, side in enumerate(box))]


def _rows(tensor: Held, transform: Transform, rows: Index | None) -> Tensor:
    """The source rows that the asked rows copy; a view where they follow one another."""
    index = transform.axes[0].index if transform.axes else None
    if rows is None or index is None:
        return rows_of(tensor, rows)
    return rows_of(tensor, np.maximum(index[rows], 0))


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


def _copied(tensor: Tensor, transform: Transform, rows: Index | None) -> Tensor:
    """Every channel copied along every axis; new channels are zero. Asked rows are there already."""
    out = tensor
    for dim, axis in enumerate(transform.axes):
        if axis.index is None:
            continue
        index = axis.index
        if dim == 0 and rows is not None:
            index = index[rows]
        elif axis.is_clone:
            out = out.repeat([axis.copies if i == dim else 1 for i in range(out.ndim)])
            continue
        else:
            out = out.index_select(dim, torch.from_numpy(np.maximum(index, 0)).to(tensor.device))
        if (index == NEW).any():
            fresh = torch.from_numpy(index == NEW).to(tensor.device)
            out = out.masked_fill(_along(fresh, dim, out.ndim), 0)
    return out.clone() if out.data_ptr() == tensor.data_ptr() else out


def _along(vector: Tensor, dim: int, rank: int) -> Tensor:
    return vector.reshape([-1 if i == dim else 1 for i in range(rank)])


def _scaled(out: Tensor, transform: Transform, rows: Index | None) -> Tensor:
    assert transform.scale is not None
    cells, channels = transform.scale
    factors = torch.from_numpy(cells).to(device=out.device, dtype=out.dtype)
    for dim, cell in enumerate(channels):
        here = cell[rows] if dim == 0 and rows is not None else cell
        factors = factors.index_select(dim, torch.from_numpy(here).to(out.device))
    offset = transform.offset
    return factors * (out + offset) - offset if offset else factors * out


def _shares(transform: Transform, dim: int, axis: AxisGrowth, rows: Index | None) -> Tensor:
    """The share of each copy along one consumed axis, shaped to broadcast over the asked rows."""
    assert axis.spread is not None and axis.index is not None
    rank = len(transform.axes)
    produced = [i for i, a in enumerate(transform.axes) if a.spread is None and a.index is not None]
    if axis.spread.name != "diagonal" or not produced:
        shares = axis.shares
        return _along(torch.from_numpy(shares[rows] if dim == 0 and rows is not None else shares), dim, rank)
    across = produced[0]
    number = transform.axes[across].numbers
    chosen, column, count = axis.numbers, axis.index, copies_of(axis.index, axis.size)
    if rows is not None:
        number = number[rows] if across == 0 else number
        chosen, column = (chosen[rows], column[rows]) if dim == 0 else (chosen, column)
    carried = np.maximum(count[np.maximum(column, 0)], 1)
    # Copy r of the output reads copy r mod n of the input alone.
    matrix = ((number[:, None] % carried[None, :]) == chosen[None, :]) & (column != NEW)[None, :]
    shape = [1] * rank
    shape[across], shape[dim] = matrix.shape
    laid = matrix if across < dim else matrix.T
    return torch.from_numpy(np.ascontiguousarray(laid, dtype=np.float64)).reshape(shape)
