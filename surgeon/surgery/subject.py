"""A model made ready for surgery: captured, typed, and planned. The way from MODEL to Plan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor, nn

from surgeon.axes.store import Axis
from surgeon.checkpoints.reading import holds_weights, open_checkpoint
from surgeon.errors import ModelError, PlanError, SurgeonError, counted, fail
from surgeon.graph.captured import Captured
from surgeon.graph.closed import closed_nodes
from surgeon.graph.draws import refuse_draws
from surgeon.graph.inference import Anatomy, infer
from surgeon.graph.places import starred
from surgeon.language import builtin_families, builtin_rules
from surgeon.language.syntax import AxisDim, FileField, Program, Recipe
from surgeon.models.native import (
    build_config,
    build_meta,
    field_value,
    following_fields,
    numeric_fields,
    own_name,
    refusal,
)
from surgeon.models.source import Source, TransformersSource
from surgeon.models.stored import few_numbers
from surgeon.models.supply import Supply
from surgeon.models.ties import apart_in, untie
from surgeon.planning.growth import Size, config_request, file_fields, unknown_parameter
from surgeon.planning.native import companions, compare
from surgeon.planning.plan import Plan, plan_growth
from surgeon.surgery.tracing import TELLING, capture_class, capture_module, first_captured, taken_for_granted

KEPT_INPUTS = "its inputs are your own and keep their sizes: what is as wide as one of them cannot grow"
Stage = Callable[[str], None]


def quiet(_: str) -> None:
    """The stage that tells nobody."""


@dataclass(frozen=True)
class Subject:
    """A source model and its anatomy.

    `module` is on meta for a transformers model; `buffers` holds the real values of its buffers. `supply`
    is what it is traced and proved on; `unseen` says what else it reads beside words (pictures, sounds), and
    why it is not given that. `apart` are the parameters that the class ties and the checkpoint does not;
    `stored` are the buffers of few numbers that the checkpoint holds.
    """

    source: Source
    module: nn.Module = field(repr=False)
    anatomy: Anatomy = field(repr=False)
    buffers: Mapping[str, Tensor] = field(repr=False)
    known: frozenset[str] = field(repr=False)  # ops that have a rule
    supply: Supply = field(default=Supply(), repr=False)
    unseen: str = ""
    apart: frozenset[str] = frozenset()
    stored: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Surgery:
    """A planned growth of a subject; for a transformers model with the grown class's config, its module
    on meta, and its buffers."""

    subject: Subject
    plan: Plan
    config: Any = None
    module: nn.Module | None = field(default=None, repr=False)
    grown_buffers: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    file_fields: tuple[FileField, ...] = ()


def examine(source: Source, program: Program | None = None, stage: Stage = quiet) -> Subject:
    """Capture a model and infer its dims. Raises ModelError S210, S211, S220."""
    rules = (*builtin_rules(), *(program.rules if program else ()))
    known = frozenset(name for rule in rules for name in rule.names)
    stage("tracing the model")
    supply, unseen, apart, stored = Supply(), "", frozenset[str](), dict[str, Tensor]()
    if isinstance(source, TransformersSource):
        module, buffers = build_meta(source.config, source.model_class)
        if source.folder is not None and holds_weights(source.folder):
            checkpoint = open_checkpoint(source.folder)
            apart, stored = apart_in(module, checkpoint), few_numbers(module, checkpoint, TELLING)
            untie(module, apart)
        captured, supply, unseen = first_captured(module, known, source.inputs, {**buffers, **stored})
    else:
        module = source.module
        buffers = {name: b.detach() for name, b in module.named_buffers()}
        captured = capture_module(module, source.args, source.kwargs, known)
    stage("inferring dims")
    # The class is built anew, so what it makes of numbers is made anew; a plain module's graph stays.
    closed = closed_nodes(captured) if isinstance(source, TransformersSource) else frozenset()
    anatomy = infer(captured, rules, closed)
    return Subject(source, module, anatomy, buffers, known, supply, unseen, apart, stored)


def proved_for(subject: Subject) -> tuple[str, ...]:
    """What the proof of a model takes for granted, and what it leaves out."""
    captured = subject.anatomy.captured
    without = [*([subject.unseen] if subject.unseen else []), *captured.left_out]
    return (*taken_for_granted(captured.branches), *(f"proved without {what}" for what in without))


def plan_surgery(subject: Subject, recipe: Recipe, program: Program, stage: Stage = quiet) -> Surgery:
    """Plan a growth. Raises PlanError S3xx, ModelError S216, S220."""
    refuse_draws(subject.anatomy.captured, type(subject.module).__name__)
    if not isinstance(subject.source, TransformersSource):
        stage("planning")
        return Surgery(subject, plan_growth(subject.anatomy, recipe))
    source, anatomy = subject.source, subject.anatomy
    families = (*builtin_families(), *program.families)

    def read(name: str) -> Any:
        return field_value(source.config, name)

    def fields_of_axis(target: AxisDim) -> tuple[str, ...]:
        return _fields_of_axis(subject, target)

    fields = numeric_fields(source.config)
    names = partial(own_name, source.config)
    request = config_request(recipe, source.model_type, families, read, fields_of_axis, fields, names)
    taken = {own_name(source.config, name) for name in request.changes}
    rivals = {name: value for name, value in fields.items() if name in request.changes or name not in taken}
    extra = companions(
        request.changes, rivals, partial(_moved_dims, subject), partial(_refused_apart, subject)
    )
    changes = {**request.changes, **extra}
    notes = (
        *request.notes,
        *(f"config.{name} speaks of the same dim and grows along" for name in extra),
        *proved_for(subject),
    )
    stage("tracing the grown class")
    try:
        config, grown_module, grown_buffers, grown = _grown_class(subject, changes)
    except ModelError as refused:  # perhaps as one of its fields says what follows from others, and has not
        follows = following_fields(source.config, changes)
        if not follows:
            _refuse_wide_inputs(subject, changes)
            raise
        changes |= follows
        try:
            config, grown_module, grown_buffers, grown = _grown_class(subject, changes)
        except ModelError:
            _refuse_wide_inputs(subject, changes)
            raise refused from None
        notes += tuple(f"config.{name} follows from other fields, and follows them" for name in follows)
    stage("planning")
    with _told_of_ones({name: read(name) for name in changes}):
        native = compare(anatomy, grown, subject.buffers, grown_buffers)
    before = {name: (read(name), value) for name, value in changes.items()}
    plan = plan_growth(anatomy, recipe, native, grown, before, notes)
    files = file_fields(source.model_type, families)
    return Surgery(subject, plan, config, grown_module, grown_buffers, files)


def _grown_class(
    subject: Subject, changes: Mapping[str, Size]
) -> tuple[Any, nn.Module, dict[str, Tensor], Captured]:
    """The grown class's config, its module on meta, its buffers and its graph. Raises ModelError S220."""
    source = subject.source
    assert isinstance(source, TransformersSource)
    config = build_config(source.config, changes)
    module, buffers = build_meta(config, source.model_class, changes, apart=subject.apart)
    led = subject.anatomy.captured.led
    same = {n: b for n, b in subject.stored.items() if n in buffers and b.shape == buffers[n].shape}
    try:
        graph = capture_class(module, subject.module, subject.known, subject.supply, {**buffers, **same}, led)
    except ModelError as error:
        notes = error.diagnostics[0].notes + ((KEPT_INPUTS,) if subject.supply.given is not None else ())
        raise refusal(config, changes, error.__cause__ or error, notes) from error
    return config, module, buffers, graph


