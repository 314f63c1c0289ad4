"""Rules with a signature: ``linear(x[... i], weight[o i], bias[o]?) -> [... o]``.

A name that stands twice ties two axes; one that no output has is summed; ``...`` stands for any
leading axes, aligned at the right and broadcast. ``g*r`` is one axis that is a product of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
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
    names: tuple[tuple[str, ...], ...]  # of each axis: those of its factors; none where `...` stands for it
    axes: Axes

    @property
    def rest(self) -> Axes:
        """What ``...`` stands for."""
        return tuple(axis for names, axis in zip(self.names, self.axes, strict=True) if not names)

    @property
    def named(self) -> dict[str, int]:
        """The index of the axis that has a name, or of which it names a factor."""
        return {name: i for i, names in enumerate(self.names) for name in names}


@dataclass(frozen=True)
class Factor:
    """One factor of an axis: its name, none where ``...`` stands for it, and the index of the axis."""

    name: str
    place: int
    axis: Axis


def lay(pattern: AxisPattern, rank: int) -> tuple[tuple[str, ...], ...]:
    """For each axis of a tensor of this rank its names in a pattern; none where ``...`` covers it."""
    axes, dots = pattern.axes, pattern.ellipsis
    extra = rank - len(axes)
    if dots is None and extra:
        raise AxisConflict(f"the rule says {len(axes)} axes and the tensor has {rank}", ())
    if extra < 0:
        raise AxisConflict(f"the rule says at least {len(axes)} axes and the tensor has {rank}", ())
    return (*axes[:dots], *((),) * extra, *axes[dots:]) if dots is not None else axes


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
        names = lay(pattern.axes, len(value.axes))
        matched.append(Matched(pattern.name, position, arg, names, value.axes))
    return matched


def known_sizes(matched: list[Matched], store: Store) -> dict[str, int]:
    """The size of each name that is an axis of its own somewhere; one of size one may be broadcast."""
    sizes: dict[str, int] = {}
    for tensor in matched:
        for names, axis in zip(tensor.names, tensor.axes, strict=True):
            if len(names) == 1:
                sizes[names[0]] = max(sizes.get(names[0], 1), store.size(axis))
    return sizes


def factored(
    names: tuple[tuple[str, ...], ...], axes: Axes, sizes: Mapping[str, int], store: Store
) -> list[Factor]:
    """The factors of a tensor's axes, left to right: a product is divided as the known sizes of others say,
    what is left being the one that is not known. Raises AxisConflict where it does not divide."""
    found = []
    for place, (several, axis) in enumerate(zip(names, axes, strict=True)):
        if len(several) < 2:
            found.append(Factor("".join(several), place, axis))
            continue
        whole = store.size(axis)
        known = prod(sizes.get(name, 1) for name in several)
        if whole != 1 and whole % known:
            raise AxisConflict(f"an axis of size {whole} does not divide by {known}", store.leaves(axis))
        each = tuple(1 if whole == 1 else sizes.get(name, whole // known) for name in several)
        divided = store.regroup(axis, each)
        found += [Factor(name, place, part) for name, part in zip(several, divided, strict=True)]
    return found


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
    sizes = known_sizes(matched, store)
    for tensor in matched:
        for factor in factored(tensor.names, tensor.axes, sizes, store):
            name, axis = factor.name, factor.axis
            if name in ("", "_", "1"):
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
        axes = [tuple(f for name in names for f in bound.get(name, UNIT)) for names in pattern.axes]
        shape = call.shapes[number] if number < len(call.shapes) else None
        if "_" in pattern.names and shape is not None:  # an output that nothing reads
            axes = [store.fresh(size, call.node.name) for size in shape]
        if pattern.ellipsis is not None:
            axes[pattern.ellipsis : pattern.ellipsis] = rest
        outputs.append(tuple(axes))
    return outputs
