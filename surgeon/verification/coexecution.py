"""Both graphs run side by side in float64, and every node held against the invariant v' = σ·E(v).

The first node that breaks the invariant is where the fault lies: it is reported with its module and
source line.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.axes.maps import NEW, Index
from surgeon.checkpoints.tensors import Held, box_of, row_at, rows_of
from surgeon.graph.draws import drawn_nodes
from surgeon.graph.places import ASSERTION, op_name
from surgeon.planning.literals import grown_args
from surgeon.planning.plan import Plan
from surgeon.planning.transforms import Transform
from surgeon.rewriting.weights import block_boxes, expand, expand_box
from surgeon.verification.execution import Chosen, Executor, Rows, Weight, promoted, schedule
from surgeon.verification.invariant import difference, expected, largest
from surgeon.verification.sampling import Sample

FLOAT64_EPSILON = 2.0**-52
ROUNDING_FACTOR = 8  # grown sums hold several copies, each rounded on its own
ROUNDINGS_PER_NODE = 8  # a sum of thousands of terms, pairwise, rounds about log2 of their number

UNSETTLED = 2.0**-14
"""What rounding in float64 moves by more than this is no magnified rounding: a choice fell otherwise, and
nothing could be held against what follows."""

Read = Callable[[str], Held]


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


@dataclass(frozen=True)
class Pair:
    """What the two graphs run on.

    Args:
        source: reads a source parameter or buffer by name.
        inputs: by placeholder name.
        grown: reads a grown parameter; by default the source's, expanded by the plan in float64.
        grown_buffers: the grown class's own buffers, for the channels that are new.
        source_buffers: the source's buffers that `source` does not read.
        held_buffers: those that the checkpoint of `grown` holds.
        rounded_to: the dtype that `grown` was rounded to when it was written. The tolerance at a node is
            then at least ROUNDING_FACTOR times what rounding the source's own weights so does up to there.
        sample: of the graph; None for all of it.
    """

    plan: Plan
    source: Read
    inputs: Mapping[str, Any]
    grown: Read | None = None
    grown_buffers: Mapping[str, Tensor] = field(default_factory=dict)
    source_buffers: Mapping[str, Tensor] = field(default_factory=dict)
    held_buffers: Mapping[str, Tensor] = field(default_factory=dict)
    rounded_to: torch.dtype | None = None
    sample: Sample | None = None


@dataclass(frozen=True)
class Coexecution:
    """The report, and what a backward pass through the grown graph starts from and ends at; `source` are
    the source's own outputs that are compared, by the path to them."""

    report: ExactReport
    output: Tensor | None
    watched: Mapping[str, Tensor]
    source: Mapping[str, Tensor] = field(default_factory=dict)


def _measured(plan: Plan, inputs: Mapping[str, Any]) -> Plan:
    """The plan with the sizes of these inputs, where it has numbers that stand for any size: an axis may
    hold a batch and channels that grow."""
    store = plan.maps.store
    sizes = list(store.sizes)
    for name, value in inputs.items():
        typed = plan.anatomy.values[name][0]
        if isinstance(value, Tensor) and typed is not None:
            for axis, size in zip(map(store.resolve, typed.axes), value.shape, strict=True):
                if len(axis) == 1 and isinstance(axis[0], int):
                    sizes[axis[0]] = size
    return replace(plan, maps=replace(plan.maps, store=replace(store, sizes=sizes)))


def coexecute(pair: Pair, device: torch.device, watched: frozenset[str] = frozenset()) -> Coexecution:
    """Run source and grown graph in lockstep; `watched` nodes of the grown one keep their gradients.

    Where they part, it may be that the source magnifies its own rounding (a gate of large values does): they
    run once more, and what rounding its weights in float64 does to it up to a node is allowed there.
    """
    run = _coexecuted(pair, device, watched)
    if run.report.passed or pair.rounded_to is not None:
        return run
    return _coexecuted(replace(pair, rounded_to=torch.float64), device, watched)


