"""Random numbers that a model draws as it runs: two passes of it are two functions, and so there is no one
function to preserve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from surgeon.errors import ModelError, fail
from surgeon.graph.captured import Captured
from surgeon.graph.places import place_of

TRAINING = ("train", "training")  # an op that draws in training alone
SHARE = ("p", "dropout_p")  # of what is drawn to be left out


def refuse_draws(captured: Captured, name: str) -> None:
    """Raises ModelError S216 where what the model returns, or keeps, is computed from random numbers that it
    draws. `name` is the model's."""
    needed = _needed(captured)
    node = next((n for n in captured.nodes if n in needed and _draws(n)), None)
    if node is not None:
        raise fail(
            ModelError,
            "S216",
            f"{name} draws random numbers as it runs: no two of its passes are alike",
            notes=(f"{place_of(node)}",),
            help="where its forward pass takes what it draws as an argument, give it that: --inputs FILE",
        )


def drawn_nodes(captured: Captured) -> frozenset[str]:
    """The nodes whose values random numbers tell: no two passes agree on them."""
    found = set[fx.Node]()
    for node in captured.nodes:
        if _draws(node) or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return frozenset(node.name for node in found)


def _needed(captured: Captured) -> set[fx.Node]:
    """The nodes that what is returned or kept is computed from."""
    needed, waiting = set[fx.Node](), [captured.nodes[-1]]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    return needed


def _draws(node: fx.Node) -> bool:
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    given = _arguments(node, op)
    silent = any(given.get(name) is False for name in TRAINING)
    return not silent and not any(given.get(name) in (0, 0.0) for name in SHARE)


def _arguments(node: fx.Node, op: torch._ops.OpOverload) -> Mapping[str, Any]:
    """The arguments of a node by name, those left out at their defaults."""
    schema = op._schema.arguments
    named = {a.name: a.default_value for a in schema if a.has_default_value()}
    return named | {a.name: value for a, value in zip(schema, node.args, strict=False)} | node.kwargs
