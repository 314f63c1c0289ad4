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
import math
import re
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
from torch.utils._pytree import TreeSpec, tree_leaves

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
        return list(dict.fromkeys(node for _, node in self.outputs))

    @property
    def outputs(self) -> list[tuple[str, fx.Node]]:
        """The tensors that the model returns, each with the names or numbers that lead to it in what it
        returns, joined by dots: ``text_model_output.pooler_output``; empty for one that stands alone."""
        given = [node for spec, node in self._outputs if spec.kind is OutputKind.USER_OUTPUT]
        paths = _paths(self.program.call_spec.out_spec) if given else []
        named = zip(paths, given, strict=True)
        return [(".".join(path), node) for path, node in named if isinstance(node, fx.Node)]

    @property
    def rewritten(self) -> dict[str, str]:
        """Node name to placeholder, for what the forward pass puts in place of a weight, buffer or input."""
        places = {name: p for table in (self.parameters, self.buffers) for p, name in table.items()}
        places |= {p: p for p in self.inputs}
        return {node.name: places[spec.target] for spec, node in self._outputs if spec.target in places}

    @property
    def _outputs(self) -> list[tuple[OutputSpec, Any]]:
        """By place: the names that the signature knows change where copies are dropped. What is no node is
        returned as it is."""
        (returned,) = self.nodes[-1].args
        assert isinstance(returned, (list, tuple))
        return list(zip(self.program.graph_signature.output_specs, returned, strict=True))


def capture(
    module: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    known: Container[str] = frozenset(),
    values: Mapping[str, Any] | None = None,
    checks: bool = True,
    buffers: Mapping[str, Tensor] | None = None,
) -> Captured:
    """Capture `module` (in eval mode, on any device; meta is enough). `known` are the ops, by name with
    or without overload, that have a rule and need not be taken apart. Where the module branches on the
    values of its inputs, it is traced as `values` of them lead (see :mod:`surgeon.graph.branches`), and
    where on those of `buffers`, by name, as they lead.
    Without `checks` the graph leaves out what the module makes sure of as it runs, by the values of tensors.

    Raises ModelError S210 with the place in the model where it cannot be captured.
    """
    kwargs = dict(kwargs or {})
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            silent, checked = _silently(), contextlib.nullcontext() if checks else _unchecked()
            # Lazy: the code of graphs that none runs is not made.
            with within(module, Reading()), _use_lazy_graph_module(True), silent, checked, _unvalidated():
                program = _export(module, tuple(args), kwargs, dynamic_shapes, values, buffers or {})
                _name_dtypes(program.graph)
                if not all(_is_plain(node, known) for node in program.graph.nodes):
                    program = _taken_apart(program, known)
                _drop_copies(program.graph)
                _name_pieces(program.graph)
                _name_solids(program.graph)
                program.graph.eliminate_dead_code()  # what is computed for its shape alone ties nothing
                _leave_positions(program.graph)
                _norm_one_axis(program.graph)
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
def _unvalidated() -> Iterator[None]:
    """Distributions look at values to see whether they are sound, and compute nothing of what they see."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


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


def _name_solids(graph: fx.Graph) -> None:
    """What is read between the points of a solid is an op of its own."""
    aten = torch.ops.aten
    for node in graph.nodes:
        if node.target is aten.grid_sampler.default and node.meta["val"].ndim == 5:
            node.target = aten.grid_sampler_3d.default


def _name_pieces(graph: fx.Graph) -> None:
    """A split into equal pieces is one into pieces of these sizes, which may grow apart."""
    aten = torch.ops.aten
    for node in graph.nodes:
        if node.target in (aten.split.Tensor, aten.chunk.default, aten.unsafe_split.Tensor):
            source, _, *given = node.args
            dim = given[0] if given else node.kwargs.get("dim", 0)
            sizes = [piece.shape[dim] for piece in node.meta["val"]]
            if all(isinstance(size, int) for size in sizes):
                node.target, node.args = aten.split_with_sizes.default, (source, sizes, dim)
                node.kwargs = {}


def _leave_positions(graph: fx.Graph) -> None:
    """An extreme of which nobody reads where it stands is a value alone."""
    aten = torch.ops.aten
    values = {aten.max.dim: aten.amax.default, aten.min.dim: aten.amin.default}
    for node in list(graph.nodes):
        if node.target not in values or any(user.args[1] != 0 for user in node.users):
            continue
        x, dim, *keepdim = node.args
        with graph.inserting_before(node):
            made = graph.call_function(values[node.target], (x, [dim], *keepdim), node.kwargs)
        made.meta = {**node.meta, "val": node.meta["val"][0]}
        for user in list(node.users):
            user.replace_all_uses_with(made)
            graph.erase_node(user)
        graph.erase_node(node)


def _norm_one_axis(graph: fx.Graph) -> None:
    """Statistics over several axes are statistics over one, which they are laid into and taken out of."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target not in (aten.layer_norm.default, aten.rms_norm.default) or len(node.args[1]) == 1:
            continue
        x, shape, *others = node.args
        count = len(shape)

        def laid(made: fx.Node, target: Any, *args: Any, like: fx.Node = node) -> fx.Node:
            new = graph.call_function(target, (made, *args))
            new.meta = {**like.meta, "val": target(made.meta["val"], *args)}
            return new

        with graph.inserting_before(node):
            flat = [
                laid(a, aten.flatten.using_ints, -count, -1) if isinstance(a, fx.Node) else a
                for a in (x, *others)
            ]
            node.args = (flat[0], [math.prod(shape)], *flat[1:])
        whole, node.meta = node.meta, {**node.meta, "val": flat[0].meta["val"]}
        with graph.inserting_after(node):
            back = laid(node, aten.unflatten.int, -1, list(shape))
        back.meta = {**whole, "val": whole["val"]}
        node.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)


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