def _refuse_wide_inputs(subject: Subject, changes: Mapping[str, Size]) -> None:
    """Raise PlanError S301 where a field moves an axis of a parameter that an input of the model has, too:
    who makes the input would have to make another, and the larger class does not take it as it is. A field
    that moves no axis alone, as the number of heads that an input holds, moves it where it is a factor of one
    that other fields move."""
    assert isinstance(subject.source, TransformersSource)
    store, inputs = subject.anatomy.store, subject.anatomy.captured.inputs
    given = {
        store.resolve(axis): f"{node}[{i}]"
        for node in inputs
        for value in subject.anatomy.values[node]
        for i, axis in enumerate(value.axes if value is not None else ())
    }
    moved = {name: _moved_axes(subject, name) for name, target in changes.items() if isinstance(target, int)}
    axes = [(label, axis) for several in moved.values() for label, axis in several]
    factors = {dim: f"a factor of {label}" for label, axis in axes for dim in axis}
    for name, several in moved.items():
        target, size = changes[name], field_value(subject.source.config, name)
        within = [] if several else [axis for axis in given if len(axis) == 1 and store.size(axis) == size]
        told = [*several, *((factors[axis[0]], axis) for axis in within if axis[0] in factors)]
        for label, axis in told:
            if axis in given:
                raise fail(
                    PlanError,
                    "S301",
                    f"config.{name} cannot grow to {target}: an input of the model is as wide, {given[axis]} "
                    f"(size {store.size(axis)})",
                    notes=(f"it is one dim with {label}",),
                    help="what makes that input would have to grow with the model; if the class takes "
                    "another in its stead, give that: --inputs FILE",
                )


