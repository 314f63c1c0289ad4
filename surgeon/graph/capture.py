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
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind, OutputSpec
from torch.fx._lazy_graph_module import _use_lazy_graph_module

from surgeon.errors import ModelError, fail
from surgeon.graph.branches import Branches
from surgeon.graph.parts import PARTS
from surgeon.graph.places import ASSERTION, is_machinery, op_name, overload_name, place_of, short
from surgeon.graph.reading import Reading, within

SYMBOL_SIZES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069)
"""What symbolic sizes stand for in the analysis: primes that no model dimension divides, so that a
batch or sequence axis never passes for a channel axis."""


LAYERS: Mapping[type[nn.Module], str] = {
    nn.Linear: "aten.linear",
    nn.Conv1d: "aten.conv1d",
    nn.Conv2d: "aten.conv2d",
    nn.Conv3d: "aten.conv3d",
    nn.Embedding: "aten.embedding",
    nn.LayerNorm: "aten.layer_norm",
    nn.RMSNorm: "aten.rms_norm",
    nn.BatchNorm1d: "aten.batch_norm",
    nn.BatchNorm2d: "aten.batch_norm",
}
"""How torch's layers read their parameters, where a trace does not show it."""


@dataclass(frozen=True)
class Captured:
    """A graph with what each of its placeholders is."""

    program: torch.export.ExportedProgram
    parameters: Mapping[str, str]  # placeholder name -> parameter name
    buffers: Mapping[str, str]  # placeholder name -> buffer name
    constants: Mapping[str, torch.Tensor]  # placeholder name -> tensor made while tracing
    inputs: tuple[str, ...]  # placeholder names of the user's inputs
    aliases: Mapping[str, str]  # parameter name -> the name the graph uses for the same tensor
    shapes: Mapping[str, tuple[tuple[int, ...] | None, ...]] = field(repr=False)
    layers: Mapping[str, str] = field(default_factory=dict, repr=False)  # parameter name -> its layer's op

    @property
    def unread(self) -> list[str]:
        """The placeholders of parameters that the traced pass does not read, under no name of theirs."""
        read = {self.tied_placeholder(n.name) for n in self.nodes if n.op == "placeholder" and n.users}
        return [p for p in self.parameters if self.tied_placeholder(p) == p and p not in read]

    @property
    def graph(self) -> fx.Graph:
        return self.program.graph

    def tied_placeholder(self, placeholder: str) -> str:
        """The placeholder that stands for a parameter's tensor: of a tied group, the one in use."""
        name = self.parameters.get(placeholder)
        if name is None or self.aliases.get(name, name) == name:
            return placeholder
        return next(p for p, n in self.parameters.items() if n == self.aliases[name])

    @property
    def nodes(self) -> list[fx.Node]:
        return list(self.program.graph.nodes)

    @property
    def branches(self) -> tuple[str, ...]:
        """What the trace took for granted of the inputs: numbers, and the line of the model that asks."""
        found: dict[str, dict[str, None]] = {}
        for node in self.nodes:
            if op_name(node) == ASSERTION:
                number, _, place = str(node.args[1]).partition(" at ")
                found.setdefault(place, {})[number] = None
        return tuple(f"{', '.join(numbers)} at {place}" for place, numbers in found.items())

    @property
    def results(self) -> list[fx.Node]:
        """What the model returns. The graph's outputs begin with the weights and buffers that a forward
        pass rewrites."""
        return list(
            dict.fromkeys(node for spec, node in self._outputs if spec.kind is OutputKind.USER_OUTPUT)
        )

    @property
    def rewritten(self) -> dict[str, str]:
        """Node name to placeholder, for what the forward pass puts in place of a weight or buffer."""
        places = {name: p for table in (self.parameters, self.buffers) for p, name in table.items()}
        return {node.name: places[spec.target] for spec, node in self._outputs if spec.target in places}

    @property
    def _outputs(self) -> list[tuple[OutputSpec, fx.Node]]:
        """By place: the names that the signature knows change where copies are dropped."""
        (returned,) = self.nodes[-1].args
        assert isinstance(returned, (list, tuple))
        specs = zip(self.program.graph_signature.output_specs, returned, strict=True)
        return [(spec, node) for spec, node in specs if isinstance(node, fx.Node)]


def capture(
    module: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    known: Container[str] = frozenset(),
    values: Mapping[str, Any] | None = None,
    checks: bool = True,
) -> Captured:
    """Capture `module` (in eval mode, on any device; meta is enough). `known` are the ops, by name with
    or without overload, that have a rule and need not be taken apart. Where the module branches on the
    values of its inputs, it is traced as `values` of them lead (see :mod:`surgeon.graph.branches`).
    Without `checks` the graph leaves out what the module makes sure of as it runs, by the values of tensors.

    Raises ModelError S210 with the place in the model where it cannot be captured.
    """
    kwargs = dict(kwargs or {})
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            silent, checked = _silently(), contextlib.nullcontext() if checks else _unchecked()
            # Lazy: the code of graphs that none runs is not made.
            with within(module, Reading()), _use_lazy_graph_module(True), silent, checked:
                program = _export(module, tuple(args), kwargs, dynamic_shapes, values)
                _name_dtypes(program.graph)
                if not all(_is_plain(node, known) for node in program.graph.nodes):
                    program = _taken_apart(program, known)
                _drop_copies(program.graph)
            program.graph.eliminate_dead_code()  # what is computed for its shape alone ties nothing
    except Exception as error:
        raise _refusal(module, error) from error
    captured = describe(program, module)
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
def _silently() -> Iterator[None]:
    """Without export's half graphs and torch's own log of what it met: the error says it once."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


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
        if not theirs:
            return apart
        program = apart


def _drop_copies(graph: fx.Graph) -> None:
    """Whether a view needs a copy depends on sizes; what it means does not. Only what is read by its
    strides keeps the copy that laid it so."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if any(user.target is aten.as_strided.default for user in node.users):
            continue
        if node.target in (aten.clone.default, aten.contiguous.default):
            (source, *_) = node.args
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif node.target is aten._unsafe_view.default:
            node.target = aten.view.default


