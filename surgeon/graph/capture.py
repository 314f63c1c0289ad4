"""A module captured as a flat torch.fx graph of aten ops.

``torch.export`` (non-strict) traces the module on the meta device. A graph with in-place ops, nested
regions, or composite ops that no rule speaks of is traced once more by ``run_decompositions``, which
takes those apart and keeps all others whole; most models have none, and it would take longer than the
first trace.
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.utils._pytree import tree_leaves

from surgeon.errors import ModelError, fail
from surgeon.graph.branches import Branches
from surgeon.graph.canonical import canonical, name_dtypes
from surgeon.graph.captured import Captured, describe
from surgeon.graph.kept import left_as_it_is
from surgeon.graph.parts import PARTS
from surgeon.graph.places import is_machinery, overload_name, place_of, short
from surgeon.graph.reading import Reading, within
from surgeon.graph.returned import leaving_out, unknown_kind


def capture(
    module: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    known: Container[str] = frozenset(),
    values: Mapping[str, Any] | None = None,
    checks: bool = True,
    buffers: Mapping[str, Tensor] | None = None,
    led: bool = False,
    unknown: frozenset[str] | None = None,
) -> Captured:
    """Capture `module` (in eval mode, on any device; meta is enough). `known` are the ops, by name with
    or without overload, that have a rule and need not be taken apart. Where the module branches on the
    values of its inputs, it is traced as `values` of them lead (see :mod:`surgeon.graph.branches`), and
    where on those of `buffers`, by name, as they lead. `led`: that it does is known, of another size of it.
    Without `checks` the graph leaves out what the module makes sure of as it runs, by the values of tensors.
    `unknown` are classes of which values are no outputs; where it is not None, those that torch.export does
    not know are left out like them.

    Raises ModelError S210 with the place in the model where it cannot be captured.
    """
    kwargs = dict(kwargs or {})
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            silent, checked = silently(), contextlib.nullcontext() if checks else _unchecked()
            # Lazy: the code of graphs that none runs is not made.
            kept, outputs = left_as_it_is(module), leaving_out(module, unknown or ())
            with (
                outputs as left_out,
                within(module, Reading()),
                _use_lazy_graph_module(True),
                silent,
                checked,
                _unvalidated(),
                kept,
            ):
                program, led = _export(
                    module, tuple(args), kwargs, dynamic_shapes, values, buffers or {}, led
                )
                name_dtypes(program.graph)
                if not all(_is_plain(node, known) for node in program.graph.nodes):
                    program = _taken_apart(program, known)
                canonical(program.graph)
    except Exception as error:
        kind = unknown_kind(error)
        if unknown is None or kind is None or kind in unknown:
            raise _refusal(module, error) from error
        more = unknown | {kind}
        return capture(module, args, kwargs, dynamic_shapes, known, values, checks, buffers, led, more)
    captured = replace(describe(program, module), led=led, left_out=tuple(left_out))
    for name, value in captured.constants.items():
        reader = next((n for n in captured.nodes if name in {i.name for i in n.all_input_nodes}), None)
        if value.is_meta and reader is not None:
            raise fail(
                ModelError,
                "S210",
                f"{type(module).__name__} makes a tensor of data as it runs, which a dataless trace loses",
                notes=(str(place_of(reader)),),
                help="make it once, as a buffer",
            )
    return captured


@contextlib.contextmanager
def _unvalidated() -> Iterator[None]:
    """Distributions look at values to see whether they are sound, and compute nothing of what they see."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


