"""Values that a model makes of numbers alone: slopes of positions, frequencies, masks, zeros.

Such a value is a buffer in all but name: it can be computed without weights or inputs. For a class that
is built anew with a larger config, what matters is which values come out, not by which ops: the ops
within are not typed, and the values are held against each other as those of buffers are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from surgeon.graph.captured import Captured, runnable
from surgeon.graph.places import op_name

MAX_ELEMENTS = 1 << 24  # of a value that is computed before anything is planned


def closed_nodes(captured: Captured) -> frozenset[str]:
    """The nodes that depend on no weight, buffer, constant or input."""
    found: set[fx.Node] = set()
    for node in captured.nodes:
        if node.op == "call_function" and _is_pure(node) and set(node.all_input_nodes) <= found:
            found.add(node)
    return frozenset(node.name for node in found)


def _is_pure(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags or "empty" in op_name(node):
        return False
    values = node.meta.get("val")
    several = values if isinstance(values, (list, tuple)) else [values]
    tensors = [v for v in several if isinstance(v, Tensor)]
    fixed = all(isinstance(size, int) for v in tensors for size in v.shape)
    return bool(tensors) and fixed and all(v.numel() <= MAX_ELEMENTS for v in tensors)


def frontier(captured: Captured, closed: frozenset[str]) -> list[fx.Node]:
    """The closed nodes that something else is computed from, in the graph's order."""
    return [
        node
        for node in captured.nodes
        if node.name in closed and any(u.name not in closed and computes(u) for u in node.users)
    ]


def computes(node: fx.Node) -> bool:
    """Whether a node gives a value (assertions do not)."""
    return node.op != "call_function" or node.meta.get("val") is not None


def evaluate(wanted: Iterable[fx.Node]) -> dict[str, Tensor]:
    """The values of closed nodes, on CPU. Real numbers are float64, whatever the model makes them in: cosines
    of low frequencies are all one in float32, and no place could be told from another."""
    made: dict[fx.Node, Any] = {}
    waiting = list(wanted)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # that of quotients of whole numbers
    try:
        while waiting:
            node = waiting[-1]
            missing = [n for n in node.all_input_nodes if n not in made]
            if node in made or not missing:
                waiting.pop()
                if node not in made:
                    made[node] = _run(node, made)
            else:
                waiting.extend(missing)
    finally:
        torch.set_default_dtype(usual)
    return {node.name: value for node, value in made.items() if isinstance(value, Tensor)}


def _run(node: fx.Node, made: dict[fx.Node, Any]) -> Any:
    def here(leaf: Any) -> Any:
        if isinstance(leaf, fx.Node):
            return made[leaf]
        if isinstance(leaf, torch.dtype) and leaf.is_floating_point:
            return torch.float64
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    args, kwargs = tree_map(here, (tuple(node.args), dict(node.kwargs)))
    return tree_map(_wide, runnable(node.target)(*args, **kwargs))


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
