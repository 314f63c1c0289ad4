"""What happens to each parameter: index maps, shares, scales, noise. A value of the plan, no tensors.

The expansion itself is :mod:`surgeon.rewriting.weights`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from surgeon.axes.maps import NEW, Index, Maps, copies_of, copy_number, filled_map
from surgeon.errors import PlanError, fail
from surgeon.graph.calls import Axes
from surgeon.graph.inference import Anatomy
from surgeon.graph.places import op_name
from surgeon.language.syntax import Recipe, Spread
from surgeon.planning.equations import Equations
from surgeon.planning.fresh import carrying
from surgeon.planning.partial import Partial
from surgeon.planning.roles import Roles, Use, matches, module_of

SYMMETRIC = Spread("symmetric")
FIRST = Spread("first")


@dataclass(frozen=True)
class AxisGrowth:
    """How one axis grows: the map of its channels, whether it is shared out, and how."""

    size: int
    target: int
    index: Index | None = field(repr=False)  # None: unchanged
    spread: Spread | None = None  # None: copied

    @property
    def copies(self) -> int:
        return self.target // self.size

    @cached_property
    def is_clone(self) -> bool:
        """Whether the axis is repeated whole: channel j copies ``j mod size``."""
        if self.index is None or self.target % self.size:
            return False
        return bool((self.index == np.arange(self.target) % self.size).all())

    @cached_property
    def numbers(self) -> Index:
        """For each target channel the how-manieth copy of its source channel it is."""
        assert self.index is not None
        return copy_number(self.index, self.size)

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """Per target channel of a consumed axis its share; the shares of the copies of a channel sum
        to one. The diagonal spread, whose shares depend on the reader, is not a matter of one axis."""
        assert self.index is not None and self.spread is not None
        carried = self.index != NEW
        if self.spread.name == "first":
            raw = (self.numbers == 0).astype(np.float64)
        elif self.spread.name == "uneven":
            weights = np.array([float(w) for w in self.spread.weights])
            raw = weights[self.numbers % len(weights)]
        else:
            raw = np.ones(len(self.numbers))
        raw = np.where(carried, raw, 0.0)
        total = np.bincount(self.index[carried], weights=raw[carried], minlength=self.size)
        return raw / np.where(carried, total[np.maximum(self.index, 0)], 1.0)


@dataclass(frozen=True)
class Noise:
    """Null-space noise: signal-to-noise ratio in decibel, and the tensor's own seed."""

    snr: float
    seed: int


@dataclass(frozen=True)
class Transform:
    """The expansion of one tensor: ``s·E(w + c) - c`` with shares and noise along summed axes."""

    name: str
    axes: tuple[AxisGrowth, ...]
    scale: tuple[NDArray[np.float64], tuple[Index, ...]] | None  # cells, and each channel's cell
    offset: float = 0.0
    noise: Noise | None = None

    @property
    def source_shape(self) -> tuple[int, ...]:
        return tuple(a.size for a in self.axes)

    @property
    def target_shape(self) -> tuple[int, ...]:
        return tuple(a.target for a in self.axes)

    @property
    def changes(self) -> bool:
        return self.scale is not None or any(a.index is not None for a in self.axes)

    @property
    def consumed(self) -> tuple[int, ...]:
        """The axes that are shared out over copies."""
        return tuple(i for i, a in enumerate(self.axes) if a.spread is not None and a.index is not None)

    @property
    def is_parted(self) -> bool:
        """Whether each position of the first axis, an expert say, is expanded by itself. Noise is then
        at its level for each channel of it."""
        if len(self.axes) < 3 or self.axes[0].index is not None or self.axes[0].spread is not None:
            return False
        return self.noise is None or self.consumed[0] > 1

    def at(self, position: int) -> Transform:
        """The expansion of what is at one position of the first axis."""
        scale, noise = self.scale, self.noise
        if scale is not None:
            cells, (first, *others) = scale
            scale = cells[first[position]], tuple(others)
        if noise is not None:
            noise = Noise(noise.snr, zlib.crc32(f"{noise.seed}:{position}".encode()))
        return Transform(self.name, self.axes[1:], scale, self.offset, noise)

    def describe(self) -> str:
        """In the language's own words: ``copy(0) * share(1) symmetric * 0.5``."""
        words = [
            f"share({i}) {axis.spread.name}" if axis.spread else f"copy({i})"
            for i, axis in enumerate(self.axes)
            if axis.index is not None
        ]
        if self.scale is not None:
            values = sorted({round(float(v), 6) for v in self.scale[0].flat})
            words.append("/".join(f"{v:g}" for v in values))
        if self.noise is not None:
            words.append(f"noise {self.noise.snr:g} dB")
        return " * ".join(words) or "unchanged"


