"""Nodes of a graph executed one by one in float64, parameters read a few rows at a time.

In-graph casts are promoted, so the only error left is float64's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.axes.maps import Index
from surgeon.checkpoints.tensors import row_blocks
from surgeon.errors import ModelError, fail
from surgeon.graph.capture import runnable
from surgeon.graph.places import ASSERTION, op_name
from surgeon.graph.positions import dense
from surgeon.running.parallel import side_by_side

Rows = Callable[[Index | None], Tensor]


@dataclass(frozen=True)
class Weight:
    """A parameter that is not in memory: `open` reads it, and gives a function of which rows are asked
    (None: all) that returns them in float64."""

    shape: tuple[int, ...]
    open: Callable[[], Rows]


def promoted(value: Tensor) -> Tensor:
    wide = torch.complex128 if value.is_complex() else torch.float64
    return value.to(wide) if value.is_floating_point() or value.is_complex() else value


def schedule(nodes: list[fx.Node]) -> list[fx.Node]:
    """The nodes in order, each parameter and input put off until its first reader: what is read early
    would stay in memory until then."""
    order: dict[fx.Node, None] = {}
    for node in nodes:
        if node.op != "placeholder":
            for used in node.all_input_nodes:
                order.setdefault(used)
            order.setdefault(node)
    return list(order)


@dataclass
class Executor:
    """Runs nodes on a device; `values` holds what is still to be read, by node name."""

    device: torch.device
    values: dict[str, Any] = field(default_factory=dict)

    def run(self, node: fx.Node, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Execute one node with `args` as given; nodes among them are replaced by their values."""
        name = op_name(node)
        if name.startswith("aten._assert_tensor_metadata"):
            return None
        given = fx.map_arg(args, lambda n: self.values[n.name])
        named = {k: self._promote(v) for k, v in kwargs.items()}
        named = fx.map_arg(named, lambda n: self.values[n.name])
        if name == ASSERTION:
            condition, said = given
            if not condition.all():
                raise fail(ModelError, "S212", f"the traced pass holds for other inputs only: {said}")
            return None
        rowwise = ROWWISE.get(name)
        if rowwise is not None:
            result = rowwise(*given)
            if result is not None:
                return result
        given, named = _whole(given), _whole(named)
        if name == "aten.as_strided.default":
            (source,) = node.all_input_nodes
            given = (_laid(given[0], source.meta["val"]), *given[1:])
        target = runnable(node.target)
        assert callable(target)
        made = target(*(self._promote(a) for a in given), **named)
        if isinstance(made, (list, tuple)):
            return type(made)(promoted(m) if isinstance(m, Tensor) else m for m in made)
        return promoted(made) if isinstance(made, Tensor) else made  # some make float32 unless told

    def _promote(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return self.device
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return torch.float64
        if isinstance(value, torch.dtype) and value.is_complex:
            return torch.complex128
        return value


def _laid(value: Tensor, traced: Tensor) -> Tensor:
    """A tensor with its axes in the order in which the trace had them in memory: an op before it may have
    chosen another."""
    order = dense(traced)
    if order is None:
        return value
    back = [order.index(i) for i in range(len(order))]
    return value.permute(order).contiguous().permute(back)


def _whole(value: Any) -> Any:
    """`value` with every parameter in it read whole."""
    if isinstance(value, Weight):
        return value.open()(None)
    if isinstance(value, (list, tuple)):
        return type(value)(_whole(v) for v in value)
    return {k: _whole(v) for k, v in value.items()} if isinstance(value, dict) else value


# ── ops that read a large parameter row by row: a layout of the same arithmetic, not a meaning of the op ──


class _Linear(torch.autograd.Function):
    """``x @ weight.T + bias`` in blocks of rows of the weight, which are read again to go backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        ctx.weight, read = weight, weight.open()

        def some(rows: Index | None) -> Tensor:
            return torch.nn.functional.linear(x, read(rows), None if bias is None else _part(bias, rows))

        parts = list(side_by_side(some, row_blocks(weight.shape), x.device))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), read = gradients, ctx.weight.open()

        def some(rows: Index | None) -> Tensor:
            return _part(gradient, rows) @ read(rows)

        first, *others = side_by_side(some, row_blocks(ctx.weight.shape), gradient.device)
        return sum(others, first), None, None


def _part(value: Tensor, rows: Index | None) -> Tensor:
    """A block of the last axis."""
    return value if rows is None else value[..., int(rows[0]) : int(rows[-1]) + 1]


def _linear(x: Any, weight: Any, bias: Any = None, *_: Any) -> Tensor | None:
    if not isinstance(weight, Weight) or not isinstance(x, Tensor):
        return None
    made: Tensor = _Linear.apply(x, weight, _whole(bias))
    return made


def _embedding(weight: Any, ids: Any, *_: Any) -> Tensor | None:
    if not isinstance(weight, Weight) or not isinstance(ids, Tensor):
        return None
    asked, place = ids.unique(return_inverse=True)
    return weight.open()(np.asarray(asked.cpu()))[place]


ROWWISE: Mapping[str, Callable[..., Tensor | None]] = {
    "aten.linear.default": _linear,
    "aten.embedding.default": _embedding,
}