def _coexecuted(pair: Pair, device: torch.device, watched: frozenset[str]) -> Coexecution:
    plan = _measured(pair.plan, pair.inputs)
    pair = replace(pair, plan=plan)
    left, right = Executor(device), Executor(device)
    shaken = Executor(device) if pair.rounded_to is not None else None
    stands = pair.sample.stands if pair.sample is not None else {}
    unrun = pair.sample.unrun if pair.sample is not None else frozenset()
    nodes = [node for node in schedule(plan.anatomy.captured.nodes) if node.name not in unrun]
    reads = {node: _read_by(node, stands, plan) for node in nodes}
    last_use = {used: node for node in nodes for used in reads[node]}
    drawn = drawn_nodes(plan.anatomy.captured)
    tolerance = FLOAT64_EPSILON * ROUNDINGS_PER_NODE * max(1, len(plan.anatomy.calls))
    worst, outputs, checked, noise = 0.0, 0.0, 0, 0.0
    divergence: Divergence | None = None
    kept: dict[str, Tensor] = {}
    output: Tensor | None = None
    source: dict[str, Tensor] = {}
    with torch.no_grad():
        for node in nodes:
            if node.op == "output":
                outputs = max((_error(n, left, right, plan)[0] for n in node.all_input_nodes), default=0.0)
                results = plan.anatomy.captured.results
                output = _first_float(right.values.get(n.name) for n in results)
                told = plan.anatomy.captured.compared.items()
                source = {path: left.values[n.name] for path, n in told if n.name in left.values}
                break
            if node.name in stands:
                for side in (left, right, shaken):
                    if side is not None:
                        side.values[node.name] = side.values[stands[node.name]]
            else:
                made = _step(node, pair, left, right, bool(watched))
                left.values[node.name], right.values[node.name] = made
            if node.name in watched:
                if isinstance(right.values[node.name], Chosen):  # not in memory: what it makes is watched
                    watched |= {user.name for user in node.users}
                else:
                    kept[node.name] = _watch(right, node.name)
            if shaken is not None and pair.rounded_to is not None and node.name not in stands:
                moved = _shake(node, shaken, left.values[node.name], plan, pair.rounded_to)
                noise = noise if node.name in drawn else max(noise, moved)
                tolerance = max(tolerance, ROUNDING_FACTOR * noise)
            if node.op == "placeholder" and isinstance(left.values[node.name], Weight):
                error, count = _parameter_error(node, left, right, pair)
            elif plan.anatomy.captured.buffers.get(node.name) in pair.held_buffers or node.name in drawn:
                error, count = 0.0, 0  # judged by what reads it, if anything does
            else:
                error, count = _error(node, left, right, plan)
            checked += count
            worst = max(worst, error)
            if error > tolerance and divergence is None:
                divergence = Divergence(node.name, plan.anatomy.where(node.name), error)
            for used in reads[node]:
                if last_use.get(used) is node:
                    for executor in (left, right, shaken):
                        if executor is not None:
                            executor.values.pop(used.name, None)
    return Coexecution(ExactReport(outputs, worst, tolerance, checked, divergence), output, kept, source)


def _read_by(node: fx.Node, stands: Mapping[str, str], plan: Plan) -> list[fx.Node]:
    """The nodes whose values a node reads, or the one whose value stands for it."""
    return [plan.anatomy.nodes[stands[node.name]]] if node.name in stands else node.all_input_nodes


