"""Both graphs run side by side in float64, and every node held against the invariant v' = σ·E(v).

In-graph casts are promoted, so the only error left is float64's own. The first node that breaks the
invariant is where the fault lies: it is reported with its module and source line.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.axes.maps import NEW
from surgeon.graph.capture import op_name
from surgeon.planning.literals import grown_args
from surgeon.planning.plan import Plan
from surgeon.rewriting.weights import expand

FLOAT64_EPSILON = 2.0**-52
ROUNDING_FACTOR = 8  # grown sums hold several copies, each rounded on its own
ROUNDINGS_PER_NODE = 8  # a sum of thousands of terms, pairwise, rounds about log2 of their number


@dataclass(frozen=True)
class Divergence:
    """The first node at which the invariant breaks."""

    node: str
    where: str
    error: float


@dataclass(frozen=True)
class ExactReport:
    """The exact check: the worst error over the outputs and over all nodes, relative to each node's
    largest magnitude, and where it first exceeds the tolerance."""

    outputs: float
    worst: float
    tolerance: float
    nodes: int
    divergence: Divergence | None = None

    @property
    def passed(self) -> bool:
        return self.divergence is None


def promoted(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


class Executor:
    """Runs the nodes of a graph one by one in float64 on a device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.values: dict[str, Any] = {}

    def run(self, node: fx.Node, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Execute one node with `args` as given; nodes among them are replaced by their values."""
        if op_name(node).startswith("aten._assert_tensor_metadata"):
            return None
        real = fx.map_arg(args, lambda n: self.values[n.name])
        named = {k: self._promote(k, v) for k, v in kwargs.items()}
        named = fx.map_arg(named, lambda n: self.values[n.name])
        real = tuple(torch.float64 if isinstance(a, torch.dtype) and a.is_floating_point else a for a in real)
        assert callable(node.target)
        return node.target(*real, **named)

    def _promote(self, key: str, value: Any) -> Any:
        if key == "device" and value is not None:
            return self.device
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return torch.float64
        return value


def schedule(nodes: list[fx.Node]) -> list[fx.Node]:
    """The nodes in order, each parameter and input put off until its first reader: what is expanded
    early would stay in memory until then."""
    order: dict[fx.Node, None] = {}
    for node in nodes:
        if node.op != "placeholder":
            for used in node.all_input_nodes:
                order.setdefault(used)
            order.setdefault(node)
    return list(order)


def expected(value: Tensor, name: str, output: int, plan: Plan) -> tuple[Tensor, Tensor | None]:
    """``σ·E(v)`` for one tensor of the source graph, and the mask of channels that are not new."""
    axes = plan.anatomy.values[name][output]
    assert axes is not None
    out, mask = value, None
    for dim, axis in enumerate(axes.axes):
        if not plan.maps.grows(axis):
            continue
        index = plan.maps.index(axis)
        out = out.index_select(dim, torch.from_numpy(np.maximum(index, 0)).to(out.device))
        if (index == NEW).any():
            here = torch.from_numpy(index != NEW).to(out.device)
            here = here.reshape([-1 if i == dim else 1 for i in range(out.ndim)])
            mask = here if mask is None else mask & here
    cells = plan.equations.cells.get(name)
    if cells is not None and output < len(cells) and cells[output] is not None and out.is_floating_point():
        numbers = np.vectorize(plan.equations.system.value, otypes=[np.float64])(cells[output])
        if (numbers != 1.0).any():
            factors = torch.from_numpy(np.array(numbers)).to(out)
            for dim, axis in enumerate(axes.axes):
                if factors.shape[dim] > 1:
                    parts = torch.from_numpy(plan.maps.parts(axis)).to(out.device)
                    factors = factors.index_select(dim, parts)
            out = out * factors
    return out, mask


def difference(grown: Tensor, wanted: Tensor, mask: Tensor | None) -> float:
    """The largest difference relative to the largest magnitude; infinities must agree."""
    if grown.shape != wanted.shape:
        return float("inf")
    if not grown.is_floating_point():
        return 0.0 if torch.equal(grown, wanted) else float("inf")
    if mask is not None:
        keep = mask.expand(wanted.shape)
        grown, wanted = grown.masked_fill(~keep, 0), wanted.masked_fill(~keep, 0)
    if grown.numel() == 0:
        return 0.0
    same = grown == wanted  # infinities of one sign, too
    gap = torch.where(same, 0.0, (grown - wanted).abs())
    worst = float(gap.max())
    return float("inf") if worst != worst else worst / largest(wanted)


def largest(value: Tensor) -> float:
    """The largest finite magnitude, never zero."""
    finite = value[torch.isfinite(value)].abs()
    return max(float(finite.max()) if finite.numel() else 1.0, 1e-300)


def coexecute(
    plan: Plan,
    source: Callable[[str], Tensor],
    inputs: Mapping[str, Any],
    *,
    grown: Callable[[str], Tensor] | None = None,
    grown_buffers: Mapping[str, Tensor] | None = None,
    source_buffers: Mapping[str, Tensor] | None = None,
    device: torch.device | None = None,
    rounded_to: torch.dtype | None = None,
) -> ExactReport:
    """Run source and grown graph in lockstep.

    Args:
        source: reads a source parameter or buffer by name.
        inputs: by placeholder name.
        grown: reads a grown parameter; by default the source's, expanded by the plan in float64.
        grown_buffers: the grown class's own buffers, for the channels that are new.
        source_buffers: buffers that no checkpoint holds.
        rounded_to: the dtype that `grown` was rounded to when it was written. The tolerance at a node is
            then ROUNDING_FACTOR times what rounding the source's own weights so does up to there.
    """
    device = device or torch.device("cpu")
    anatomy, captured = plan.anatomy, plan.anatomy.captured
    left, right = Executor(device), Executor(device)
    shaken = Executor(device) if rounded_to is not None else None
    noise = 0.0
    twins = plan.native.twins if plan.native else {}
    grown_nodes = {n.name: n for n in plan.grown.graph.nodes} if plan.grown else {}
    nodes = schedule(captured.nodes)
    last_use = {user: node for node in nodes for user in node.all_input_nodes}
    tolerance = FLOAT64_EPSILON * ROUNDINGS_PER_NODE * max(1, len(anatomy.calls))
    worst, outputs, checked = 0.0, 0.0, 0
    divergence: Divergence | None = None
    with torch.no_grad():
        for node in nodes:
            if node.op == "output":
                outputs = max((_error(n, left, right, plan)[0] for n in node.all_input_nodes), default=0.0)
                break
            if node.op == "placeholder":
                a, b = _placeholder(
                    node, plan, source, grown, inputs, source_buffers or {}, grown_buffers or {}, device
                )
            else:
                a = left.run(node, node.args, node.kwargs)
                twin = grown_nodes.get(twins.get(node.name, ""))
                if node.target is operator.getitem or twin is None:
                    b = right.run(node, *grown_args(node, anatomy, plan.maps))
                else:
                    b = _run_twin(right, node, twin, twins)
            left.values[node.name], right.values[node.name] = a, b
            if shaken is not None and rounded_to is not None:
                noise = max(noise, _shake(node, shaken, a, plan, rounded_to))
                tolerance = max(tolerance, ROUNDING_FACTOR * noise)
            error, count = _error(node, left, right, plan)
            checked += count
            worst = max(worst, error)
            if error > tolerance and divergence is None:
                divergence = Divergence(node.name, anatomy.where(node.name), error)
            for used in node.all_input_nodes:
                if last_use.get(used) is node:
                    left.values.pop(used.name, None)
                    right.values.pop(used.name, None)
                    if shaken is not None:
                        shaken.values.pop(used.name, None)
    return ExactReport(outputs, worst, tolerance, checked, divergence)


def _shake(node: fx.Node, shaken: Executor, exact: Any, plan: Plan, dtype: torch.dtype) -> float:
    """Run a node of the source with every weight off by one rounding of `dtype`, at random; return how
    far its value moves. Parameters themselves do not count: theirs is no computed value."""
    if node.op != "placeholder":
        value = shaken.run(node, node.args, node.kwargs)
    elif node.name in plan.anatomy.captured.parameters and exact is not None:
        generator = torch.Generator(device=exact.device).manual_seed(zlib.crc32(node.name.encode()))
        turn = torch.empty_like(exact).uniform_(-1, 1, generator=generator)
        value = exact * (1 + turn * torch.finfo(dtype).eps / 2)
    else:
        value = exact
    shaken.values[node.name] = value
    if node.op == "placeholder" or not isinstance(value, Tensor) or not value.is_floating_point():
        return 0.0
    moved = difference(value, exact, None)
    return moved if moved < 1 else 0.0


def _run_twin(right: Executor, node: fx.Node, twin: fx.Node, twins: Mapping[str, str]) -> Any:
    """Run the grown class's own node, its arguments looked up by the source nodes' names."""
    back = {b.name: a.name for a, b in zip(node.all_input_nodes, twin.all_input_nodes, strict=True)}
    saved = right.values
    right.values = {twin_name: saved[name] for twin_name, name in back.items()}
    try:
        return right.run(twin, twin.args, twin.kwargs)
    finally:
        right.values = saved


def _placeholder(
    node: fx.Node,
    plan: Plan,
    source: Callable[[str], Tensor],
    grown: Callable[[str], Tensor] | None,
    inputs: Mapping[str, Any],
    source_buffers: Mapping[str, Tensor],
    grown_buffers: Mapping[str, Tensor],
    device: torch.device,
) -> tuple[Any, Any]:
    captured = plan.anatomy.captured
    if node.name in captured.parameters:
        name = captured.parameters[node.name]
        a = promoted(source(name).to(device))
        wide = expand(a, plan.transforms[name]) if grown is None else promoted(grown(name).to(device))
        return a, wide
    if node.name in captured.buffers:
        name = captured.buffers[node.name]
        a = promoted((source_buffers[name] if name in source_buffers else source(name)).to(device))
        b, mask = expected(a, node.name, 0, plan)
        if mask is not None:
            b = torch.where(mask, b, promoted(grown_buffers[name].to(device)))
        return a, b
    if node.name in captured.constants:
        value = promoted(captured.constants[node.name].to(device))
        return value, value
    value = inputs[node.name]
    value = promoted(value.to(device)) if isinstance(value, Tensor) else value
    return value, value


def _error(node: fx.Node, left: Executor, right: Executor, plan: Plan) -> tuple[float, int]:
    """The worst error over a node's tensors, and how many there are."""
    a, b = left.values.get(node.name), right.values.get(node.name)
    values = plan.anatomy.values.get(node.name, ())
    several_a = list(a) if isinstance(a, (list, tuple)) else [a]
    several_b = list(b) if isinstance(b, (list, tuple)) else [b]
    worst, count = 0.0, 0
    for i, (x, y) in enumerate(zip(several_a, several_b, strict=False)):
        value = values[i] if i < len(values) else None
        if value is None or not isinstance(x, Tensor) or not isinstance(y, Tensor):
            continue
        owner = value.origin.parameter if value.origin is not None else ""
        if not plan.roles.shared.get(owner) and owner not in plan.equations.offsets:
            worst = max(worst, difference(y, *expected(x, node.name, i, plan)))
            count += 1
    return worst, count


__all__ = ["Divergence", "ExactReport", "coexecute"]
