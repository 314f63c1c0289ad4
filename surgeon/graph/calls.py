"""One op call as the rules see it: its arguments by position and name, and the axes of its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from surgeon.axes.store import UNIT, Axis, Store
from surgeon.graph.places import op_name
from surgeon.language.syntax import OpRule

Axes = tuple[Axis, ...]
Shape = tuple[int, ...]
Outputs = list[Axes]


@dataclass(frozen=True)
class Origin:
    """A value that is a parameter laid out anew: which one, and for each axis of the value the
    parameter's axes that it holds."""

    parameter: str  # placeholder name
    axes: tuple[frozenset[int], ...]


@dataclass(frozen=True)
class Value:
    """What inference knows of one tensor. `made` marks one that no parameter or buffer reaches, `alike` one
    that holds the same number everywhere."""

    axes: Axes
    made: bool = False
    origin: Origin | None = None
    alike: bool = False


@dataclass(frozen=True)
class Call:
    """An op call: `args` in the order of the op's schema with defaults filled in."""

    node: fx.Node
    rule: OpRule
    args: tuple[Any, ...]
    names: tuple[str, ...]
    values: Mapping[str, tuple[Value | None, ...]]
    shapes: tuple[Shape | None, ...]  # of the outputs

    def arg(self, name: str, default: Any = None) -> Any:
        return self.args[self.names.index(name)] if name in self.names else default

    def value(self, arg: Any) -> Value | None:
        """The tensor value of an argument, or None when it is not a tensor."""
        if not isinstance(arg, fx.Node):
            return None
        return self.values[arg.name][0]

    def axes(self, arg: Any) -> Axes:
        value = self.value(arg)
        assert value is not None, f"{self.node.name}: a tensor is expected"
        return value.axes

    def tensors(self) -> Iterator[tuple[fx.Node, Value]]:
        """All tensor arguments, those inside lists too."""
        for arg in self.args:
            for item in arg if isinstance(arg, (list, tuple)) else [arg]:
                value = self.value(item)
                if value is not None:
                    yield item, value

    @property
    def flag(self) -> str | None:
        return self.rule.kind.flag if self.rule.kind else None

    def axis_arg(self, arg: Any, rank: int) -> int:
        return int(arg) % rank if rank else 0


def bind(
    node: fx.Node,
    rule: OpRule,
    values: Mapping[str, tuple[Value | None, ...]],
    shapes: tuple[Shape | None, ...],
) -> Call:
    """The call of `node` under `rule`."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        schema = target._schema.arguments
        names = tuple(a.name for a in schema)
        args = tuple(
            node.args[i] if i < len(node.args) else node.kwargs.get(a.name, a.default_value)
            for i, a in enumerate(schema)
        )
    else:
        args = tuple(node.args)
        names = tuple(f"_{i}" for i in range(len(args)))
    return Call(node, rule, args, names, values, shapes)


def rules_by_name(rules: tuple[OpRule, ...]) -> dict[str, OpRule]:
    """Later rules replace earlier ones: a user's file goes over the library."""
    return {name: rule for rule in rules for name in rule.names}


def rule_for(node: fx.Node, table: Mapping[str, OpRule]) -> OpRule | None:
    """The rule of a node's op: by overload first, then by name."""
    name = op_name(node)
    return table.get(name) or table.get(name.rpartition(".")[0])


MAX_KNOWN = 64


def known_numbers(node: fx.Node) -> list[int] | None:
    """The whole numbers of a one-dimensional tensor that the model makes of literals; None for others."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.ndim != 1:
        return None
    (size,) = value.shape
    if value.dtype == torch.bool or not isinstance(size, int) or not 0 < size <= MAX_KNOWN:
        return None
    needed = _ancestors(node)
    if needed is None:
        return None
    made: dict[fx.Node, Any] = {}
    for step in needed:  # inputs before what is made of them
        args, kwargs = fx.map_arg((step.args, step.kwargs), made.__getitem__)
        assert callable(step.target)
        here = {k: torch.device("cpu") if k == "device" and v else v for k, v in kwargs.items()}
        made[step] = step.target(*args, **here)
    return [int(number) for number in made[node]]


def _ancestors(node: fx.Node) -> list[fx.Node] | None:
    """A node and all that it is computed from, inputs first; None where that is more than literals."""
    found: dict[fx.Node, None] = {}
    waiting = [node]
    for _ in range(MAX_KNOWN * 4):
        if not waiting:
            break
        here = waiting.pop()
        if here.op != "call_function":
            return None
        found.pop(here, None)
        found[here] = None
        waiting.extend(here.all_input_nodes)
    return None if waiting else list(reversed(found))


def broadcast(store: Store, several: list[Axes]) -> Axes:
    """Unify axes from the right as broadcasting does: an axis of size one meets anything."""
    rank = max((len(axes) for axes in several), default=0)
    out: list[Axis] = []
    for position in range(-rank, 0):
        merged: Axis = UNIT
        for axes in several:
            if len(axes) < -position or store.size(axes[position]) == 1:
                continue
            merged = store.unify(merged, axes[position]) if merged != UNIT else axes[position]
        out.append(merged)
    return tuple(out)


def fresh_axes(store: Store, shape: tuple[int, ...], label: str) -> Axes:
    return tuple(store.fresh(size, f"{label}[{i}]") for i, size in enumerate(shape))


def pinned_axes(store: Store, call: Call, code: str, reason: str) -> Outputs:
    """Fresh outputs, none of which may grow."""
    outputs = []
    for shape in call.shapes:
        axes = fresh_axes(store, shape or (), call.node.name)
        for axis in axes:
            store.pin(axis, code, reason)
        outputs.append(axes)
    return outputs
