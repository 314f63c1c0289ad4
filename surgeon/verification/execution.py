"""Nodes of a graph executed one by one in float64, parameters read a few rows at a time.

In-graph casts are promoted, so the only error left is float64's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.axes.maps import Index
from surgeon.checkpoints.tensors import row_blocks
from surgeon.errors import ModelError, fail
from surgeon.graph.captured import runnable
from surgeon.graph.places import ASSERTION, op_name
from surgeon.graph.positions import dense
from surgeon.models.native import reason
from surgeon.running.parallel import side_by_side

Rows = Callable[[Index | None], Tensor]


@dataclass(frozen=True)
class Weight:
    """A parameter that is not in memory: `open` reads it, and gives a function of which rows are asked
    (None: all) that returns them in float64; `at` is what is at one position of the first axis."""

    shape: tuple[int, ...]
    open: Callable[[], Rows]
    at: Callable[[int], Weight]


@dataclass(frozen=True)
class Chosen:
    """Rows of a parameter, picked by index and not in memory: experts, one for each token."""

    weight: Weight
    index: Tensor  # [picked], of integers

    def whole(self) -> Tensor:
        asked, place = self.index.unique(return_inverse=True)
        return self.weight.open()(np.asarray(asked.cpu()))[place]


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
        if name == "aten.copy.default":  # which has no derivative
            into, source = given[:2]
            return source.expand(into.shape).to(into.dtype, copy=True)
        target = runnable(node.target)
        assert callable(target)
        made = target(*(self._promote(a) for a in given), **named)
        if isinstance(made, (list, tuple)):
            return type(made)(promoted(m) if isinstance(m, Tensor) else m for m in made)
        return promoted(made) if isinstance(made, Tensor) else made  # some make float32 unless told

    def run_as_traced(self, node: fx.Node) -> Any:
        """The same for a node of the source's own graph, on what it was traced with. Raises ModelError S215
        where that fails; in a grown graph it would be a fault of the growth, not of the inputs."""
        try:
            return self.run(node, node.args, node.kwargs)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise
            said = f"{op_name(node)}: {reason(error)}"
            raise fail(
                ModelError,
                "S215",
                f"the traced pass cannot be run on the inputs it was traced with: {said}",
                help="trace it with other inputs: --inputs FILE",
            ) from error

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
    if isinstance(value, Chosen):
        return value.whole()
    if isinstance(value, (list, tuple)):
        return type(value)(_whole(v) for v in value)
    return {k: _whole(v) for k, v in value.items()} if isinstance(value, dict) else value


# ── ops that read a large parameter row by row: a layout of the same arithmetic, not a meaning of the op ──


class _Linear(torch.autograd.Function):
    """``x @ weight.T + bias`` in blocks of rows of the weight, which are read again to go backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        out = _times_turned(x, weight)
        return out if bias is None else out.add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return _times(gradient, ctx.weight), None, None


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


def is_picked(node: fx.Node) -> bool:
    """Whether a node is made Chosen, not to be in memory, where what it picks from is a parameter."""
    if op_name(node) != "aten.index.Tensor" or not isinstance(node.args[0], fx.Node):
        return False
    return node.args[0].op == "placeholder" and node.args[0].meta["val"].ndim == 3


def _index(weight: Any, index: Any, *_: Any) -> Chosen | None:
    if not isinstance(weight, Weight) or len(index) != 1 or not isinstance(index[0], Tensor):
        return None
    (chosen,) = index
    if chosen.ndim != 1 or chosen.dtype not in (torch.int32, torch.int64) or len(weight.shape) != 3:
        return None
    return Chosen(weight, torch.where(chosen < 0, chosen + weight.shape[0], chosen))


class _ChosenProduct(torch.autograd.Function):
    """``chosen @ x``, or with `flipped` ``x @ chosen``: each matrix that was picked is read once for all that
    picked it, in blocks of rows, and again to go backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chosen: Chosen, flipped: bool) -> Tensor:
        ctx.chosen, ctx.flipped = chosen, flipped
        height, width = chosen.weight.shape[1:]
        out = x.new_zeros((len(x), x.shape[1], width) if flipped else (len(x), height, x.shape[2]))
        for matrix, who in _matrices(chosen):
            if flipped:
                out[who] = _times(x[who], matrix)
            else:
                out[who] = _times_turned(x[who].mT, matrix).mT
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), chosen = gradients, ctx.chosen
        height, width = chosen.weight.shape[1:]
        given = (len(gradient), gradient.shape[1], height) if ctx.flipped else (len(gradient), width)
        out = gradient.new_zeros(given if ctx.flipped else (*given, gradient.shape[2]))
        for matrix, who in _matrices(chosen):
            if ctx.flipped:
                out[who] = _times_turned(gradient[who], matrix)
            else:
                out[who] = _times(gradient[who].mT, matrix).mT
        return out, None, None


def _matrices(chosen: Chosen) -> Iterator[tuple[Weight, Tensor]]:
    """Each matrix that was picked, and where."""
    for position in chosen.index.unique().tolist():
        yield chosen.weight.at(position), torch.nonzero(chosen.index == position)[:, 0]


def _times_turned(x: Tensor, matrix: Weight) -> Tensor:
    """``x @ matrix.T`` in blocks of rows of the matrix, each written where it belongs: thousands of small
    results kept apart would lie between what was freed, and it could not be used again."""
    read = matrix.open()
    out = x.new_empty((*x.shape[:-1], matrix.shape[0]))

    def some(rows: Index | None) -> None:
        _part(out, rows).copy_(torch.nn.functional.linear(x, read(rows)))

    for _ in side_by_side(some, row_blocks(matrix.shape), x.device):
        pass
    return out


def _times(x: Tensor, matrix: Weight) -> Tensor:
    """``x @ matrix`` in blocks of rows of the matrix."""
    read = matrix.open()

    def some(rows: Index | None) -> Tensor:
        return _part(x, rows) @ read(rows)

    out = x.new_zeros((*x.shape[:-1], matrix.shape[1]))
    for part in side_by_side(some, row_blocks(matrix.shape), x.device):
        out += part
    return out


def _bmm(a: Any, b: Any) -> Tensor | None:
    if isinstance(a, Chosen) == isinstance(b, Chosen):
        return None
    flipped = isinstance(b, Chosen)
    made: Tensor = _ChosenProduct.apply(*((a, b) if flipped else (b, a)), flipped)
    return made


ROWWISE: Mapping[str, Callable[..., Tensor | Chosen | None]] = {
    "aten.linear.default": _linear,
    "aten.embedding.default": _embedding,
    "aten.index.Tensor": _index,
    "aten.bmm.default": _bmm,
}
