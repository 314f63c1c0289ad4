"""Whether new capacity can wake up: one backward pass, and how different the copies' gradients are.

Exact clones receive identical gradients and stay equal under SGD and Adam (Joudaki et al. 2025), so a
figure of zero means that training will never use the new width.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgeon.axes.maps import NEW, copies_of
from surgeon.planning.plan import Plan

SAMPLE = 64  # places per other axis


@dataclass(frozen=True)
class Asymmetry:
    """For one group of grown dims: how far copies' gradients are apart, relative to the gradient.

    Zero: identical, the copies never separate. One: unrelated.
    """

    label: str
    size: int
    target: int
    asymmetry: float


def gradient_asymmetry(plan: Plan, gradients: Mapping[str, Tensor]) -> list[Asymmetry]:
    """Per grown dim, the largest asymmetry over the parameters that it produces or feeds.

    Args:
        gradients: of the grown parameters, by name.
    """
    store = plan.anatomy.store
    found: dict[tuple[str, int, int], list[float]] = {}
    for name, gradient in gradients.items():
        transform = plan.transforms.get(name)
        if transform is None:
            continue
        axes = plan.anatomy.parameter_axes(name)
        for dim, (axis, growth) in enumerate(zip(axes, transform.axes, strict=True)):
            if growth.index is None:
                continue
            value = _apart(gradient, dim, growth.index, growth.size)
            for leaf in dict.fromkeys(store.leaves(axis)):
                if leaf in plan.maps.dims:
                    label = re.sub(r"\.\d+\.", ".*.", store.labels[leaf])
                    key = label, store.sizes[leaf], len(plan.maps.dims[leaf])
                    found.setdefault(key, []).append(value)
    return [Asymmetry(label, s, t, max(values)) for (label, s, t), values in found.items()]


def _apart(gradient: Tensor, dim: int, index: np.ndarray, size: int) -> float:
    """``‖g - mean of g over copies‖ / ‖g‖`` along one axis, over the places of the other axes where the
    gradient is largest: copies are compared place by place, so a sample of places is enough."""
    for other in range(gradient.ndim):
        if other != dim and gradient.shape[other] > SAMPLE:
            size_of = gradient.abs().amax([i for i in range(gradient.ndim) if i != other])
            gradient = gradient.index_select(other, size_of.topk(SAMPLE).indices)
    kept = np.flatnonzero(index != NEW)
    rows = gradient.double().index_select(dim, torch.from_numpy(kept).to(gradient.device))
    source = torch.from_numpy(index[kept]).to(gradient.device)
    shape = list(rows.shape)
    shape[dim] = size
    counts = torch.from_numpy(np.maximum(copies_of(index, size), 1)).to(rows)
    counts = counts.reshape([-1 if i == dim else 1 for i in range(rows.ndim)])
    means = torch.zeros(shape, dtype=rows.dtype, device=rows.device).index_add_(dim, source, rows) / counts
    norm = float(rows.norm())
    return float((rows - means.index_select(dim, source)).norm()) / norm if norm else 0.0


def sample(plan: Plan) -> frozenset[str]:
    """For each group of grown dims a few parameters that have them: the first, middle and last."""
    groups: dict[str, list[str]] = {}
    for name, transform in plan.transforms.items():
        for axis, growth in zip(plan.anatomy.parameter_axes(name), transform.axes, strict=True):
            if growth.index is not None:
                for dim in plan.anatomy.store.leaves(axis):
                    label = re.sub(r"\.\d+\.", ".*.", plan.anatomy.store.labels[dim])
                    groups.setdefault(label, []).append(name)
    return frozenset(n for names in groups.values() for n in (names[0], names[len(names) // 2], names[-1]))


def backward(model: torch.nn.Module, inputs: Mapping[str, object], plan: Plan) -> dict[str, Tensor]:
    """The gradients of a random linear functional of the model's first output, by parameter name, for
    a sample of the parameters that grew."""
    chosen = sample(plan)
    if not chosen:
        return {}
    generator = torch.Generator().manual_seed(0)
    trained = {n: p.requires_grad for n, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(plan.aliases.get(name, name) in chosen)
    with torch.enable_grad(), warnings.catch_warnings():
        # torch only warns that gradients stop at such an op; figures from them would be wrong.
        warnings.filterwarnings("error", message=".*an autograd kernel was not registered")
        output = first_tensor(model(**inputs))
        weight = torch.randn(output.shape, generator=generator).to(output)
        (torch.nn.functional.log_softmax(output, -1) * weight).mean().backward()
    gradients = {plan.aliases.get(n, n): p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
    return gradients


def first_tensor(output: Any) -> Tensor:
    """The first floating tensor of a model's output, whatever holds it."""
    if isinstance(output, Tensor):
        return output
    values = output if isinstance(output, (tuple, list)) else output.values()
    return next(first_tensor(v) for v in values if isinstance(v, (Tensor, tuple, list, dict)))
