"""What the grown model must hold at every node: ``v' = σ·E(v)``, and how far a value is from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgeon.axes.maps import NEW
from surgeon.planning.plan import Plan

PIECE = 1 << 20  # elements that are compared at once
ENDLESS = 1e37  # a tenth of the largest number of float32 and bfloat16


def expected(value: Tensor, name: str, output: int, plan: Plan) -> tuple[Tensor, Tensor | None]:
    """``σ·E(v)`` for one tensor of the source graph, and the mask of channels that are not new,
    nor those at which a partial value holds something else."""
    axes = plan.anatomy.values[name][output]
    assert axes is not None
    out, mask = value, None
    for dim, axis in enumerate(axes.axes):
        if not plan.maps.grows(axis):
            continue
        index = plan.maps.index(axis, plan.partial.of(name))
        out = out.index_select(dim, torch.from_numpy(np.maximum(index, 0)).to(out.device))
        if (index == NEW).any():
            here = torch.from_numpy(index != NEW).to(out.device)
            here = here.reshape([-1 if i == dim else 1 for i in range(out.ndim)])
            mask = here if mask is None else mask & here
    cells = plan.equations.cells.get(name)
    if cells is not None and output < len(cells) and cells[output] is not None and _has_scale(out):
        numbers = np.vectorize(plan.equations.system.value, otypes=[np.float64])(cells[output])
        if (numbers != 1.0).any():
            factors = torch.from_numpy(np.array(numbers)).to(out)
            for dim, axis in enumerate(axes.axes):
                first = factors.narrow(dim, 0, 1)
                if (factors == first).all():
                    factors = first  # an axis may have more places than the plan knows of
                else:
                    parts = torch.from_numpy(plan.maps.parts(axis)).to(out.device)
                    factors = factors.index_select(dim, parts)
            out = out * factors
    return out, mask


def _has_scale(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def difference(grown: Tensor, wanted: Tensor, mask: Tensor | None) -> float:
    """The largest difference relative to the largest magnitude; infinities must agree, and what stands for
    them. A piece of the first axis is compared at a time: logits over many words are large."""
    if grown.shape != wanted.shape:
        return float("inf")
    if grown.is_complex() and wanted.is_complex():
        grown, wanted = (torch.view_as_real(value.resolve_conj()) for value in (grown, wanted))
        mask = None if mask is None else mask.unsqueeze(-1)
    if not grown.is_floating_point():
        return 0.0 if torch.equal(grown, wanted) else float("inf")
    if mask is not None:
        keep = mask.expand(wanted.shape)
        grown, wanted = grown.masked_fill(~keep, 0), wanted.masked_fill(~keep, 0)
    if grown.numel() == 0:
        return 0.0
    worst = 0.0
    for piece in _pieces(wanted.shape):
        g, w = grown[piece], wanted[piece]
        same = g == w  # infinities of one sign, too
        gap = float(torch.where(same, 0.0, (g.double() - w.double()).abs()).max())
        if gap >= ENDLESS:  # perhaps what stands for infinity, in another dtype
            g, w = unbounded(g), unbounded(w)
            gap = float(torch.where(g == w, 0.0, (g.double() - w.double()).abs()).max())
        if gap != gap:
            return float("inf")
        worst = max(worst, gap)
    return worst / largest(wanted)


def _pieces(shape: torch.Size) -> list[Any]:
    """Slices of the first axis, each of about PIECE elements."""
    if not shape or shape.numel() <= PIECE:
        return [...]
    height = max(1, PIECE * shape[0] // shape.numel())
    return [slice(start, start + height) for start in range(0, shape[0], height)]


def endless(dtype: torch.dtype) -> float:
    """From which magnitude on a number stands for infinity, as the largest of a dtype does where words are
    ruled out."""
    if not dtype.is_floating_point:
        return math.inf
    return min(ENDLESS, 0.99 * torch.finfo(dtype).max)


def unbounded(value: Tensor) -> Tensor:
    """A value with infinities for what stands for them."""
    limit = endless(value.dtype)
    if not value.numel() or max(abs(float(end)) for end in value.aminmax()) < limit:
        return value
    return torch.where(value.abs() < limit, value, value.sign() * math.inf)


def largest(value: Tensor) -> float:
    """The largest magnitude that does not stand for infinity, never zero."""
    if not value.numel():
        return 1.0
    magnitude = max(abs(float(end)) for end in value.aminmax())
    if not magnitude < endless(value.dtype):
        finite = value[value.abs() < endless(value.dtype)].abs()
        magnitude = float(finite.max()) if finite.numel() else 1.0
    return max(magnitude, 1e-300)
