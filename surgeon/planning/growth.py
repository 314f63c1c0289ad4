"""What a recipe asks for, in the words of a model: config fields for a transformers model, dims for a
plain module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from math import inf
from typing import Any

from surgeon.axes.maps import Index, Maps, clone_map
from surgeon.axes.store import Axis
from surgeon.errors import PlanError, fail
from surgeon.graph.inference import Anatomy
from surgeon.graph.places import place_of
from surgeon.language.report import nearest
from surgeon.language.syntax import AxisDim, ConfigDim, Family, FileField, Grow, NamedDim, Recipe
from surgeon.planning.drafts import draft
from surgeon.planning.roles import braces, matches

Size = int | float | Sequence[int]
"""What a config field says: one size, one for each layer or piece, or a factor that the class takes all
widths by."""


def is_size(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(is_size(v) and isinstance(v, int) for v in value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_factor(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < inf


@dataclass(frozen=True)
class Request:
    """Config fields and what they become, with notes on names that found no field."""

    changes: Mapping[str, Size]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # dim name -> its fields
    notes: tuple[str, ...] = ()


def amount(grow: Grow, size: int, what: str) -> int:
    """The target size that a growth gives `size`. Raises PlanError S310 when it is no whole number
    or smaller than the source."""
    if size < 1:
        raise fail(PlanError, "S310", f"{what} is {size}: there is nothing to grow", span=grow.span)
    if grow.by is not None:
        exact = Fraction(size) * grow.by
        if exact.denominator != 1:
            raise fail(
                PlanError, "S310", f"{what}: {size} times {grow.by} is not a whole number", span=grow.span
            )
        target = int(exact)
    elif grow.to is not None:
        target = grow.to
    else:
        assert grow.multiple_of is not None
        target = -(-size // grow.multiple_of) * grow.multiple_of
    if target < size:
        raise fail(
            PlanError,
            "S310",
            f"{what} would shrink from {size} to {target}",
            span=grow.span,
            help="surgeon grows; ask for the source's size or more",
        )
    return target


def family_for(model_type: str, families: tuple[Family, ...]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The dim names that hold for a model type: the general family's, overlaid by its own."""
    names: dict[str, tuple[tuple[str, ...], ...]] = {}
    for wanted in ("*", model_type):
        for family in families:
            if wanted in family.model_types:
                names.update({d.name: d.fields for d in family.dims})
    return names


def file_fields(model_type: str, families: tuple[Family, ...]) -> tuple[FileField, ...]:
    """What side files say of a model type's config fields."""
    return tuple(
        f for family in families if {"*", model_type} & set(family.model_types) for f in family.files
    )


def config_request(
    recipe: Recipe,
    model_type: str,
    families: tuple[Family, ...],
    read: Callable[[str], Any],
    fields_of_axis: Callable[[AxisDim], tuple[str, ...]],
    known: Collection[str] = (),
    own_name: Callable[[str], str] = str,
) -> Request:
    """The config fields that a recipe changes.

    Args:
        read: the value of a config field, None when the config has no such field or no value.
        fields_of_axis: the fields that carry a dim named by a parameter's axis.
        known: the fields that hold a size, to name the nearest of.
        own_name: one name for a field that the class knows by two.

    Raises PlanError S311 for an unknown dim, S312 for a growth of some layers only, S310 for sizes, S313
    where the config states no size for anything named, S314 for a field that would get two.
    """
    names = family_for(model_type, families)
    changes: dict[str, Size] = {}
    used: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    asked: dict[str, Size] = {}
    unsized: dict[str, None] = {}
    for grow in recipe.grows:
        if grow.at:
            raise fail(
                PlanError,
                "S312",
                f"{model_type}: its config has one number for all layers, so some layers cannot grow alone",
                span=grow.span,
                help="drop `at`, or grow the model as a plain module with package.module:factory",
            )
        for target in grow.targets:
            label, fields = _fields(target, names, read, fields_of_axis, model_type, known)
            if not fields:
                unsized[label] = None
                notes.append(
                    f"{label}: no field of this config is named for it, so it stays, or follows what grows"
                )
                continue
            used[label] = fields
            sizes: dict[str, Size] = {f: read(f) for f in fields}
            lead = next(iter(fields))
            ratio = _ratio(grow, sizes[lead], f"{label} ({lead})")
            for name, size in sizes.items():
                target_size: Size
                if isinstance(size, float):
                    target_size = size * float(ratio)
                elif isinstance(size, Sequence):
                    target_size = [each if each == 1 else _times(each, ratio, name, grow) for each in size]
                    if 1 in size:
                        notes.append(f"{name}: what is 1 stays 1, as an axis of size one cannot grow")
                elif size == 1 and len(fields) > 1:
                    notes.append(f"{name} stays 1: one head is shared by all queries")
                    continue
                else:
                    target_size = _times(size, ratio, name, grow)
                if (before := asked.setdefault(own_name(name), target_size)) != target_size:
                    raise fail(
                        PlanError,
                        "S314",
                        f"config.{own_name(name)} is asked to grow to {before} and to {target_size}",
                        span=grow.span,
                        help="name each dim once",
                    )
                _set(changes, name, target_size, read)
    if not used:
        raise fail(
            PlanError,
            "S313",
            f"{model_type}: nothing would grow, as no field of its config is named for {', '.join(unsized)}",
            help="surgeon dims MODEL lists what grows; name a field of the config: grow config.FIELD by 2",
        )
    return Request(changes, used, tuple(notes))


