"""Whether new capacity can wake up: one backward pass, and how different the copies' gradients are.

Exact clones receive identical gradients and stay equal under SGD and Adam (Joudaki et al. 2025), so a
figure of zero means that training will never use the new width. New channels, that are no copies, take
part if what makes them or what reads them is not zero: the other of the two then gets a gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from surgeon.axes.maps import NEW, Index, copies_of, copy_number
from surgeon.axes.store import Axis
from surgeon.graph.calls import Call
from surgeon.graph.inference import is_float
from surgeon.graph.places import place_of, starred
from surgeon.planning.plan import Plan


@dataclass(frozen=True)
class Asymmetry:
    """For one group of grown dims: how far copies' gradients are apart, relative to the gradient.

    Zero: identical, the copies never separate. One: unrelated.
    """

    label: str
    size: int
    target: int
    asymmetry: float


@dataclass(frozen=True)
class Trainability:
    """What a backward pass shows: `copies`, how far their gradients are apart; and `dormant`, the groups of
    dims whose new channels are zero wherever they are made and read, so that neither gets a gradient."""

    copies: tuple[Asymmetry, ...]
    dormant: tuple[str, ...] = ()


def watched_nodes(plan: Plan) -> frozenset[str]:
    """For each group of grown dims the op, last in the graph, that makes its channels from a parameter
    and comes before one that tells the copies apart. What reaches a copy's output is what its weights'
    gradients are made of, and only a sum with uneven shares or noise sends copies different gradients.
    Of dims with new channels, the last op of each kind of place that makes them."""
    makes: dict[str, list[tuple[int, str]]] = {}
    makes_new: dict[tuple[str, str], str] = {}
    tells: dict[str, int] = {}
    for place, (name, call) in enumerate(plan.anatomy.calls.items()):
        for axis in _told_apart(call, plan):
            for label, _, _ in _grown(plan, axis):
                tells[label] = place
        outputs = plan.anatomy.values[name]
        if plan.partial.of(name):
            continue  # not all of its channels are copies
        if len(outputs) == 1 and outputs[0] is not None and is_float(call.node) and _produces(call, plan):
            for axis in outputs[0].axes:
                for label, _, _ in _grown(plan, axis):
                    makes.setdefault(label, []).append((place, name))
                for label in _with_new(plan, axis):
                    makes_new[label, starred(place_of(call.node).module)] = name
    return frozenset(makes_new.values()) | {
        max((m for m in made if m[0] < tells.get(label, 0)), default=made[-1])[1]
        for label, made in makes.items()
    }


def _told_apart(call: Call, plan: Plan) -> Iterator[Axis]:
    """The axes that an op sums over with shares that are not the same for every copy."""
    for node, _ in call.tensors():
        name = plan.anatomy.captured.parameters.get(node.name, "")
        transform = plan.transforms.get(name)
        if transform is None:
            continue
        for axis, growth in zip(plan.anatomy.parameter_axes(name), transform.axes, strict=True):
            if growth.spread is not None and (transform.noise or growth.spread.name != "symmetric"):
                yield axis


def _produces(call: Call, plan: Plan) -> bool:
    """Whether an op reads a parameter of which it copies an axis that grows."""
    parameters = plan.anatomy.captured.parameters
    for node, _ in call.tensors():
        transform = plan.transforms.get(parameters.get(node.name, ""))
        if transform and any(a.index is not None and a.spread is None for a in transform.axes):
            return True
    return False


def _grown(plan: Plan, axis: Axis) -> list[tuple[str, int, int]]:
    """Label, size and target size of each grown dim of an axis."""
    store = plan.anatomy.store
    return [
        (starred(store.labels[leaf]), store.sizes[leaf], len(plan.maps.dims[leaf]))
        for leaf in dict.fromkeys(store.leaves(axis))
        if leaf in plan.maps.dims
    ]


def _with_new(plan: Plan, axis: Axis) -> set[str]:
    """The labels of an axis's dims that have new channels."""
    store, dims = plan.anatomy.store, plan.maps.dims
    leaves = [leaf for leaf in store.leaves(axis) if leaf in dims and (dims[leaf] == NEW).any()]
    return {starred(store.labels[leaf]) for leaf in leaves}


def backward(plan: Plan, output: Tensor, watched: Mapping[str, Tensor]) -> Trainability:
    """Per group of grown dims the largest asymmetry over the watched values, for the gradient of a
    random linear functional of the first output's log-softmax; and the groups whose new channels sleep.

    Raises RuntimeError or UserWarning when an op on the way has no backward.
    """
    if not watched:
        return Trainability(())
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad(), warnings.catch_warnings():
        # torch only warns that gradients stop at such an op; figures from them would be wrong.
        warnings.filterwarnings("error", message=".*an autograd kernel was not registered")
        weight = torch.randn(output.shape, generator=generator).to(output)
        (torch.nn.functional.log_softmax(output, -1) * weight).mean().backward()
    apart: dict[tuple[str, int, int], list[float]] = {}
    awake: dict[str, bool] = {}
    for name, value in watched.items():
        axes = plan.anatomy.values[name][0]
        if value.grad is None or axes is None:
            continue
        for dim, axis in enumerate(axes.axes):
            index, size = plan.maps.index(axis), plan.anatomy.store.size(axis)
            for key in _grown(plan, axis):
                if (copies_of(index, size) > 1).any():
                    apart.setdefault(key, []).append(_apart(value.grad, dim, index, size))
            for label in _with_new(plan, axis):
                awake[label] = awake.get(label, False) or _takes_part(value, dim, index)
    copies = tuple(Asymmetry(*key, max(values)) for key, values in apart.items())
    return Trainability(copies, tuple(label for label, is_awake in awake.items() if not is_awake))


def _takes_part(value: Tensor, dim: int, index: Index) -> bool:
    """Whether new channels of a value, or their gradients, are anywhere other than zero."""
    new = torch.from_numpy(np.flatnonzero(index == NEW)).to(value.device)
    assert value.grad is not None
    return any(bool(side.index_select(dim, new).any()) for side in (value.detach(), value.grad))


def _apart(gradient: Tensor, dim: int, index: Index, size: int) -> float:
    """``‖g - mean of g over copies‖ / ‖g‖`` along one axis, of the two copies that are least apart: others
    that are far apart are no help to two that are one."""
    kept = np.flatnonzero(index != NEW)
    numbers = copy_number(index, size)[kept]
    places = np.full((int(numbers.max(initial=0)) + 1, size), -1)
    places[numbers, index[kept]] = kept
    return min(
        (_pair_apart(gradient, dim, one, other) for one, other in combinations(places, 2)), default=0.0
    )


def _pair_apart(gradient: Tensor, dim: int, one: Index, other: Index) -> float:
    """The same of two copies, each the place of every source channel, or -1."""
    both = (one >= 0) & (other >= 0)
    first, second = (
        gradient.index_select(dim, torch.from_numpy(places[both]).to(gradient.device))
        for places in (one, other)
    )
    norm = float(torch.stack([first, second]).norm())
    return float((first - second).norm()) / 2**0.5 / norm if norm else 0.0
