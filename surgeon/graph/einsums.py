"""Einsums: which axes of the operands their letters name, and which stay."""

from __future__ import annotations

from surgeon.axes.store import UNIT, Axis, AxisConflict, Store
from surgeon.graph.calls import Call, Outputs


def parse_einsum(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """The axis names of the operands and of the result of an einsum; an ellipsis becomes numbered
    names that are aligned at the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands, widest = [], 0
    for term, rank in zip(left.split(","), ranks, strict=True):
        before, dots, after = term.partition("...")
        extra = rank - len(before) - len(after) if dots else 0
        widest = max(widest, extra)
        operands.append([*before, *(f".{i}" for i in range(extra, 0, -1)), *after])
    if not arrow:
        counted = left.replace(".", "").replace(",", "")
        right = "..." * ("..." in left) + "".join(c for c in sorted(set(counted)) if counted.count(c) == 1)
    before, dots, after = right.partition("...")
    return operands, [*before, *(f".{i}" for i in range(widest, 0, -1) if dots), *after]


def einsum_names(call: Call) -> tuple[list[list[str]], list[str]]:
    return parse_einsum(call.args[0], [len(call.axes(t)) for t in call.args[1]])


def einsum(call: Call, store: Store) -> Outputs:
    operands, result = einsum_names(call)
    for names, tensor in zip(operands, call.args[1], strict=True):
        if len(set(names)) < len(names):
            leaves = [d for axis in call.axes(tensor) for d in store.leaves(axis)]
            raise AxisConflict("a letter stands twice in one operand", leaves)
    bound: dict[str, Axis] = {}
    for names, tensor in zip(operands, call.args[1], strict=True):
        for name, axis in zip(names, call.axes(tensor), strict=True):
            known = bound.get(name, UNIT)
            bound[name] = axis if known == UNIT else (store.unify(known, axis) if axis != UNIT else known)
    return [tuple(bound[name] for name in result)]
