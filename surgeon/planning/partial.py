"""Partial values: those that hold what the source holds at some of their channels, and something else at the
others.

Sinusoids of positions are such values. A grown class makes more of them than the source, at other
frequencies, where the values that they are added to have copies. What is made of a partial value is partial.
A sum with a parameter may leave the other channels out: its shares for them are zero. Whatever else takes
channels together would read them, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

from torch import fx

from surgeon.axes.maps import NEW, Maps
from surgeon.axes.store import Axis
from surgeon.errors import PlanError, fail
from surgeon.graph import signatures
from surgeon.graph.calls import Call, Value
from surgeon.graph.closed import computes
from surgeon.graph.inference import Anatomy
from surgeon.graph.kinds import reduced
from surgeon.graph.places import op_name
from surgeon.graph.spatial import convolution_parts, is_transposed, normalised_groups
from surgeon.planning.roles import Roles, arguments, summed_axes

Dims = frozenset[int]
NONE: Dims = frozenset()


@dataclass(frozen=True)
class Partial:
    """The dims along which values are partial, by node name; and the axes of parameters that are summed
    with such values, by placeholder name and axis: there only channels that hold the source's are read."""

    values: Mapping[str, Dims] = field(default_factory=dict)
    readers: Mapping[str, Mapping[int, Dims]] = field(default_factory=dict)

    def of(self, name: str) -> Dims:
        return self.values.get(name, NONE)

    def read_along(self, placeholder: str, axis: int) -> Dims:
        return self.readers.get(placeholder, {}).get(axis, NONE)


def measured_dims(anatomy: Anatomy) -> Dims:
    """The dims over which an op takes statistics that hold only if all channels are copies."""
    found = set[int]()
    for name, call in anatomy.calls.items():
        if name not in anatomy.refused:
            found.update(leaf for axis in measured_axes(call, anatomy) for leaf in anatomy.store.leaves(axis))
    return frozenset(found)


def measured_axes(call: Call, anatomy: Anatomy) -> Iterator[Axis]:
    """The axes over which a call takes statistics."""
    kind = call.rule.kind.name if call.rule.kind else ""
    if any(role.word == "norm" for role in call.rule.roles):
        normalized = call.arg("normalized_shape")
        if isinstance(normalized, (list, tuple)):
            yield from call.axes(call.args[0])[-len(normalized) :]
        names = {name for role in call.rule.roles if role.word == "norm" for name in role.axes}
        for tensor in signatures.match(call):
            yield from (tensor.axes[i] for name, i in tensor.named.items() if name in names)
    elif kind == "group_norm":
        yield normalised_groups(call, anatomy.store)[1]
    elif kind == "reduce" and call.flag in ("variance", "deviation", "extreme"):
        yield from (call.axes(call.args[0])[i] for i in reduced(call))


def infer_partial(
    anatomy: Anatomy, maps: Maps, roles: Roles, known: Mapping[str, Dims], what: Mapping[str, str]
) -> Partial:
    """Follow partial values through a graph, from the `known` ones among its buffers and closed nodes.

    Args:
        what: each known value in words.

    Raises PlanError S331 where all channels of a partial value would be read.
    """
    return _Flow(anatomy, maps, roles, known, what).follow() if known else Partial()