def _unchecked() -> contextlib.AbstractContextManager[Any]:
    """What a module makes sure of by values of tensors is not traced."""
    return patch.multiple(torch, _check_tensor_all=_nothing, _check_tensor_all_with=_nothing)


def _nothing(*_: Any) -> None:
    pass


def _name_dtypes(graph: fx.Graph) -> None:
    """A cast to the type of another tensor reads nothing of that tensor but its type."""
    aten = torch.ops.aten
    for node in graph.nodes:
        if node.target is aten.type_as.default:
            source, _ = node.args
            node.target, node.args = aten.to.dtype, (source, node.meta["val"].dtype)


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


def dynamic_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first axis of every tensor input symbolic, where they agree on its size."""
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim]
    if len({t.shape[0] for t in tensors}) != 1 or tensors[0].shape[0] < 2:
        return None
    batch = torch.export.Dim("batch", min=2, max=4096)

    def shape(a: Any) -> Any:
        return {0: batch} if isinstance(a, Tensor) and a.ndim else None

    return tuple(shape(a) for a in args) + tuple(shape(a) for a in kwargs.values())


def _export(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    values: Mapping[str, Any] | None,
) -> Any:
    try:
        return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception:  # a branch on values shows as whatever error it meets first
        if values is not None:
            return _export_led(module, args, kwargs, values)
        if dynamic_shapes is None:
            raise
        # Some models fix a length while they are traced; the class, not the graph, is then general.
        return torch.export.export(module, args, kwargs, strict=False)


def _export_led(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], values: Mapping[str, Any]
) -> Any:
    """The trace that the inputs' values lead, and through all there is to choose."""
    try:
        with Branches().watching(module, values):
            return torch.export.export(module, args, kwargs, strict=False)
    except IndexError:  # one row more than experts, say, for tokens that have none
        with Branches(spare=1).watching(module, values):
            return torch.export.export(module, args, kwargs, strict=False)


def _refusal(module: nn.Module, error: Exception) -> ModelError:
    text = str(error).strip() or type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_machinery(f.filename)]
    notes = tuple(f"at {short(f.filename)}:{f.lineno} in {f.name}: {f.line}" for f in frames[-1:])
    first = next((line for line in text.splitlines() if line.strip()), text)
    return fail(
        ModelError,
        "S210",
        f"{type(module).__name__} cannot be captured as a graph: {first[:300]}",
        notes=notes,
        help="torch.export must be able to trace the model: no Python branch on a tensor's values",
    )


def describe(program: torch.export.ExportedProgram, module: nn.Module) -> Captured:
    """Name the placeholders of an exported program and read the shapes of all its nodes."""
    signature = program.graph_signature
    canonical: dict[int, str] = {}
    read = {node.name for node in program.graph.nodes if node.users}
    used = {name for p, name in signature.inputs_to_parameters.items() if p in read}
    named = list(module.named_parameters(remove_duplicate=False))
    for name, parameter in sorted(named, key=lambda item: item[0] not in used):
        canonical.setdefault(id(parameter), name)
    symbols: dict[Any, int] = {}
    known = {
        *signature.inputs_to_parameters,
        *signature.inputs_to_buffers,
        *signature.inputs_to_lifted_tensor_constants,
    }
    return Captured(
        program,
        dict(signature.inputs_to_parameters),
        dict(signature.inputs_to_buffers),
        {
            name: program.constants[target]
            for name, target in signature.inputs_to_lifted_tensor_constants.items()
        },
        tuple(
            node.name for node in program.graph.nodes if node.op == "placeholder" and node.name not in known
        ),
        {name: canonical[id(parameter)] for name, parameter in named},
        {node.name: _shapes(node.meta.get("val"), symbols) for node in program.graph.nodes},
        _layers(module),
    )


def _layers(module: nn.Module) -> dict[str, str]:
    """The op by which a layer of torch's own reads its parameters, by parameter name."""
    return {
        f"{path}.{name}" if path else name: LAYERS[type(layer)]
        for path, layer in module.named_modules(remove_duplicate=False)
        if type(layer) in LAYERS
        for name, _ in layer.named_parameters(recurse=False)
    }


def _shapes(value: Any, symbols: dict[Any, int]) -> tuple[tuple[int, ...] | None, ...]:
    """The shapes of a node's value or values, symbolic sizes replaced by distinct primes."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(tuple(_size(s, symbols) for s in v.shape) if isinstance(v, Tensor) else None for v in values)


def _size(size: Any, symbols: dict[Any, int]) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    for symbol in sorted(expression.free_symbols, key=str):
        symbols.setdefault(symbol, SYMBOL_SIZES[len(symbols) % len(SYMBOL_SIZES)])
    return int(expression.subs(symbols))


def runnable(target: Any) -> Any:
    """The op to run for `target`. A view fits the layout in memory that it was traced with, which the op
    before it may choose by its sizes; what is left empty to be overwritten is no value to compare."""
    aten = torch.ops.aten
    return {
        aten.view.default: aten.reshape.default,
        aten.new_empty.default: aten.new_zeros.default,
        aten.empty.memory_format: aten.zeros.default,
        aten.empty_like.default: aten.zeros_like.default,
    }.get(target, target)
