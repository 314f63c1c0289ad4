"""What the values of a graph take in memory while the proof runs it, besides its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, fx

from surgeon.graph.places import op_name
from surgeon.planning.plan import Plan
from surgeon.verification.execution import is_picked, schedule
from surgeon.verification.native import SEEDS
from surgeon.verification.trainability import watched_nodes

EXACT = 8  # bytes of an element in float64
COMPARED = 5  # values of a node's size that are made to hold it against the source's
SCORES = 3  # of attention: products, with a mask, normalised
FUNCTIONAL = 6  # values of the output's size from which a backward pass starts


@dataclass(frozen=True)
class Values:
    """Bytes at the peak of both graphs in float64, with the backward pass; elements at that of stock
    transformers, on all inputs that it runs on, and of what it gives."""

    exact: int
    stock: int
    given: int


def values_of(plan: Plan) -> Values:
    """The peaks for one plan."""
    captured, watched = plan.anatomy.captured, watched_nodes(plan)
    nodes = schedule(captured.nodes)
    held = captured.parameters.keys()
    last_use = {used: node for node in nodes for used in node.all_input_nodes}
    given = (node.meta.get("val") for node in nodes if node.name in captured.inputs)
    chosen = max((int(v.numel()) for v in given if isinstance(v, Tensor) and not _unknown(v)), default=1)

    def elements(node: fx.Node) -> int:
        return 0 if is_picked(node) else _count(node.meta.get("val"), chosen)

    live = grown_live = kept = exact = stock = 0
    graded = False
    for node in nodes:
        twin = _twin(node, plan)
        small, large = (0, 0) if node.name in held else (elements(node), elements(twin))
        aside = _aside(node) + _aside(twin)
        live, grown_live = live + small + large, grown_live + large
        exact = max(exact, live + kept + aside + COMPARED * large)
        stock = max(stock, grown_live + _aside(twin))
        graded = graded or node.name in watched
        kept += graded * (large + _aside(twin))
        for used in dict.fromkeys(node.all_input_nodes):
            if last_use[used] is node and used.name not in held:
                live -= elements(used) + elements(_twin(used, plan))
                grown_live -= elements(_twin(used, plan))
    result = elements(_twin(captured.results[0], plan)) if captured.results else 0
    largest = max(elements(_twin(n, plan)) + _aside(_twin(n, plan)) for n in nodes if n.name not in held)
    exact = max(exact, kept + live + FUNCTIONAL * result + 2 * largest)
    return Values(EXACT * exact, len(SEEDS) * stock, len(SEEDS) * result)


def _twin(node: fx.Node, plan: Plan) -> fx.Node:
    """The same node in the grown graph, where there is one."""
    twins = plan.native.twins if plan.native else {}
    return plan.grown_nodes.get(twins.get(node.name, ""), node)


def _count(value: Any, chosen: int) -> int:
    """Elements of a value; a size that depends on data, as of rows chosen by a mask, is `chosen` at most."""
    if isinstance(value, (list, tuple)):
        return sum(_count(v, chosen) for v in value)
    return prod(s if isinstance(s, int) else chosen for s in value.shape) if isinstance(value, Tensor) else 0


def _unknown(value: Tensor) -> bool:
    return not all(isinstance(size, int) for size in value.shape)


def _aside(node: fx.Node) -> int:
    """Elements that an op makes on the way to its result: patches of a convolution, scores of attention."""
    name = op_name(node)
    given = [a.meta.get("val") for a in node.args[:2] if isinstance(a, fx.Node)]
    one, other = given if len(given) == 2 else (None, None)
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or min(one.ndim, other.ndim) < 3:
        return 0
    if any(_unknown(value) for value in (one, other)):
        return 0
    if name.startswith("aten.conv"):
        made = node.meta["val"]
        return int(made.numel()) // max(1, made.shape[1]) * (other.numel() // len(other))
    if name.startswith("aten.scaled_dot_product"):
        return SCORES * (one.numel() // max(1, one.shape[-1])) * int(other.shape[-2])
    return 0