@contextlib.contextmanager
def _told_of_ones(before: Mapping[str, Any]) -> Iterator[None]:
    """Tells, where the grown class's sizes do not fit, which fields were one: such an axis is like one that
    repeats, and what was inferred of it holds for no other size."""
    try:
        yield
    except PlanError as error:
        notes = tuple(
            f"config.{name} is 1 in the source, and an axis of size one may not grow"
            for name, value in before.items()
            if value == 1
        )
        if not notes:
            raise
        first, *others = error.diagnostics
        raise PlanError(replace(first, notes=(*first.notes, *notes)), *others) from error


def _probe(subject: Subject, *names: str) -> dict[str, tuple[int, ...]] | None:
    """The shapes of what a checkpoint holds of the class with fields doubled; None when it refuses that."""
    assert isinstance(subject.source, TransformersSource)
    values = {name: field_value(subject.source.config, name) for name in names}
    try:
        config = build_config(subject.source.config, {name: value * 2 for name, value in values.items()})
        module, _ = build_meta(config, subject.source.model_class, apart=subject.apart)
    except SurgeonError:
        return None
    return {name: tuple(held.shape) for name, held in module.state_dict().items()}


def _refused_apart(subject: Subject, name: str, other: str) -> bool:
    """Whether the class takes two fields doubled, and neither of them alone."""
    alone = any(_probe(subject, field) is not None for field in (name, other))
    return not alone and _probe(subject, name, other) is not None


def _moved_axes(subject: Subject, name: str) -> list[tuple[str, Axis]]:
    """The axes that move with a config field, in words and resolved: of parameters, and of buffers that a
    checkpoint holds."""
    shapes = _probe(subject, name) or {}
    captured, found = subject.anatomy.captured, []
    for parameter in (*captured.parameters.values(), *captured.buffers.values()):
        axes, after = subject.anatomy.parameter_axes(parameter), shapes.get(parameter, ())
        if len(after) == len(axes):
            found += [
                (f"{parameter}[{i}]", axis)
                for i, (axis, size) in enumerate(zip(axes, after, strict=True))
                if size != subject.anatomy.store.size(axis)
            ]
    return found


def _moved_dims(subject: Subject, name: str) -> frozenset[int]:
    """The dims that move with a config field: those of axes that are one dim alone."""
    moved = [axis for _, axis in _moved_axes(subject, name)]
    return frozenset(axis[0] for axis in moved if len(axis) == 1 and isinstance(axis[0], int))


def _fields_of_axis(subject: Subject, target: AxisDim) -> tuple[str, ...]:
    """The config fields that move a parameter's axis, found by probing."""
    assert isinstance(subject.source, TransformersSource)
    found = []
    known = list(subject.anatomy.captured.parameters.values())
    names = [n for n in known if fnmatchcase(n, target.parameter)]
    if not names:
        raise unknown_parameter(target, [*dict.fromkeys((*map(starred, known), *known))])
    if not any(0 <= target.axis < len(subject.anatomy.parameter_axes(n)) for n in names):
        raise fail(
            PlanError,
            "S311",
            f"{names[0]} has {counted(len(subject.anatomy.parameter_axes(names[0])), 'axis', 'axes')}, none "
            f"numbered {target.axis}",
            span=target.span,
            help="the first axis is 0",
        )
    for name, value in numeric_fields(subject.source.config).items():
        for parameter in names[:1]:
            axes = subject.anatomy.parameter_axes(parameter)
            if target.axis >= len(axes) or subject.anatomy.store.size(axes[target.axis]) % value:
                continue
            shapes = _probe(subject, name)
            after = shapes.get(parameter) if shapes else None
            if after and after[target.axis] != subject.anatomy.store.size(axes[target.axis]):
                found.append(name)
    return tuple(found)
