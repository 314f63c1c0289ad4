"""Noise in the null space of a growth: random, reproducible, and readable a few rows at a time."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from surgeon.axes.maps import NEW, Index, copies_of
from surgeon.planning.transforms import AxisGrowth, Transform

DRAW_ELEMENTS = (
    1 << 16
)  # drawn from one seed: the values of a row do not depend on which others are asked for


def draws_whole(transform: Transform) -> bool:
    """Whether noise sums over the first axis, so that no row of it can be made alone."""
    return transform.noise is not None and transform.consumed[0] == 0


def null_space_noise(out: Tensor, transform: Transform, rows: Index | None) -> Tensor:
    """Gaussian noise with mean zero over the copies of every source channel of a consumed axis, so
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
    noise = _gaussian(transform, rows if dim else None).to(out.device, out.dtype)
    if axis.is_clone:
        copies = noise.unflatten(dim, (axis.copies, axis.size))
        copies -= copies.mean(dim, keepdim=True)
    else:
        along = [-1 if i == dim else 1 for i in range(noise.ndim)]
        fresh = torch.from_numpy(axis.index == NEW).to(out.device).reshape(along)
        noise.masked_fill_(fresh, 0)  # a new channel is no copy of any
        noise -= _mean_of_copies(noise, dim, axis).masked_fill(fresh, 0)
    kept = next((i for i in range(noise.ndim) if i not in consumed), None)
    over = [i for i in range(noise.ndim) if i != kept]
    power = noise.square().mean(over, keepdim=True).sqrt()
    signal = out.square().mean(over, keepdim=True).sqrt()
    # One copy of each channel: the null space is empty, and so is the noise.
    level = torch.where(power > 0, signal / power * 10 ** (-transform.noise.snr / 20), 0.0)
    return noise * level


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


def _gaussian(transform: Transform, rows: Index | None) -> Tensor:
    """Standard normal float32 numbers of the grown shape, or the asked rows of them."""
    assert transform.noise is not None
    height, *rest = transform.target_shape
    count = max(1, DRAW_ELEMENTS // max(1, int(np.prod(rest))))
    wanted = np.arange(height) if rows is None else rows
    out = torch.empty((len(wanted), *rest))
    draws = wanted // count
    for draw in np.unique(draws):
        seed = zlib.crc32(f"{transform.noise.seed}:{draw}".encode())
        drawn = torch.randn((count, *rest), generator=torch.Generator().manual_seed(seed))
        places = np.flatnonzero(draws == draw)
        first, last = int(places[0]), int(places[-1]) + 1
        taken = wanted[first:last] - draw * count
        if last - first == len(places) and (np.diff(taken) == 1).all():  # rows in a row: no index needed
            out[first:last] = drawn[int(taken[0]) : int(taken[-1]) + 1]
        else:
            out[torch.from_numpy(places)] = drawn[torch.from_numpy(wanted[places] - draw * count)]
    return out


__all__ = ["draws_whole", "null_space_noise"]