def _step(node: fx.Node, pair: Pair, left: Executor, right: Executor, graded: bool) -> tuple[Any, Any]:
    """The values of one node in the source and in the grown graph."""
    if node.op == "placeholder":
        return _placeholder(node, pair, left.device)
    plan = pair.plan
    if node.name in plan.anatomy.closed:
        return _closed(node, plan, left)
    twins = plan.native.twins if plan.native else {}
    twin = plan.grown_nodes.get(twins.get(node.name, ""))
    source = left.run_as_traced(node)
    if op_name(node) == ASSERTION and node.all_input_nodes[0].name in plan.anatomy.closed:
        return source, None  # of numbers alone, which the grown class makes anew: its own trace has asked
    with torch.set_grad_enabled(graded):
        if node.target is operator.getitem or twin is None:
            return source, right.run(node, *grown_args(node, plan.anatomy, plan.maps))
        return source, _run_twin(right, node, twin)


def _closed(node: fx.Node, plan: Plan, left: Executor) -> tuple[Any, Any]:
    """A value made of numbers alone. The grown class's differs by its rounding in float32, which the
    plan has allowed for, and in the channels that are new."""
    value = left.run_as_traced(node)
    if plan.native is None or node.name not in plan.native.known:
        return value, None
    wanted, mask = expected(value, node.name, 0, plan)
    if mask is not None:
        wanted = torch.where(mask, wanted, promoted(plan.native.known[node.name].to(left.device)))
    return value, wanted


def _watch(right: Executor, name: str) -> Tensor:
    """Let a value keep its gradient; the first of a path is where the backward pass ends."""
    value = right.values[name]
    if not value.requires_grad:
        value = right.values[name] = value.detach().requires_grad_()
    value.retain_grad()
    return value


def _first_float(values: Any) -> Tensor | None:
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


def _shake(node: fx.Node, shaken: Executor, exact: Any, plan: Plan, dtype: torch.dtype) -> float:
    """Run a node of the source with every weight off by one rounding of `dtype`, at random; return how
    far its value moves. Parameters themselves do not count: theirs is no computed value."""
    value = exact
    if node.op != "placeholder":
        value = shaken.run(node, node.args, node.kwargs)
    elif isinstance(exact, Weight):
        value = _shaken_weight(exact, zlib.crc32(node.name.encode()), torch.finfo(dtype).eps / 2)
    shaken.values[node.name] = value
    if node.op == "placeholder" or not isinstance(value, Tensor) or not value.is_floating_point():
        return 0.0
    moved = difference(value, exact, None)
    return moved if moved < (UNSETTLED if dtype == torch.float64 else 1) else 0.0


def _shaken_weight(weight: Weight, seed: int, part: float) -> Weight:
    return Weight(
        weight.shape,
        lambda: _shaken(weight.open(), seed, part),
        lambda row: _shaken_weight(weight.at(row), seed + row, part),
    )


def _shaken(read: Rows, seed: int, part: float) -> Rows:
    """Rows that are off by `part` of themselves at most, at random."""

    def rows(asked: Index | None) -> Tensor:
        value = read(asked)
        generator = torch.Generator(device=value.device).manual_seed(seed)
        return value * (1 + torch.empty_like(value).uniform_(-1, 1, generator=generator) * part)

    return rows


def _run_twin(right: Executor, node: fx.Node, twin: fx.Node) -> Any:
    """Run the grown class's own node, its arguments looked up by the source nodes' names."""
    back = {b.name: a.name for a, b in zip(node.all_input_nodes, twin.all_input_nodes, strict=True)}
    seen = Executor(right.device, {twin: right.values[name] for twin, name in back.items()})
    return seen.run(twin, twin.args, twin.kwargs)


def _placeholder(node: fx.Node, pair: Pair, device: torch.device) -> tuple[Any, Any]:
    plan, captured = pair.plan, pair.plan.anatomy.captured
    if node.name in captured.parameters:
        name = captured.parameters[node.name]
        transform = plan.transforms[name]
        source = _weight(lambda: pair.source(name), transform.source_shape, device)
        grown = pair.grown
        if grown is not None:
            return source, _weight(lambda: grown(name), transform.target_shape, device)
        return source, _expanded(lambda: pair.source(name), transform, device)
    if node.name in captured.buffers:
        name = captured.buffers[node.name]
        known = pair.source_buffers[name] if name in pair.source_buffers else rows_of(pair.source(name), None)
        a = promoted(known.to(device))
        if name in pair.held_buffers:
            return a, promoted(pair.held_buffers[name].to(device))
        b, mask = expected(a, node.name, 0, plan)
        if mask is not None:
            b = torch.where(mask, b, promoted(pair.grown_buffers[name].to(device)))
        return a, b
    value = captured.constants[node.name] if node.name in captured.constants else pair.inputs[node.name]
    value = promoted(value.to(device)) if isinstance(value, Tensor) else value
    return value, value


