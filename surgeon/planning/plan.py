"""The plan: everything that will change, before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx

from surgeon.axes.maps import Maps
from surgeon.graph.captured import Captured
from surgeon.graph.inference import Anatomy
from surgeon.graph.places import op_name, starred
from surgeon.language.syntax import Recipe
from surgeon.planning.cells import Drift
from surgeon.planning.contradictions import refuse_conflicts
from surgeon.planning.equations import Equations, solve_scales
from surgeon.planning.growth import axis_targets, refuse_pinned
from surgeon.planning.native import NativeGrowth
from surgeon.planning.outputs import Factors, in_words, loose_outputs, scaled_outputs
from surgeon.planning.partial import Partial, infer_partial
from surgeon.planning.roles import Roles, infer_roles, matches, module_of
from surgeon.planning.transforms import Transform, addressed, build_transforms


@dataclass(frozen=True)
class GrownDims:
    """One line of the plan: dims that grow alike, under one label with layers written ``*``."""

    label: str
    size: int
    target: int
    dims: int  # how many


@dataclass(frozen=True)
class Plan:
    """What a recipe does to a model.

    `transforms` is keyed by parameter or buffer name (the name the graph uses: `aliases` leads every
    tied name to it).
    """

    recipe: Recipe
    anatomy: Anatomy = field(repr=False)
    maps: Maps = field(repr=False)
    equations: Equations = field(repr=False)
    roles: Roles = field(repr=False)
    transforms: Mapping[str, Transform] = field(repr=False)
    config_changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    grown: Captured | None = field(default=None, repr=False)  # the grown class's graph
    native: NativeGrowth | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    partial: Partial = field(default=Partial(), repr=False)

    @property
    def aliases(self) -> Mapping[str, str]:
        return self.anatomy.captured.aliases

    @cached_property
    def grown_nodes(self) -> Mapping[str, fx.Node]:
        """The grown class's graph by node name."""
        return {n.name: n for n in self.grown.graph.nodes} if self.grown else {}

    def grown_dims(self) -> list[GrownDims]:
        store = self.anatomy.store
        groups: dict[tuple[str, int, int], int] = {}
        for dim, index in self.maps.dims.items():
            label = starred(store.labels[dim] or "what it makes of numbers")
            key = label, store.sizes[dim], len(index)
            groups[key] = groups.get(key, 0) + 1
        return [GrownDims(label, size, target, n) for (label, size, target), n in groups.items()]

    @cached_property
    def scaled_outputs(self) -> Factors:
        """The model's outputs that come out scaled, which the recipe does not ask to preserve."""
        return scaled_outputs(self.anatomy.captured, self.equations)

    def scaled(self) -> dict[str, tuple[float, ...]]:
        """Parameters that take a scale, and the scales of their pieces."""
        return {
            name: tuple(sorted({float(v) for v in t.scale[0].flat}))
            for name, t in self.transforms.items()
            if t.scale is not None
        }

    def parameter_counts(self) -> tuple[int, int]:
        """Parameters before and after, tied tensors once."""
        named = [
            self.transforms[n] for n in self.anatomy.captured.parameters.values() if n in self.transforms
        ]
        return sum(math.prod(t.source_shape) for t in named), sum(math.prod(t.target_shape) for t in named)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        before, after = self.parameter_counts()
        return {
            "recipe": self.recipe.name,
            "settings": {name: str(value) for name, value in self.recipe.parameters},
            "config": {name: list(change) for name, change in self.config_changes.items()},
            "parameters": {"source": before, "target": after},
            "dims": [vars(d) for d in self.grown_dims()],
            "scales": {name: list(values) for name, values in self.scaled().items()},
            "scaled_outputs": {name: list(values) for name, values in self.scaled_outputs.items()},
            "tensors": {
                name: {
                    "from": list(t.source_shape),
                    "to": list(t.target_shape),
                    "expansion": t.describe(),
                }
                for name, t in self.transforms.items()
                if t.changes
            },
            "notes": list(self.notes),
        }