@contextlib.contextmanager
def silently() -> Iterator[None]:
    """Without half graphs and torch's own log of what it met: the error says it once."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _unchecked() -> contextlib.AbstractContextManager[Any]:
    """What a module makes sure of by values of tensors is not traced."""
    return patch.multiple(torch, _check_tensor_all=_nothing, _check_tensor_all_with=_nothing)


def _nothing(*_: Any) -> None:
    pass


def _taken_apart(program: Any, known: Container[str]) -> Any:
    """A graph whose ops rules speak of, as far as torch or :data:`PARTS` know of what others are made."""
    ours = {op: made for op, made in PARTS.items() if not _spoken_of(op, known)}
    torchs = torch.export.default_decompositions()
    while True:
        targets = {
            node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)
        }
        composite = {t for t in targets - set(ours) if _is_composite(t) and not _spoken_of(t, known)}
        theirs = {op: torchs[op] for op in composite if op in torchs}
        apart = program.run_decompositions({**ours, **theirs})
        if any(spec.kind is InputKind.TOKEN for spec in apart.graph_signature.input_specs):
            return program.run_decompositions(ours)  # their parts check values as they run: they stay whole
        if not theirs or all(_is_plain(node, known) for node in apart.graph.nodes):
            return apart
        program = apart


def _is_plain(node: fx.Node, known: Container[str]) -> bool:
    """Whether a node is one op without side effects, and no composite that only its parts explain."""
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return not isinstance(target, torch._ops.HigherOrderOperator)
    has_parts = _is_composite(target) or target in PARTS
    return not target._schema.is_mutable and (_spoken_of(target, known) or not has_parts)


def _is_composite(op: torch._ops.OpOverload) -> bool:
    return bool(op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _spoken_of(op: torch._ops.OpOverload, known: Container[str]) -> bool:
    """Whether a rule speaks of an op, with or without its overload."""
    name = overload_name(op)
    return name in known or name.rpartition(".")[0] in known


def dynamic_batch(args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: Any = None) -> Any:
    """The first axis of every tensor input symbolic, however deep it lies, where they agree on its size.
    `batch` is what it may be: any size, if not given."""
    tensors = [a for a in tree_leaves((args, dict(kwargs))) if isinstance(a, Tensor) and a.ndim]
    if len({t.shape[0] for t in tensors}) != 1 or tensors[0].shape[0] < 2:
        return None
    batch = batch or torch.export.Dim("batch", min=2)
    shapes = torch.export.ShapesCollection()
    for tensor in tensors:
        shapes[tensor] = {0: batch}
    return shapes


def _export(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    values: Mapping[str, Any] | None,
    buffers: Mapping[str, Tensor],
    led: bool,
) -> tuple[Any, bool]:
    """The trace, and whether the values of inputs led it; `led`: they must."""
    if values is not None and led:
        return _export_led(module, args, kwargs, values, buffers), True
    try:
        program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        if values is None or all(_is_sized(node) for node in program.graph.nodes):
            return program, False
        with contextlib.suppress(Exception):  # how many rows there are, the inputs may say
            return _export_led(module, args, kwargs, values, buffers), True
        return program, False
    except Exception:  # a branch on values shows as whatever error it meets first
        if values is not None:
            return _export_led(module, args, kwargs, values, buffers), True
        if dynamic_shapes is None:
            raise
        # Some models fix a length while they are traced, or bounds of it: what remains free is free.
        free = dynamic_batch(args, kwargs, torch.export.Dim.AUTO)
        return torch.export.export(module, args, kwargs, dynamic_shapes=free, strict=False), False


def _is_sized(node: fx.Node) -> bool:
    """Whether the sizes of a node's value are numbers."""
    values = node.meta.get("val")
    several = values if isinstance(values, (list, tuple)) else [values]
    return all(isinstance(size, int) for v in several if isinstance(v, Tensor) for size in v.shape)


def _export_led(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: Mapping[str, Any],
    buffers: Mapping[str, Tensor],
) -> Any:
    """The trace that the values of inputs and buffers lead, and through all there is to choose."""
    try:
        with Branches().watching(module, values, buffers):
            return torch.export.export(module, args, kwargs, strict=False)
    except IndexError:  # one row more than experts, say, for tokens that have none
        with Branches(spare=1).watching(module, values, buffers):
            return torch.export.export(module, args, kwargs, strict=False)


def raised_at(error: BaseException) -> tuple[str, ...]:
    """The line of the model's own code in which an error arose, in words, if there is one."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_machinery(f.filename)]
    return tuple(f"at {short(f.filename)}:{f.lineno} in {f.name}: {f.line}" for f in frames[-1:])


def _refusal(module: nn.Module, error: Exception) -> ModelError:
    text = str(error).strip() or type(error).__name__
    notes = raised_at(error)
    first = next((line for line in text.splitlines() if line.strip()), text)
    if "data-dependent expression" in text:
        return fail(
            ModelError,
            "S210",
            f"{type(module).__name__} cannot be captured as a graph: what it computes tells a size or a path",
            notes=notes,
            help="a graph has one size and one path: give what tells them as inputs, if it takes them",
        )
    kind = unknown_kind(error)
    if kind is not None:
        return fail(
            ModelError,
            "S210",
            f"{type(module).__name__} returns a {kind}, in which torch.export finds no tensors",
            help="register it: a dataclass by torch.export.register_dataclass, others by torch.utils._pytree",
        )
    return fail(
        ModelError,
        "S210",
        f"{type(module).__name__} cannot be captured as a graph: {first[:300]}",
        notes=notes,
        help="torch.export must be able to trace the model: no Python branch on a tensor's values",
    )