def _weight(read: Callable[[], Held], shape: tuple[int, ...], device: torch.device) -> Weight:
    def opened() -> Rows:
        tensor = read()
        return lambda asked: promoted(rows_of(tensor, asked).to(device))

    return Weight(shape, opened, lambda row: _weight(lambda: row_at(read(), row), shape[1:], device))


def _expanded(read: Callable[[], Held], transform: Transform, device: torch.device) -> Weight:
    def opened() -> Rows:
        tensor = read()
        wanted = torch.float64 if tensor.dtype.is_floating_point else None
        return lambda asked: expand(tensor, transform, wanted, asked, device)

    def at(row: int) -> Weight:
        if transform.is_parted:
            return _expanded(lambda: row_at(read(), row), transform.at(row), device)
        whole = opened()(np.array([row]))[0]
        return _weight(lambda: whole, transform.target_shape[1:], device)

    return Weight(transform.target_shape, opened, at)


def _parameter_error(node: fx.Node, left: Executor, right: Executor, pair: Pair) -> tuple[float, int]:
    """How far a given grown parameter is from the source's, where every axis of it is only copied: one
    that is shared out may hold any shares and noise, and is judged by the op that reads it, as are new
    channels."""
    name = pair.plan.anatomy.captured.parameters[node.name]
    transform = pair.plan.transforms[name]
    if pair.grown is None or transform.offset or any(a.spread is not None for a in transform.axes):
        return 0.0, 0
    if any((pair.plan.maps.index(axis) == NEW).any() for axis in pair.plan.anatomy.parameter_axes(name)):
        return 0.0, 0
    gap = magnitude = 0.0
    for box in block_boxes(transform):
        b = promoted(box_of(pair.grown(name), box).to(right.device))
        wanted = b.dtype if b.is_floating_point() else None
        a = expand_box(pair.source(name), transform, box, wanted, right.device)
        gap = max(gap, difference(b, a, None) * largest(a))
        magnitude = max(magnitude, largest(a))
    return gap / magnitude, 1


def _error(node: fx.Node, left: Executor, right: Executor, plan: Plan) -> tuple[float, int]:
    """The worst error over a node's tensors, and how many there are."""
    a, b = left.values.get(node.name), right.values.get(node.name)
    values = plan.anatomy.values.get(node.name, ())
    several_a = list(a) if isinstance(a, (list, tuple)) else [a]
    several_b = list(b) if isinstance(b, (list, tuple)) else [b]
    worst, count = 0.0, 0
    read = {user.args[1] for user in node.users if user.target is operator.getitem}
    for i, (x, y) in enumerate(zip(several_a, several_b, strict=False)):
        value = values[i] if i < len(values) else None
        if len(several_a) > 1 and i not in read:  # nobody reads it
            continue
        if value is None or not isinstance(x, Tensor) or not isinstance(y, Tensor):
            continue
        if not x.numel() and not y.numel():  # statistics that some devices leave out
            continue
        owner = value.origin.parameter if value.origin is not None else ""
        if not plan.roles.shared.get(owner) and owner not in plan.equations.offsets:
            worst = max(worst, difference(y.detach(), *expected(x, node.name, i, plan)))
            count += 1
    return worst, count


__all__ = ["Coexecution", "Divergence", "ExactReport", "Pair", "coexecute"]