def dynamic_batch(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The first axis of every tensor input symbolic, however deep it lies, where they agree on its size."""
    tensors = [a for a in tree_leaves((args, dict(kwargs))) if isinstance(a, Tensor) and a.ndim]
    if len({t.shape[0] for t in tensors}) != 1 or tensors[0].shape[0] < 2:
        return None
    batch = torch.export.Dim("batch", min=2, max=4096)
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
) -> Any:
    try:
        program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        if values is None or all(_is_sized(node) for node in program.graph.nodes):
            return program
        with contextlib.suppress(Exception):  # how many rows there are, the inputs may say
            return _export_led(module, args, kwargs, values, buffers)
        return program
    except Exception:  # a branch on values shows as whatever error it meets first
        if values is not None:
            return _export_led(module, args, kwargs, values, buffers)
        if dynamic_shapes is None:
            raise
        # Some models fix a length while they are traced; the class, not the graph, is then general.
        return torch.export.export(module, args, kwargs, strict=False)


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


def _refusal(module: nn.Module, error: Exception) -> ModelError:
    text = str(error).strip() or type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_machinery(f.filename)]
    notes = tuple(f"at {short(f.filename)}:{f.lineno} in {f.name}: {f.line}" for f in frames[-1:])
    first = next((line for line in text.splitlines() if line.strip()), text)
    unknown = re.search(r"Found <class '([^']+)'> in output, which is not a known type", text)
    if unknown is not None:
        return fail(
            ModelError,
            "S210",
            f"{type(module).__name__} returns a {unknown[1]}, in which torch.export finds no tensors",
            help="register it: a dataclass by torch.export.register_dataclass, others by torch.utils._pytree",
        )
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
    symbols = _piece_sizes(program.graph)
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


def _paths(spec: TreeSpec) -> list[tuple[str, ...]]:
    """The way to each leaf of what a model returns: keys and field names, else numbers."""
    if spec.is_leaf():
        return [()]
    parts = spec.children()
    fields: Any = getattr(spec.context, "_fields", spec.context)
    if isinstance(fields, list) and len(fields) == 2 and isinstance(fields[0], list):
        (fields, _) = fields  # of a dataclass, the fields that hold something, and those that hold nothing
    named = isinstance(fields, (list, tuple)) and all(isinstance(key, (str, int)) for key in fields)
    keys = [str(key) for key in fields] if named else [str(i) for i in range(len(parts))]
    return [(key, *path) for key, part in zip(keys, parts, strict=True) for path in _paths(part)]


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


def _piece_sizes(graph: fx.Graph) -> dict[Any, int]:
    """Sizes for the symbols of splits that data decides, by symbol: pieces that together are what is split,
    as what is joined of them again must be."""
    found: dict[Any, int] = {}
    for node in graph.nodes:
        if node.target is not torch.ops.aten.split_with_sizes.default:
            continue
        source, dim = node.args[0], node.args[2] if len(node.args) > 2 else 0
        whole, pieces = source.meta["val"].shape[dim], [v.shape[dim] for v in node.meta["val"]]
        if not isinstance(whole, int) or any(isinstance(piece, int) for piece in pieces):
            continue
        each, rest = divmod(whole, len(pieces))
        names = [piece.node.expr for piece in pieces]
        if each > 1 and all(name.is_symbol and name not in found for name in names):  # one could be broadcast
            found.update({name: each + (i < rest) for i, name in enumerate(names)})
    return found


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