def _set(changes: dict[str, Size], name: str, size: Size, read: Callable[[str], Any]) -> None:
    """Note a field's new size; that of an entry of a list (`widths.1`) within the list."""
    whole, _, last = name.rpartition(".")
    if not (last.isdigit() and isinstance(size, int)):
        changes[name] = size
        return
    sizes = changes.get(whole, read(whole))
    assert isinstance(sizes, Sequence)
    changes[whole] = [size if i == int(last) else other for i, other in enumerate(sizes)]


def _ratio(grow: Grow, leading: Size, what: str) -> Fraction:
    """By how much the fields of a dim grow, told by the first of them."""
    if isinstance(leading, float):
        if grow.by is None or grow.by < 1:
            raise fail(
                PlanError,
                "S310",
                f"{what} is a factor of all widths, now {leading:g}",
                span=grow.span,
                expected="by and a number of at least 1",
            )
        return grow.by
    first = max(leading) if isinstance(leading, Sequence) else leading
    return Fraction(amount(grow, first, what), first)


def _times(size: int, ratio: Fraction, name: str, grow: Grow) -> int:
    grown = size * ratio
    if grown.denominator != 1:
        message = f"{name}: {size} times {ratio} is not a whole number"
        raise fail(PlanError, "S310", message, span=grow.span)
    return int(grown)


def _fields(
    target: NamedDim | ConfigDim | AxisDim,
    names: Mapping[str, tuple[tuple[str, ...], ...]],
    read: Callable[[str], Any],
    fields_of_axis: Callable[[AxisDim], tuple[str, ...]],
    model_type: str,
    known: Collection[str],
) -> tuple[str, tuple[str, ...]]:
    if isinstance(target, AxisDim):
        return f'axis("{target.parameter}", {target.axis})', fields_of_axis(target)
    if isinstance(target, ConfigDim):
        value = read(target.field)
        factors = {f for dim in names.values() for f in sum(dim, ()) if is_factor(read(f))}
        if not (is_size(value) or target.field in factors) or target.field.endswith("_token_id"):
            near = nearest(target.field, known)
            raise fail(
                PlanError,
                "S311",
                f"the config of {model_type} has no size {target.field}",
                span=target.span,
                expected=None if near else ", ".join(sorted(f for f in known if is_size(read(f)))) or None,
                help=near,
            )
        return f"config.{target.field}", (target.field,)
    if target.name not in names:
        raise fail(
            PlanError,
            "S311",
            f"no family names a dim {target.name} for {model_type}",
            span=target.span,
            expected=", ".join(sorted(names)),
            help=nearest(target.name, names) or "name it by field: grow config.FIELD by 2",
        )
    found = []
    for alternatives in names[target.name]:
        field_name = next((f for f in alternatives if is_size(read(f)) or is_factor(read(f))), None)
        if field_name is not None:
            found.append(field_name)
    return target.name, tuple(found)


def unknown_parameter(target: AxisDim, known: Sequence[str]) -> PlanError:
    """The error that tells of an axis of a parameter that is not there, and the nearest of those `known`."""
    return fail(
        PlanError,
        "S311",
        f"no parameter is named {target.parameter}",
        span=target.span,
        help=nearest(target.parameter, known) or "surgeon dims MODEL lists them",
    )


