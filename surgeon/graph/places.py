"""What a node of a graph is called, and where in the model it comes from."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx

ASSERTION = "aten._assert_async.msg"


def is_machinery(file: str) -> bool:
    """Whether a file is torch's or ours, and so not the model's."""
    path = Path(file)
    return "torch" in path.parts or Path(__file__).parents[1] in path.parents


def short(file: str) -> str:
    """The end of a path, which tells enough; of a file in the working folder what lies in it."""
    with contextlib.suppress(ValueError, OSError):
        file = str(Path(file).relative_to(Path.cwd()))
    return "/".join(file.replace("\\", "/").split("/")[-3:])


@dataclass(frozen=True)
class Place:
    """Where in the model a node comes from, for messages."""

    op: str
    module: str
    source: str

    def __str__(self) -> str:
        where = f" in module {self.module}" if self.module else ""
        return f"{self.op}{where}" + (f" ({self.source})" if self.source else "")


def op_name(node: fx.Node) -> str:
    """``aten.linear.default`` for an op; the target's own name otherwise."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return overload_name(target)
    return getattr(target, "__name__", str(target))


def overload_name(op: torch._ops.OpOverload) -> str:
    """``aten.linear.default``."""
    namespace, name = op._schema.name.split("::")
    return f"{namespace}.{name}.{op._overloadname}"


def place_of(node: fx.Node) -> Place:
    """The op, innermost module and source line of a node."""
    stack = node.meta.get("nn_module_stack") or {}
    module = ""
    for path, _ in stack.values():
        module = path
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    source = ""
    if frames:
        file, line = frames[-1]
        source = f"{short(file)}:{line}"
    return Place(op_name(node).removesuffix(".default"), module, source)


def starred(name: str) -> str:
    """A name with the numbers of its layers left open: ``layers.*.fc``."""
    return re.sub(r"\.\d+\.", ".*.", name)
