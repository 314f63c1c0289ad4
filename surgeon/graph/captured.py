"""What a traced module is to all that follows: a flat graph, and what each of its inputs and outputs is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind, OutputSpec
from torch.utils._pytree import TreeSpec

from surgeon.graph.places import ASSERTION, op_name

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
LOGITS = "logits"  # what a model that gives words is run for, by the name of an output


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
    led: bool = False  # whether the values of inputs led the trace
    left_out: tuple[str, ...] = ()  # in words, of what the module returns

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
        ways = paths(self.program.call_spec.out_spec) if given else []
        named = zip(ways, given, strict=True)
        return [(".".join(path), node) for path, node in named if isinstance(node, fx.Node)]

    @property
    def compared(self) -> dict[str, fx.Node]:
        """The outputs of real numbers, each once, by the path to it; without any, the first."""
        found: dict[fx.Node, str] = {}
        for path, node in self.outputs:
            if isinstance(node.meta["val"], Tensor):
                found.setdefault(node, path)
        real = {path: n for n, path in found.items() if n.meta["val"].is_floating_point()}
        return real or {path: n for n, path in list(found.items())[:1]}

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


def paths(spec: TreeSpec) -> list[tuple[str, ...]]:
    """The way to each leaf of what a model returns: keys and field names, else numbers."""
    if spec.is_leaf():
        return [()]
    parts = spec.children()
    fields: Any = getattr(spec.context, "_fields", spec.context)
    if isinstance(fields, list) and len(fields) == 2 and isinstance(fields[0], list):
        (fields, _) = fields  # of a dataclass, the fields that hold something, and those that hold nothing
    named = isinstance(fields, (list, tuple)) and all(isinstance(key, (str, int)) for key in fields)
    keys = [str(key) for key in fields] if named else [str(i) for i in range(len(parts))]
    return [(key, *path) for key, part in zip(keys, parts, strict=True) for path in paths(part)]


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
