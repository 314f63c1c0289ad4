"""Rules with a signature: ``linear(x[... i], weight[o i], bias[o]?) -> [... o]``.

A name that stands twice ties two axes; one that no output has is summed; ``...`` stands for any
leading axes, aligned at the right and broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from surgeon.axes.store import UNIT, Axis, AxisConflict, Store
from surgeon.graph.calls import Axes, Call, broadcast
from surgeon.language.syntax import AxisPattern, OpRule

ROLE_PINS = {
    "soft": ("S303", "a softmax runs over it"),
    "order": ("S306", "its order matters"),
    "frozen": ("S307", "the op's rule says that it is frozen"),
}


@dataclass(frozen=True)
class Matched:
    """A tensor argument laid against its pattern."""

    argument: str
    position: int  # in the call's arguments
    node: Any
    rest: Axes  # what `...` stands for
    named: dict[str, int]  # axis name -> index of the axis in the tensor
    axes: Axes


def lay(pattern: AxisPattern, rank: int) -> tuple[dict[str, int], slice]:
    """Where each name of a pattern lies in a tensor of this rank, and what ``...`` covers."""
    names, dots = pattern.names, pattern.ellipsis
    if dots is None:
        if len(names) != rank:
            raise AxisConflict(f"the rule says {len(names)} axes and the tensor has {rank}", ())
        return dict(zip(names, range(rank), strict=True)), slice(0, 0)
    extra = rank - len(names)
    if extra < 0:
        raise AxisConflict(f"the rule says at least {len(names)} axes and the tensor has {rank}", ())
    where = [i if i < dots else i + extra for i in range(len(names))]
    return dict(zip(names, where, strict=True)), slice(dots, dots + extra)


def match(call: Call) -> list[Matched]:
    """The tensor arguments of a call against the rule's signature. Raises AxisConflict."""
    signature = call.rule.signature
    assert signature is not None
    matched = []
    for position, (pattern, arg) in enumerate(zip(signature.args, call.args, strict=False)):
        value = call.value(arg)
        if pattern.axes is None:
            continue
        if value is None:
            if not pattern.optional:
                raise AxisConflict(f"the rule wants a tensor for {pattern.name}", ())
            continue
        named, rest = lay(pattern.axes, len(value.axes))
        matched.append(Matched(pattern.name, position, arg, value.axes[rest], named, value.axes))
    return matched


def summed(call: Call) -> set[str]:
    """The axis names that no output has."""
    signature = call.rule.signature
    assert signature is not None
    kept = {name for out in signature.outputs for name in out.names}
    return {n for a in signature.args if a.axes for n in a.axes.names} - kept - {"_", "1"}


def factors(rule: OpRule) -> list[int]:
    """The positions of named arguments that are numbers: they multiply as tensors do, unless `exact` sets
    them apart."""
    assert rule.signature is not None
    apart = {"_", *(member for statement in rule.exact for member in statement.members)}
    return [i for i, a in enumerate(rule.signature.args) if a.axes is None and a.name not in apart]


def infer(call: Call, store: Store) -> list[Axes]:
    """Unify by the signature and return the axes of the outputs."""
    signature = call.rule.signature
    assert signature is not None
    matched = match(call)
    bound: dict[str, Axis] = {}
    for tensor in matched:
        for name, i in tensor.named.items():
            axis = tensor.axes[i]
            if name in ("_", "1"):
                continue
            known = bound.get(name, UNIT)
            if known == UNIT or axis == UNIT:
                bound[name] = known if axis == UNIT else axis
            else:
                bound[name] = store.unify(known, axis)
    rest = broadcast(store, [tensor.rest for tensor in matched])
    for role in call.rule.roles:
        if role.word in ROLE_PINS:
            for name in role.axes:
                store.pin(bound.get(name, UNIT), *ROLE_PINS[role.word])
    outputs = []
    for number, pattern in enumerate(signature.outputs):
        axes = [bound.get(name, UNIT) for name in pattern.names]
        shape = call.shapes[number] if number < len(call.shapes) else None
        if "_" in pattern.names and shape is not None:  # an output that nothing reads
            axes = [store.fresh(size, call.node.name) for size in shape]
        if pattern.ellipsis is not None:
            axes[pattern.ellipsis : pattern.ellipsis] = rest
        outputs.append(tuple(axes))
    return outputs
