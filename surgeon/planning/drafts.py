"""A first draft of the rule that an op lacks, for a message: which of its axes are alike by their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase

from torch import fx

from surgeon.graph.places import place_of

Shape = tuple[int, ...]


def draft(node: fx.Node, shapes: Mapping[str, tuple[Shape | None, ...]]) -> str:
    """A declaration of the node's op. Of one tensor that keeps its shape, that of a function of each element;
    otherwise a signature, in which axes of one size have one letter and what is no tensor is ``_``.

    Args:
        shapes: of each node's outputs.
    """
    op = place_of(node).op
    out = [shape for shape in shapes.get(node.name, ()) if shape is not None]
    taken = [shapes[a.name][0] if isinstance(a, fx.Node) and shapes.get(a.name) else None for a in node.args]
    read = [shape for shape in taken if shape is not None]
    if read == out and len(read) == 1:
        return f"op {op} : pointwise nonlinear"
    letters: dict[int, str] = {1: "1"}

    def axes(shape: Shape) -> str:
        return "[" + " ".join(letters.setdefault(n, _letter(len(letters) - 1)) for n in shape) + "]"

    while taken and taken[-1] is None:
        taken.pop()
    names = iter(("x", "y", "z", *(f"x{n}" for n in range(4, 100))))
    inputs = ", ".join("_" if shape is None else next(names) + axes(shape) for shape in taken)
    return f"op {op}({inputs}) -> {', '.join(map(axes, out))}"


def _letter(number: int) -> str:
    return ascii_lowercase[number % 26] + (str(number // 26) if number >= 26 else "")