def axis_targets(recipe: Recipe, anatomy: Anatomy) -> dict[int, Index]:
    """For a plain module: the channel maps of the dims that a recipe's axes name.

    Raises PlanError S311 (no such parameter or axis), S314 (the axis is several dims).
    """
    dims: dict[int, Index] = {}
    parameters = [*anatomy.captured.parameters.values(), *anatomy.captured.buffers.values()]
    for grow in recipe.grows:
        for target in grow.targets:
            if not isinstance(target, AxisDim):
                raise fail(
                    PlanError,
                    "S311",
                    "a plain module has no config: name dims by a parameter's axis",
                    span=target.span,
                    help='for example: grow axis("fc1.weight", 0) by 2',
                )
            found = [
                name
                for name in parameters
                if any(fnmatchcase(name, p) for p in braces(target.parameter)) and matches(grow.at, name)
            ]
            if not found:
                raise unknown_parameter(target, [*parameters])
            for name, dim in ((n, d) for n in found for d in _named_dims(anatomy, n, target, grow)):
                size = anatomy.store.sizes[dim]
                grown = clone_map(size, amount(grow, size, f"{name} axis {target.axis}"))
                if dim in dims and len(dims[dim]) != len(grown):
                    raise fail(
                        PlanError,
                        "S314",
                        f"{name} axis {target.axis} is of a dim that is asked to grow to {len(dims[dim])} "
                        f"and to {len(grown)}",
                        span=grow.span,
                        help="surgeon dims MODEL shows which axes are one dim",
                    )
                dims[dim] = grown
    return {dim: index for dim, index in dims.items() if len(index) != anatomy.store.sizes[dim]}


def _named_dims(anatomy: Anatomy, name: str, target: AxisDim, grow: Grow) -> list[int]:
    """The dims that a parameter's axis names: of a product its first growable factor; of pieces laid end to
    end that of each, which all grow by one factor.

    Raises PlanError S311 for an axis that is not there, S314 where pieces are asked to grow to a size.
    """
    axes, store = anatomy.parameter_axes(name), anatomy.store
    if not 0 <= target.axis < len(axes):
        raise fail(
            PlanError, "S311", f"{name} has {len(axes)} axes, none numbered {target.axis}", span=target.span
        )
    axis = axes[target.axis]
    if any(isinstance(f, int) for f in axis):
        return [_first_factor(anatomy, axis)]
    if grow.by is None:
        raise fail(
            PlanError,
            "S314",
            f"{name} axis {target.axis} is several dims laid end to end: {store.show(axis)}",
            span=target.span,
            help="grow it by a factor, or name one of them by another parameter's axis",
        )
    return list(dict.fromkeys(_first_factor(anatomy, word) for word in store.words(axis) if word))


def _first_factor(anatomy: Anatomy, axis: Axis) -> int:
    """The first growable factor of a product; the first one, with the reasons that pin it, where none is."""
    factors = [f for f in axis if isinstance(f, int)]
    return next((f for f in factors if not anatomy.store.pins_of(f)), factors[0])


def refuse_pinned(anatomy: Anatomy, maps: Maps) -> None:
    """Raise PlanError S301..S308 when a dim that grows is pinned, with every reason."""
    for dim in maps.dims:
        pins = anatomy.store.pins_of(dim)
        if not pins:
            continue
        label, size = anatomy.store.labels[dim], anatomy.store.sizes[dim]
        missing = next((p for p in pins if p.code == "S308"), None)
        help_text = None
        if missing is not None:
            node = anatomy.nodes[missing.node]
            place = place_of(node)
            help_text = (
                "write its rule in a .surgery file and `use` it (`surgeon check --rules FILE` tries it on "
                f"the op); a first draft, by the shapes here: {draft(node, anatomy.captured.shapes)}"
            )
            if "parametrizations" in place.module.split("."):
                help_text = (
                    "take the parametrization away first, and the weight that it makes may grow: "
                    "torch.nn.utils.parametrize.remove_parametrizations"
                )
        raise fail(
            PlanError,
            pins[0].code,
            f"{label} (size {size}) cannot grow to {len(maps.dims[dim])}",
            notes=tuple(anatomy.describe_pin(pin) for pin in pins[:5]),
            help=help_text,
        )
