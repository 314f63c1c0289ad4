"""Random recipes for a module: which axes of its stored tensors grow, by how much, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drawn_ops import Blueprint
from hypothesis import strategies as st

SPREADS = ["symmetric", "diagonal", "uneven(1, 2)", "uneven(3, 1, 2)", "first"]


@dataclass(frozen=True)
class Growth:
    """One axis to grow, by a factor or to a size as the language writes it, and the size wanted."""

    name: str
    axis: int
    amount: str


@dataclass(frozen=True)
class DrawnRecipe:
    growths: tuple[Growth, ...]
    statements: tuple[str, ...]

    @property
    def text(self) -> str:
        grows = [f'grow axis("{g.name}", {g.axis}) {g.amount}' for g in self.growths]
        lines = "\n".join(f"    {line}" for line in (*grows, *self.statements))
        return f"recipe drawn() {{\n{lines}\n}}\n"


def read_from_input(blueprint: Blueprint) -> set[tuple[str, int]]:
    """Axes that cannot grow, as far as a glance at the steps tells: those laid against the input, the
    rows of a lookup, and kernels. Most draws leave them out."""
    fixed: set[tuple[str, int]] = set()
    for step in blueprint.steps:
        first = step.stored[0] if step.stored else ""
        rank = len(blueprint.stored[blueprint.aliases.get(first, first)][0]) if first else 0
        if step.op == "embedding":
            fixed.add((first, 0))
        if step.op in ("convolve", "deconvolve"):
            fixed |= {(first, i) for i in range(2, rank)}
            if 0 in step.inputs:
                fixed.add((first, 1 if step.op == "convolve" else 0))
        if 0 in step.inputs and step.op in ("linear", "half_linear", "stacked_linear"):
            fixed.add((first, 1))
        if 0 in step.inputs and step.op in ("matmul", "transposed_linear"):
            fixed.add((first, 0))
    return fixed


@st.composite
def growths(draw: Callable[[st.SearchStrategy[Any]], Any], blueprint: Blueprint) -> Growth:
    axes = [(n, i) for n, (shape, _) in blueprint.stored.items() for i, size in enumerate(shape) if size > 1]
    axes += [(alias, i) for alias, n in blueprint.aliases.items() for name, i in axes if name == n]
    hopeless = read_from_input(blueprint)
    likely = [a for a in axes if a not in hopeless]
    name, axis = draw(st.sampled_from(likely if likely and draw(st.integers(0, 7)) < 7 else axes))
    size = blueprint.stored[blueprint.aliases.get(name, name)][0][axis]
    amounts = [
        "by 2",
        "by 3",
        "by 2",
        "by 2",
        f"to {size * 2}",
        "by 3/2",
        f"to {size + 1}",
        "to multiple of 12",
    ]
    return Growth(name, axis, draw(st.sampled_from(amounts)))


@st.composite
def recipes(draw: Callable[[st.SearchStrategy[Any]], Any], blueprint: Blueprint) -> DrawnRecipe:
    most = draw(st.sampled_from([1, 1, 2, 3]))
    drawn = st.lists(growths(blueprint), min_size=1, max_size=most, unique_by=lambda g: (g.name, g.axis))
    grows = draw(drawn)
    ops = st.sampled_from(["linear", "linear", "*"])
    spread = st.sampled_from(SPREADS)
    statements = []
    if draw(st.booleans()):
        statements.append(f"spread {draw(ops)} with {draw(spread)}")
    if draw(st.integers(0, 3)) == 3:
        at = draw(st.sampled_from(sorted(blueprint.stored)))
        statements.append(f'spread {draw(ops)} with {draw(spread)} at "{at}"')
    if draw(st.booleans()):
        statements.append(f"noise {draw(ops)} at {draw(st.sampled_from([10, 0, -6]))} dB")
    if draw(st.integers(0, 5)) == 5:
        words = draw(st.sampled_from(["copy(o) * first(i)", "copy(o) * copy(i)", "copy(i)", "share(o)"]))
        statements.append(f"expand aten.linear {{ weight := {words} }}")
    return DrawnRecipe(tuple(grows), tuple(statements))