def plan_growth(
    anatomy: Anatomy,
    recipe: Recipe,
    native: NativeGrowth | None = None,
    grown: Captured | None = None,
    config_changes: Mapping[str, tuple[Any, Any]] | None = None,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Channel maps, scales and transforms of a growth; `native` says how a transformers class grows,
    without it the recipe's own axes do.

    Raises PlanError S301..S308 (a pinned dim), S330 (scales that no parameter can take), S331 (a
    partial value that is read whole), S332 (an output to preserve that the model does not return).
    """
    loose = loose_outputs(recipe.preserve, anatomy.captured)
    maps = native.maps if native is not None else Maps(anatomy.store, axis_targets(recipe, anatomy))
    refuse_pinned(anatomy, maps)
    roles = infer_roles(anatomy, recipe)
    partial = infer_partial(
        anatomy, maps, roles, native.partial if native else {}, native.words if native else {}
    )
    drift, scales = (native.drift, native.scales) if native else ({}, {})

    def solve(maps: Maps, drift: Drift, released: frozenset[str] = frozenset()) -> Equations:
        return solve_scales(anatomy, maps, roles, drift, scales, loose | released)

    equations = solve(maps, drift)
    refuse_conflicts(anatomy, maps, drift, equations.system, native.placed if native else {}, solve)
    transforms = build_transforms(anatomy, maps, roles, equations, recipe, partial)
    return Plan(
        recipe,
        anatomy,
        maps,
        equations,
        roles,
        transforms,
        config_changes or {},
        grown,
        native,
        (
            *notes,
            *_scaled(anatomy, equations),
            *(_wider(anatomy, maps) if native is None else ()),
            *_unproved(anatomy, transforms),
            *_warnings(maps, transforms, recipe),
            *_unmet(anatomy, roles, recipe),
        ),
        partial,
    )


def _unmet(anatomy: Anatomy, roles: Roles, recipe: Recipe) -> Iterator[str]:
    """Module patterns of a recipe that fit nothing here: in all likelihood a slip."""
    names = {**anatomy.captured.buffers, **anatomy.captured.parameters}
    rules = [("spread", r.ops, r.at) for r in recipe.spreads] + [
        ("noise", r.ops, r.at) for r in recipe.noises
    ]
    for word, ops, at in rules:
        for pattern in at:
            if not any(addressed(ops, (pattern,), uses, names[p]) for p, uses in roles.uses.items()):
                yield f'{word} of {", ".join(ops)}: "{pattern}" fits no module that has any'
    for expand in recipe.expands:
        named = [(op_name(c.node), c) for c in anatomy.calls.values()]
        modules = [module_of(c) for op, c in named if expand.op in (op, op.rpartition(".")[0])]
        for pattern in expand.at:
            if not matches((pattern,), *modules):
                yield f'expand of {expand.op}: "{pattern}" fits no module that has any'


def _wider(anatomy: Anatomy, maps: Maps) -> list[str]:
    """What is to be said of outputs of a plain module that grow themselves."""
    notes = []
    for path, node in anatomy.captured.outputs:
        (value, *_) = anatomy.values[node.name]
        for i, axis in enumerate(value.axes if value is not None else ()):
            if maps.grows(axis):
                size, wide = anatomy.store.size(axis), maps.target_size(axis)
                what = path or "the output"
                notes.append(
                    f"{what} grows itself: axis {i} is {size} → {wide}, each value several times over"
                )
    return notes


def _scaled(anatomy: Anatomy, equations: Equations) -> tuple[str, ...]:
    """What is not preserved to the letter."""
    scaled = scaled_outputs(anatomy.captured, equations)
    return (f"{in_words(scaled)}, as the recipe asks to preserve other outputs",) if scaled else ()


def _unproved(anatomy: Anatomy, transforms: Mapping[str, Transform]) -> tuple[str, ...]:
    """What grows without a proof: weights that the traced pass does not read."""
    captured = anatomy.captured
    names = [captured.parameters[p] for p in captured.unread]
    grown = [name for name in names if name in transforms and transforms[name].changes]
    if not grown:
        return ()
    named = ", ".join(grown[:4]) + (", …" if len(grown) > 4 else "")
    strange = [name for name in grown if name not in captured.layers]
    how = "they grow as their layers read them, and what they compute is not proved"
    if strange:
        how += f"; {len(strange)} of them are of no layer of torch's own ({strange[0]}), and are copied"
    return (
        f"{len(grown)} weights that grow are not read by the pass that is traced and proved ({named}): {how}",
    )


def _warnings(maps: Maps, transforms: Mapping[str, Transform], recipe: Recipe) -> tuple[str, ...]:
    noisy = any(t.noise is not None for t in transforms.values())
    uneven = any(
        a.spread is not None
        and a.spread.name == "uneven"
        and len(set(a.spread.weights)) == len(a.spread.weights) > a.numbers.max(initial=0)
        for t in transforms.values()
        for a in t.axes
    )
    if not maps.dims or noisy or uneven:
        return ()
    return (
        "exact clones receive identical gradients and never separate in training: "
        "add noise or an uneven spread with another weight for each copy",
    )
