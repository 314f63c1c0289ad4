"""A model made ready for surgery: captured, typed, and planned. The way from MODEL to Plan."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor, nn

from surgeon.axes.store import Axis
from surgeon.checkpoints.reading import holds_weights, open_checkpoint
from surgeon.errors import ModelError, PlanError, SurgeonError, counted, fail
from surgeon.graph.capture import capture, dynamic_batch, raised_at, silently
from surgeon.graph.captured import Captured
from surgeon.graph.closed import closed_nodes
from surgeon.graph.draws import refuse_draws
from surgeon.graph.inference import Anatomy, infer
from surgeon.graph.places import starred
from surgeon.language import builtin_families, builtin_rules
from surgeon.language.syntax import AxisDim, FileField, Program, Recipe
from surgeon.models.inputs import alone, blind_to, in_choices, pictured
from surgeon.models.native import (
    build_config,
    build_meta,
    field_value,
    following_fields,
    numeric_fields,
    own_name,
    reason,
    refusal,
)
from surgeon.models.pictures import failure, runs_on
from surgeon.models.source import Source, TransformersSource
from surgeon.models.supply import Supply
from surgeon.models.ties import apart_in, untie
from surgeon.planning.growth import Size, config_request, file_fields, unknown_parameter
from surgeon.planning.native import companions, compare
from surgeon.planning.plan import Plan, plan_growth
from surgeon.verification.traced import Called

FEW = 3  # things named before a list is cut short
LONG = 120  # characters, of what the model finds
OWN_INPUTS = "its inputs were made up: --inputs FILE gives your own, a safetensors file with tensors by name"
GIVEN_INPUTS = "its inputs are your own: are their dtypes, shapes and numbers what its forward pass takes?"
FAULT = "do the sizes in its config go together, and with its inputs?"
ALONE = "several examples at once, which the class does not take"
KEPT_INPUTS = "its inputs are your own and keep their sizes: what is as wide as one of them cannot grow"
SIZES = re.compile(r"\b(sizes?|shapes?|dimensions?)\b")
Stage = Callable[[str], None]


def quiet(_: str) -> None:
    """The stage that tells nobody."""


@dataclass(frozen=True)
class Subject:
    """A source model and its anatomy.

    `module` is on meta for a transformers model; `buffers` holds the real values of its buffers. `supply`
    is what it is traced and proved on; `unseen` says what else it reads beside words (pictures, sounds), and
    why it is not given that. `apart` are the parameters that the class ties and the checkpoint does not.
    """

    source: Source
    module: nn.Module = field(repr=False)
    anatomy: Anatomy = field(repr=False)
    buffers: Mapping[str, Tensor] = field(repr=False)
    known: frozenset[str] = field(repr=False)  # ops that have a rule
    supply: Supply = field(default=Supply(), repr=False)
    unseen: str = ""
    apart: frozenset[str] = frozenset()


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
    supply, unseen, apart = Supply(), "", frozenset[str]()
    if isinstance(source, TransformersSource):
        module, buffers = build_meta(source.config, source.model_class)
        if source.folder is not None and holds_weights(source.folder):
            apart = apart_in(module, open_checkpoint(source.folder))
            untie(module, apart)
        captured, supply, unseen = _first_captured(module, known, source.inputs, buffers)
    else:
        module = source.module
        buffers = {name: b.detach() for name, b in module.named_buffers()}
        shapes = dynamic_batch(source.args, source.kwargs)
        try:
            captured = capture(module, source.args, source.kwargs, shapes, known)
        except ModelError as error:
            raise _told_of_calls(error, module, _failure(module, source.args, source.kwargs)) from error
    stage("inferring dims")
    # The class is built anew, so what it makes of numbers is made anew; a plain module's graph stays.
    closed = closed_nodes(captured) if isinstance(source, TransformersSource) else frozenset()
    return Subject(source, module, infer(captured, rules, closed), buffers, known, supply, unseen, apart)


def _first_captured(
    module: nn.Module,
    known: frozenset[str],
    given: Mapping[str, Tensor] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
) -> tuple[Captured, Supply, str]:
    """The graph of a transformers class, what it was traced on, and why pictures among its words are left
    out, if they are."""
    supply, words = Supply(given), Supply(given, pictures=False)
    try:
        captured = _captured(module, module, known, supply, buffers)
        return captured, supply, blind_to(module) if given is None else ""
    except ModelError as error:
        if given is None and pictured(module):
            with contextlib.suppress(ModelError):  # the first says more
                captured = _captured(module, module, known, words, buffers)
                return captured, words, f"pictures: {error.diagnostics[0].message}"
        if error.code != "S210":
            raise
        for laid, unseen in ((Supply(lay=in_choices), ""), (Supply(lay=alone), ALONE)):
            if given is None and runs_on(module, laid.batch(module)):
                return _captured(module, module, known, laid, buffers), laid, unseen
        told = _told_of_calls(error, module, failure(module, supply.batch(module)))
        first, *others = told.diagnostics
        note = OWN_INPUTS if given is None else GIVEN_INPUTS
        raise ModelError(replace(first, notes=(*first.notes, note)), *others) from error


def proved_for(subject: Subject) -> tuple[str, ...]:
    """What the proof of a model takes for granted, and what it leaves out."""
    captured = subject.anatomy.captured
    without = [*([subject.unseen] if subject.unseen else []), *captured.left_out]
    return (*_taken_for_granted(captured.branches), *(f"proved without {what}" for what in without))


def _told_of_calls(error: ModelError, module: nn.Module, failed: Exception | None) -> ModelError:
    """What is said of a module that cannot be captured: where it cannot be called either, that. One without
    data fails at much for want of it: of that only sizes that do not go together count, met where the trace
    met them."""
    cause = error.__cause__
    if error.code != "S210" or failed is None or cause is None:
        return error
    dataless = any(parameter.is_meta for parameter in module.parameters())
    notes, said = error.diagnostics[0].notes, (str(failed), str(cause))
    if dataless and not (raised_at(failed)[:1] == notes[:1] and all(map(SIZES.search, said))):
        return error
    return fail(
        ModelError,
        "S210",
        f"{type(module).__name__} fails when it is called, traced or not: {reason(failed)}",
        notes=notes,
        help=FAULT if dataless else "does it run on these inputs, on this device and in this dtype?",
    )


def _failure(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Exception | None:
    """The error with which a plain module fails on its inputs; None where it runs."""
    try:
        with silently():
            Called(module, args, kwargs).answer(graded=False)
    except Exception as failed:  # of whatever kind: it is the module's own
        return failed
    return None


def _captured(
    module: nn.Module,
    source: nn.Module,
    known: frozenset[str],
    supply: Supply,
    buffers: Mapping[str, Tensor] | None = None,
    led: bool = False,
) -> Captured:
    """The graph of a transformers class, on the inputs of the source; `led`, as they lead. The class itself
    goes on to check its inputs; its checks speak of sizes that grow."""
    values, inputs = supply.batch(source), supply.example(source)
    numbers = {k: b for k, b in (buffers or {}).items() if b.ndim == 0 and not b.is_floating_point()}
    return capture(
        module,
        (),
        inputs,
        known=known,
        values=values,
        checks=False,
        buffers=numbers,
        led=led,
        unknown=frozenset(),
    )


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
    try:
        graph = _captured(module, subject.module, subject.known, subject.supply, buffers, led)
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


def _taken_for_granted(branches: tuple[str, ...]) -> tuple[str, ...]:
    """Notes on what the trace took for granted of the inputs; of many places, or of long lists of numbers,
    only where they are."""
    if len(branches) <= FEW and all(len(branch) <= LONG for branch in branches):
        return tuple(f"proved for inputs on which the model finds {branch}" for branch in branches)
    places = [branch.rpartition(" at ")[2] for branch in branches]
    said = ", ".join([*places[:FEW], *(["…"] if len(places) > FEW else [])])
    asking = "a line that asks" if len(places) == 1 else f"{len(places)} lines that ask"
    return (f"proved for inputs on which the model finds the same in {asking}: {said}",)


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