@dataclass
class _Flow:
    anatomy: Anatomy
    maps: Maps
    roles: Roles
    known: Mapping[str, Dims]
    what: Mapping[str, str]
    values: dict[str, Dims] = field(default_factory=dict)
    comes_from: dict[str, str] = field(default_factory=dict)  # of a partial value, the known one
    readers: dict[str, dict[int, Dims]] = field(default_factory=dict)

    def follow(self) -> Partial:
        for node in self.anatomy.captured.nodes:
            if node.name in self.known:
                self.values[node.name], self.comes_from[node.name] = self.known[node.name], node.name
            elif any(n.name in self.values for n in node.all_input_nodes):
                self._node(node)
        for node in self.anatomy.captured.results:
            self._none_of(node.name, node, self._axes(node), "they are an output of the model")
        for name in self.anatomy.captured.rewritten:
            node = self.anatomy.nodes[name]
            self._none_of(name, node, self._axes(node), "a pass through the model keeps them for the next")
        return Partial(self.values, self.readers)

    def _node(self, node: fx.Node) -> None:
        name, outputs = node.name, self.anatomy.values.get(node.name, ())
        call = self.anatomy.calls.get(name)
        if not any(outputs):
            return  # sizes and assertions
        if call is None:  # one of several outputs
            kept = self._of(node.all_input_nodes[0])
        elif call.rule.signature is not None or (call.rule.kind and call.rule.kind.name == "einsum"):
            kept = self._product(call)
        else:
            kept = self._kind(call, call.rule.kind.name if call.rule.kind else "")
        kept &= frozenset(leaf for v in outputs if v is not None for leaf in self._leaves(v.axes))
        if kept:
            self.values[name] = kept
            first = next(n for n in node.all_input_nodes if self._of(n))
            self.comes_from[name] = self.comes_from[first.name]

    def _of(self, node: fx.Node) -> Dims:
        return self.values.get(node.name, NONE)

    def _axes(self, node: fx.Node) -> tuple[Axis, ...]:
        (value, *_) = self.anatomy.values[node.name] or (None,)
        return value.axes if value is not None else ()

    def _leaves(self, axes: tuple[Axis, ...]) -> Dims:
        return frozenset(leaf for axis in axes for leaf in self.anatomy.store.leaves(axis))

    # ── ops ─────────────────────────────────────────────────────────────────────────────

    def _product(self, call: Call) -> Dims:
        """What multiplies and sums: an axis that is summed is left out by the parameter that is shared out
        along it."""
        for axis in measured_axes(call, self.anatomy):
            for node, _ in call.tensors():
                self._none_of(call.node.name, node, (axis,), "statistics are taken over them")
        sums = list(summed_axes(call))
        kept = NONE
        for position, node, value in arguments(call):
            gone = {s.axis: s.label for s in sums if s.position == position}
            for i, axis in enumerate(value.axes):
                dims = self._of(node) & self._leaves((axis,))
                if i not in gone:
                    kept |= dims
                elif dims:
                    takers = [(s.node, s.axis) for s in sums if s.label == gone[i]]
                    self._leave_out(call, node, dims, takers)
        return kept

    def _kind(self, call: Call, kind: str) -> Dims:
        if kind in ("uniform", "made", "ignore"):
            return NONE
        for axis in measured_axes(call, self.anatomy):
            for node, _ in call.tensors():
                self._none_of(call.node.name, node, (axis,), "statistics are taken over them")
        if kind == "reduce":
            axes = call.axes(call.args[0])
            over = tuple(axes[i] for i in reduced(call))
            self._none_of(call.node.name, call.args[0], over, "they are reduced to one number")
        if kind == "convolution":
            _, within, *_ = convolution_parts(call, self.anatomy.store)
            dims = self._of(call.args[0]) & self._leaves((within,))
            if dims:
                weight = [(call.args[1], 0 if is_transposed(call) else 1)]
                self._leave_out(call, call.args[0], dims, weight)
            return self._of(call.args[0]) - dims
        return NONE.union(*(self._of(node) for node, _ in call.tensors()))

    def _leave_out(self, call: Call, node: fx.Node, dims: Dims, takers: list[tuple[fx.Node, int]]) -> None:
        """Note which axes of a parameter are summed with a partial value."""
        noted = False
        for other, axis in takers:
            value: Value | None = call.value(other)
            if self.roles.shares(value, axis) and other is not node:
                assert value is not None and value.origin is not None
                noted = True
                for place in value.origin.axes[axis]:
                    table = self.readers.setdefault(value.origin.parameter, {})
                    table[place] = table.get(place, NONE) | dims
        if not noted:
            reason = "they are summed with no parameter that could leave them out"
            raise self._refusal(call.node.name, node, dims, reason)

    def _none_of(self, where: str, node: fx.Node, axes: tuple[Axis, ...], reason: str) -> None:
        dims = self._of(node) & self._leaves(axes)
        if dims:
            raise self._refusal(where, node, dims, reason)

    def _refusal(self, where: str, node: fx.Node, dims: Set[int], reason: str) -> PlanError:
        known, dim = self.comes_from[node.name], min(dims)
        index, label = self.maps.placed[dim], self.anatomy.store.labels[dim]
        size, held = len(index), int((index != NEW).sum())
        enters = next(user.name for user in self.anatomy.nodes[known].users if computes(user))
        return fail(
            PlanError,
            "S331",
            f"{op_name(self.anatomy.nodes[where])} would read channels that the source lacks: {reason}",
            notes=(
                self.anatomy.where(where),
                f"{self.what[known]} holds the source's values at {held} of {size} channels, others between",
                f"it enters {self.anatomy.where(enters)}",
            ),
            help=f"{label or 'that dim'} cannot grow: grow dims that this value does not depend on "
            "(ffn, head_dim)",
        )


__all__ = ["Partial", "infer_partial", "measured_dims"]
