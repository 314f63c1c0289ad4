"""A program under construction: steps over values whose shapes are known, and weights computed from
stored tensors."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from drawn_ops import BATCH, OPS, Step
from hypothesis import strategies as st

Shape = tuple[int, ...]
SIZES = st.lists(st.sampled_from([4, 6, 2, 3, 8, 5, 12, 10]), min_size=2, max_size=5, unique=True)
MOST = 700  # elements of one value


class Builder:
    """The program so far. `shapes` holds the shape of every value behind its batch axis, None for
    one without a batch."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.steps: list[Step] = []
        self.stored: dict[str, tuple[Shape, str]] = {}
        self.aliases: dict[str, str] = {}
        self.vocabulary = 0
        self.sizes = draw(SIZES)  # few, so that different dims may have one size
        self.input: Shape = self.choose([(5,), (3, 6), (4, 5), (2, 6), (2, 6, 4)])
        if self.chance(4):
            self.vocabulary, self.input = 11, (4,)
        self.shapes: list[Shape | None] = [self.input]
        self.weights: dict[int, Shape] = {}  # values without a batch: computed from stored tensors alone
        self.first = 0  # the first value that moves may pick
        if self.vocabulary:
            d = self.size()
            self.add("embedding", (0,), (self.tensor((11, d)),))
            self.first = 1

    # ── draws ───────────────────────────────────────────────────────────────────────────

    def choose(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def chance(self, n: int) -> bool:
        """One time in n."""
        return self.draw(st.integers(0, n - 1)) == n - 1

    def size(self) -> int:
        return int(self.choose(self.sizes))

    def batched(self, fits: Callable[[Shape], bool] = lambda shape: True) -> list[int]:
        """The values whose shape behind the batch fits, late ones first."""
        shapes = list(enumerate(self.shapes))[self.first :]
        return [i for i, shape in reversed(shapes) if shape is not None and fits(shape)]

    def pick(self, fits: Callable[[Shape], bool] = lambda shape: True) -> int | None:
        """A value whose shape fits, late ones first."""
        found = self.batched(fits)
        return self.choose(found[:4]) if found else None

    def shape(self, index: int) -> Shape:
        shape = self.shapes[index]
        assert shape is not None
        return shape

    def twin(self, index: int) -> int:
        """A value of the same shape as value `index`: another one or, if there is none, a new one."""
        shape = self.shape(index)
        found = [i for i in self.batched(lambda s: s == shape) if i != index]
        if found and not self.chance(4):
            return int(self.choose(found))
        lead = self.pick(lambda s: s[:-1] == shape[:-1] and s != ())
        return self.linear(index if lead is None else lead, shape[-1])

    # ── the program ─────────────────────────────────────────────────────────────────────

    def tensor(self, shape: Shape, kind: str = "parameter") -> str:
        """A stored tensor; now and then one that is there already, under its own name or another."""
        same = [n for n, entry in self.stored.items() if entry == (shape, kind)]
        if kind == "parameter" and same and self.chance(3):
            name = str(self.choose(same))
            if self.chance(2):
                self.aliases[f"{name}_again"] = name
                return f"{name}_again"
            return name
        name = f"{kind[0]}{len(self.stored)}"
        self.stored[name] = (shape, kind)
        return name

    def run(self, op: str, inputs: tuple[int, ...], stored: tuple[str, ...] = (), *numbers: Any) -> Any:
        """The shapes of an op's results, by running it on meta tensors; the step is added."""
        dtype = torch.int64 if op == "embedding" else torch.float64
        shapes = [self.weights[i] if i in self.weights else (BATCH, *self.shape(i)) for i in inputs]
        given = [torch.empty(shape, device="meta", dtype=dtype) for shape in shapes]
        tensors = [
            torch.empty(self.stored[self.aliases.get(n, n)][0], device="meta", dtype=torch.float64)
            for n in stored
        ]
        out = OPS[op](*given, *tensors, *numbers)
        self.steps.append(Step(op, inputs, stored, numbers))
        several = out if isinstance(out, (tuple, list)) else [out]
        return [tuple(o.shape) for o in several]

    def add(self, op: str, inputs: tuple[int, ...], stored: tuple[str, ...] = (), *numbers: Any) -> int:
        """Add a step; the number of its (first) value."""
        before = len(self.shapes)
        self.shapes.extend(shape[1:] for shape in self.run(op, inputs, stored, *numbers))
        return before

    def compute(self, op: str, inputs: tuple[int, ...], stored: tuple[str, ...] = (), *numbers: Any) -> int:
        """Add a step that reads no batch; the number of its value."""
        self.weights[len(self.shapes)] = self.run(op, inputs, stored, *numbers)[0]
        self.shapes.append(None)
        return len(self.shapes) - 1

    def read(
        self, op: str, inputs: tuple[int, ...], shape: Shape, *numbers: Any, bias: tuple[str, ...] = ()
    ) -> int:
        """Add a step that reads a weight: mostly a stored one, now and then a computed one."""
        if self.chance(4):
            return self.add(op, (*inputs, weight(self, shape, 2)), bias, *numbers)
        return self.add(op, inputs, (self.tensor(shape), *bias), *numbers)

    def linear(self, x: int, out: int) -> int:
        width = self.shape(x)[-1]
        bias = (self.tensor((out,)),) if self.chance(2) else ()
        way = self.choose(["linear"] * 5 + ["transposed_linear", "matmul"])
        if way == "linear":
            return self.read("linear", (x,), (out, width), bias=bias)
        return self.read(way, (x,), (width, out))


def weight(b: Builder, shape: Shape, depth: int) -> int:
    """A computed weight of this shape."""

    def again(shape: Shape) -> tuple[tuple[int, ...], tuple[str, ...]]:
        if depth and b.chance(3):
            return (weight(b, shape, depth - 1),), ()
        return (), (b.tensor(shape),)

    def computed(op: str, shape: Shape, *numbers: Any) -> int:
        inputs, stored = again(shape)
        return b.compute(op, inputs, stored, *numbers)

    one = ["plus_one", "own_square", "even_rows", "ones_times", "tanh", "times", "counted"]
    way = b.choose(
        ["mul", "mul", *one, "low_rank", "cat", "front", "reverse", "shape", "wide", "mean", "select"]
    )
    if way == "low_rank" and len(shape) == 2:
        r = b.size()
        left, right = again((shape[0], r)), again((r, shape[1]))
        if not left[1]:  # inputs stand before stored tensors: a computed one on the left only
            return b.compute("bmm", (*left[0], *right[0]), right[1])
        return b.compute("bmm", (), (*left[1], b.tensor((r, shape[1]))))
    if way == "cat" and shape[0] > 1:
        at = b.draw(st.integers(1, shape[0] - 1))
        pieces = (b.tensor((at, *shape[1:])), b.tensor((shape[0] - at, *shape[1:])))
        return b.compute("cat", (), pieces, 0)
    if way == "front":
        return computed("front", (shape[0] + b.choose([1, 2]), *shape[1:]), shape[0])
    if way == "reverse":
        return computed("reverse", shape[::-1])
    if way == "shape":
        merged = (shape[0] * shape[1], *shape[2:]) if len(shape) > 1 else (1, *shape)
        return computed("shape", b.choose([merged, (prod(shape),)]), shape)
    if way == "wide":
        return computed("wide", b.choose([(1, *shape[1:]), (*shape[:-1], 1)]), shape)
    if way == "mean":
        return computed(b.choose(["mean", "sum"]), (b.choose([2, 3]), *shape), (0,), False)
    if way == "select":
        return computed("select", (b.choose([2, 3]), *shape), 0, b.choose([0, -1]))
    if way in one:
        return computed(way, shape, *([2.0] if way == "times" else []))
    inputs, stored = again(shape)
    broadcast = b.tensor(b.choose([shape, shape[-1:], (*shape[:-1], 1)]))
    return b.compute("mul", inputs, (*stored, broadcast))
