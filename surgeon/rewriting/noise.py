"""Noise in the null space of a growth: random, readable a few rows at a time, and the same to the last bit
on every machine and device.

What is drawn are whole numbers, made of a bit generator's integers. All that is summed of them, and of the
signal, has so few digits that no sum is rounded, in whatever order a device takes it.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from surgeon.axes.maps import NEW, Index, copies_of
from surgeon.planning.transforms import AxisGrowth, Transform

# Drawn from one seed: the values of a row do not depend on which others are asked for.
DRAW_ELEMENTS = 1 << 16
SUMMED = 4  # uniform numbers of 16 bits in each that is drawn: bell-shaped, and within 3.5 deviations
DIGITS = 12  # bits of a value, where its square is summed


def draws_whole(transform: Transform) -> bool:
    """Whether noise sums over the first axis, so that no row of it can be made alone."""
    return transform.noise is not None and transform.consumed[0] == 0


def null_space_noise(out: Tensor, transform: Transform, rows: Index | None) -> Tensor:
    """Bell-shaped noise with mean zero over the copies of every source channel of a consumed axis, so
    that it reads nothing from cloned inputs.

    Args:
        out: the expanded tensor, or the asked rows of it; the signal.

    Returns:
        Noise of the shape of `out`. Its power is at the asked ratio to the signal's, for each channel
        of the first axis that is not consumed (an output channel of a linear layer).
    """
    assert transform.noise is not None
    consumed = transform.consumed
    dim = consumed[0]
    axis = transform.axes[dim]
    assert axis.index is not None
    noise = _drawn(transform, rows if dim else None).to(out.device, out.dtype)
    if axis.is_clone:
        copies = noise.unflatten(dim, (axis.copies, axis.size))
        copies -= copies.sum(dim, keepdim=True) / axis.copies
    else:
        along = [-1 if i == dim else 1 for i in range(noise.ndim)]
        fresh = torch.from_numpy(axis.index == NEW).to(out.device).reshape(along)
        noise.masked_fill_(fresh, 0)  # a new channel is no copy of any
        noise -= _mean_of_copies(noise, dim, axis).masked_fill(fresh, 0)
    kept = next((i for i in range(noise.ndim) if i not in consumed), None)
    over = [i for i in range(noise.ndim) if i != kept]
    power, signal = _power(noise, over), _power(out, over)
    # One copy of each channel: the null space is empty, and so is the noise.
    level = torch.where(power > 0, (signal / power).sqrt() * 10 ** (-transform.noise.snr / 20), 0.0)
    return noise * level.to(noise.dtype)


def _power(values: Tensor, over: list[int]) -> Tensor:
    """The mean square over some axes, in float64, of values taken to DIGITS bits of the largest of them."""
    largest = values.abs().amax(over, keepdim=True)
    unit = largest / torch.frexp(largest).mantissa / 2**DIGITS  # a power of two: nothing is rounded by it
    digits = (values / unit.masked_fill(largest == 0, 1.0)).round_()
    mean = digits.square_().sum(over, keepdim=True, dtype=torch.float64) / prod(values.shape[i] for i in over)
    return torch.where(largest > 0, mean * unit.double().square(), 0.0)


def _mean_of_copies(noise: Tensor, dim: int, axis: AxisGrowth) -> Tensor:
    """For each channel along `dim` the mean over all copies of the same source channel."""
    assert axis.index is not None
    index = torch.from_numpy(np.maximum(axis.index, 0)).to(noise.device)
    counts = torch.from_numpy(np.maximum(copies_of(axis.index, axis.size), 1)).to(noise)
    shape = list(noise.shape)
    shape[dim] = axis.size
    sums = torch.zeros(shape, dtype=noise.dtype, device=noise.device).index_add_(dim, index, noise)
    along = [-1 if i == dim else 1 for i in range(noise.ndim)]
    return (sums / counts.reshape(along)).index_select(dim, index)


def _drawn(transform: Transform, rows: Index | None) -> Tensor:
    """Whole numbers as float32, of the grown shape, or the asked rows of them."""
    assert transform.noise is not None
    height, *rest = transform.target_shape
    each = int(np.prod(rest))
    count = max(1, DRAW_ELEMENTS // max(1, each))
    wanted = np.arange(height) if rows is None else rows
    out = torch.empty((len(wanted), *rest))
    draws = wanted // count
    for draw in np.unique(draws):
        bits = np.random.SFC64((transform.noise.seed, int(draw))).random_raw(count * each)
        several = torch.from_numpy(bits.astype("<u8", copy=False).view("<i2")).reshape(SUMMED, count, *rest)
        drawn = several.sum(0, dtype=torch.int32)
        places = np.flatnonzero(draws == draw)
        first, last = int(places[0]), int(places[-1]) + 1
        taken = wanted[first:last] - draw * count
        if last - first == len(places) and (np.diff(taken) == 1).all():  # rows in a row: no index needed
            out[first:last] = drawn[int(taken[0]) : int(taken[-1]) + 1]
        else:
            out[torch.from_numpy(places)] = drawn[torch.from_numpy(wanted[places] - draw * count)].float()
    return out


__all__ = ["draws_whole", "null_space_noise"]