def build_transforms(
    anatomy: Anatomy,
    maps: Maps,
    roles: Roles,
    equations: Equations,
    recipe: Recipe,
    partial: Partial,
) -> dict[str, Transform]:
    """The transform of every parameter and buffer of the graph, by its own name. What makes new channels is
    zero there, or a copy where that may be."""
    captured, filled = anatomy.captured, carrying(anatomy, maps, roles)
    copied = Maps(maps.store, {d: filled_map(index, maps.store.sizes[d]) for d, index in maps.dims.items()})
    transforms = {}
    for table in (captured.parameters, captured.buffers):
        for placeholder, name in table.items():
            value = anatomy.values[placeholder][0]
            if value is None or captured.aliases.get(name, name) != name:
                continue
            axes = tuple(anatomy.store.resolve(a) for a in value.axes)
            made = copied if placeholder in filled else maps
            growths = _growths(placeholder, name, axes, made, maps, roles, recipe, partial)
            transforms[name] = _transform(placeholder, name, axes, growths, maps, roles, equations, recipe)
    return transforms


def _growths(
    placeholder: str,
    name: str,
    axes: Axes,
    made: Maps,
    maps: Maps,
    roles: Roles,
    recipe: Recipe,
    partial: Partial,
) -> tuple[AxisGrowth, ...]:
    """How each axis of a parameter grows: by the maps `made` where it is produced."""
    shared = roles.shared.get(placeholder, frozenset())
    uses = roles.uses.get(placeholder, ())
    growths = []
    for i, axis in enumerate(axes):
        size, target = maps.store.size(axis), maps.target_size(axis)
        if not maps.grows(axis):
            growths.append(AxisGrowth(size, target, None))
            continue
        index = made.index(axis)
        spread = None
        if i in shared:
            spread = FIRST if i in roles.first.get(placeholder, ()) else _spread(uses, name, recipe)
            index = maps.index(axis, partial.read_along(placeholder, i))  # what is not read is NEW here
            if (copies_of(index, size) == 0).any():
                raise fail(PlanError, "S316", f"{name}: axis {i} would lose channels")
        growths.append(AxisGrowth(size, target, index, spread))
    return tuple(growths)


def _transform(
    placeholder: str,
    name: str,
    axes: Axes,
    growths: tuple[AxisGrowth, ...],
    maps: Maps,
    roles: Roles,
    equations: Equations,
    recipe: Recipe,
) -> Transform:
    uses = roles.uses.get(placeholder, ())
    cells = equations.parameters.get(placeholder)
    scale = None
    if cells is not None:
        numbers = np.vectorize(equations.system.value, otypes=[np.float64])(cells)
        if (numbers != 1.0).any():
            scale = numbers, tuple(maps.parts(axis) for axis in axes)
    noisy = any(g.spread is not None for g in growths)
    return Transform(
        name,
        growths,
        scale,
        equations.offsets.get(placeholder, 0.0),
        _noise(uses, name, recipe) if noisy else None,
    )


def addressed(ops: tuple[str, ...], at: tuple[str, ...], uses: tuple[Use, ...], name: str) -> bool:
    """Whether any of the ops that read parameter `name` is one of `ops`, at a module or name that fits."""
    for use in uses:
        op = op_name(use.call.node)
        names = {op, op.rpartition(".")[0], use.call.rule.tag or ""}
        if use.summed:  # whatever sums over a parameter is linear in it: experts by a batched product, too
            names.add("linear")
        if ("*" in ops or names & set(ops)) and matches(at, module_of(use.call), name):
            return True
    return False


def _spread(uses: tuple[Use, ...], name: str, recipe: Recipe) -> Spread:
    """The last spread of the recipe that addresses a reader of this parameter."""
    summing = tuple(use for use in uses if use.summed)
    for rule in reversed(recipe.spreads):
        if addressed(rule.ops, rule.at, summing, name):
            return rule.spread
    return SYMMETRIC


def _noise(uses: tuple[Use, ...], name: str, recipe: Recipe) -> Noise | None:
    for rule in reversed(recipe.noises):
        if addressed(rule.ops, rule.at, uses, name):
            seed = zlib.crc32(f"{recipe.seed}:{name}".encode())
            return None if rule.snr is None else Noise(rule.snr, seed)
    return None
