"""How a plain module is called and what it returns: arguments laid flat as the graph takes them, and what the
graph gives put into the shape that the source returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils._pytree import TreeSpec, tree_unflatten, treespec_dumps

from surgeon.errors import ModelError, fail
from surgeon.graph.captured import Captured

RETURNED = "the grown module is returned all the same"
ANY = range(1 << 40)
Sizes = tuple[range, ...]


@dataclass(frozen=True)
class Input:
    """One leaf of what a module takes: a tensor of some sizes, or a value of the trace."""

    name: str
    sizes: Sizes | None
    value: Any = None

    def refuse_other(self, given: Any) -> None:
        """Raises ValueError for what the graph was not traced for."""
        if self.sizes is None:
            if not _same(given, self.value):
                raise ValueError(
                    f"{self.name}: the graph was traced with {self.value!r} and holds for no other"
                )
            return
        if not isinstance(given, Tensor):
            raise ValueError(f"{self.name}: a tensor is expected, as the graph was traced with one")
        fits = len(self.sizes) == given.ndim and all(
            not isinstance(has, int) or has in size for size, has in zip(self.sizes, given.shape, strict=True)
        )
        if not fits:
            traced = ", ".join(_worded(size) for size in self.sizes)
            raise ValueError(
                f"{self.name}: sizes {list(given.shape)}, where the graph was traced with [{traced}]"
            )


@dataclass(frozen=True)
class Calling:
    """The forward pass of a source module as its callers see it."""

    signature: inspect.Signature
    takes: TreeSpec  # of (args, kwargs), as traced
    gives: TreeSpec
    inputs: tuple[Input, ...]  # the leaves of `takes`
    rewrites: tuple[str | None, ...]  # what each result is put in place of; None: it is returned

    @property
    def batch(self) -> torch.export.Dim | None:
        """The first axis of the inputs as far as the trace left it open; None where it is fixed in one."""
        first = [known.sizes[0] for known in self.inputs if known.sizes]
        free = [size for size in first if len(size) > 1]
        if not free or len(free) < len(first):
            return None
        low, stop = max(2, *(size.start for size in free)), min(size.stop for size in free)
        return torch.export.Dim("batch", min=low, max=stop - 1 if stop < ANY.stop else None)

    def leaves(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs by placeholder name. Raises TypeError for arguments that the source would not take,
        ValueError for those that the graph was not traced for."""
        traced = self.takes.flatten_up_to(self._as_traced(args, kwargs))
        for known, given in zip(self.inputs, traced, strict=True):
            known.refuse_other(given)
        return {known.name: given for known, given in zip(self.inputs, traced, strict=True)}

    def returned(self, results: tuple[Any, ...]) -> Any:
        """What the source returns, of the graph's results."""
        kept = [r for r, place in zip(results, self.rewrites, strict=True) if place is None]
        return tree_unflatten(kept, self.gives)

    def _as_traced(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments placed and named as they were when the graph was traced."""
        given = self.signature.bind(*args, **kwargs)
        given.apply_defaults()
        positional, named = self.takes.children()
        row: list[Any] = []
        byname: dict[str, Any] = {}
        for name, value in given.arguments.items():
            parameter = self.signature.parameters[name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                row += value
            elif parameter.kind is parameter.VAR_KEYWORD:
                byname |= value
            elif parameter.kind is not parameter.KEYWORD_ONLY and len(row) < len(positional.children()):
                row.append(value)
            elif name in named.context:
                byname[name] = value
            elif not _same(value, parameter.default):
                raise ValueError(f"{name}: the graph was traced without it")
        return tuple(row), byname


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b))


def calling_of(captured: Captured, forward: Callable[..., Any]) -> Calling:
    """How the captured module, whose forward pass is `forward`, is called."""
    program = captured.program
    takes, gives = program.call_spec.in_spec, program.call_spec.out_spec
    assert takes is not None and gives is not None
    marks = {node.name: node.meta.get("val") for node in captured.nodes if node.op == "placeholder"}
    given = [s.arg for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    inputs = [
        Input(arg.name, None, arg.value)
        if isinstance(arg, ConstantArgument)
        else Input(arg.name, _ranges(marks[arg.name], program))
        for arg in given
    ]
    specs = program.graph_signature.output_specs
    rewrites = tuple(None if s.kind is OutputKind.USER_OUTPUT else s.target for s in specs)
    return Calling(inspect.signature(forward), takes, gives, tuple(inputs), rewrites)


def _ranges(traced: Any, program: torch.export.ExportedProgram) -> Sizes:
    return tuple(_range(size, program) for size in traced.shape)


def _range(size: Any, program: torch.export.ExportedProgram) -> range:
    """What a size may be: one number, or what the trace left open. Traces take two or more for any."""
    if isinstance(size, int):
        return range(size, size + 1)
    bounds = program.range_constraints.get(size.node.expr)
    if bounds is None:
        return ANY
    low, high = int(bounds.lower), int(min(bounds.upper, ANY.stop - 1))
    return range(0 if low <= 2 else low, high + 1)


def _worded(size: range) -> str:
    if len(size) == 1:
        return str(size.start)
    return "any" if size == ANY else f"{size.start} to {size.stop - 1}"


def refuse_unwritable(captured: Captured, name: str) -> None:
    """Raises ModelError S214 where ``torch.export.save`` cannot write what the module takes or returns, or
    ``torch.export.load`` cannot read it."""
    program = captured.program
    for spec, what in ((program.call_spec.in_spec, "takes"), (program.call_spec.out_spec, "returns")):
        kind = _unwritable(spec) if spec is not None else None
        if kind is not None:
            raise fail(
                ModelError,
                "S214",
                f"{name} {what} a {kind}, which torch.export.save knows no name for",
                help=f"register {kind} with a serialized_type_name, or give no folder: {RETURNED}",
            )
    given = (spec.arg for spec in program.graph_signature.output_specs)
    texts = [arg.value for arg in given if isinstance(arg, ConstantArgument) and isinstance(arg.value, str)]
    if texts:
        raise fail(
            ModelError,
            "S214",
            f"{name} returns the text {texts[0]!r}, which torch.export.load cannot read back",
            help=f"return tensors and numbers, or give no folder: {RETURNED}",
        )


def _unwritable(spec: TreeSpec) -> str | None:
    """The name of a type within a structure that cannot be written."""
    within = next(filter(None, map(_unwritable, spec.children())), None)
    if within is not None:
        return within
    try:
        treespec_dumps(spec)
    except NotImplementedError:
        kind = spec.context if isinstance(spec.context, type) else spec.type  # of named tuples, the former
        return str(kind.__name__)
    return None
