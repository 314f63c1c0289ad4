"""The fx graph of a plain module rewritten for its grown sizes: a trainable module with the original
parameter names, and an exported program for ``model.pt2``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn

from surgeon.graph.capture import dynamic_batch
from surgeon.graph.captured import runnable
from surgeon.planning.literals import grown_args
from surgeon.planning.plan import Plan
from surgeon.rewriting.calling import Calling


class GrownModule(nn.Module):
    """A grown module: the rewritten graph over parameters and buffers under their original names. It takes
    and returns what the source does."""

    def __init__(
        self, graph_module: fx.GraphModule, state: Mapping[str, Tensor], plan: Plan, calling: Calling
    ):
        super().__init__()
        captured = plan.anatomy.captured
        names = set(captured.parameters.values())
        self._constants = captured.constants
        # Names alone: the nodes hold what the source was traced with, and no copy can be made of that.
        self._order = [n.name for n in captured.graph.nodes if n.op == "placeholder"]
        self._body = [graph_module]  # in a list: its graph is not a submodule of ours
        for name, value in state.items():
            _place(self, name, value, is_parameter=name in names)
        for alias, name in plan.aliases.items():
            if alias != name and name in names:
                _place(self, alias, self.get_parameter(name), is_parameter=True)
        self._known = {**captured.parameters, **captured.buffers}
        self.calling = calling

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the source module's arguments, and returns what it returns.

        Raises TypeError for arguments that the source would not take, ValueError for those that the graph was
        not traced for: other sizes than the batch's, other constants, an argument left out or added.
        """
        given = self.calling.leaves(args, kwargs)
        values = []
        for name in self._order:
            if name in self._known:
                values.append(_lookup(self, self._known[name]))
            elif name in self._constants:
                values.append(self._constants[name])
            else:
                values.append(given[name])
        results = self._body[0](*values)
        for place, value in zip(self.calling.rewrites, results, strict=True):
            if place is not None:
                into = given[place] if place in given else _lookup(self, place)
                with torch.no_grad():
                    into.copy_(value)
        return self.calling.returned(results)


def _place(root: nn.Module, name: str, value: Tensor, is_parameter: bool) -> None:
    *parents, last = name.split(".")
    module = root
    for parent in parents:
        if not hasattr(module, parent):
            module.add_module(parent, nn.Module())
        module = getattr(module, parent)
    if is_parameter:
        wrapped = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
        module.register_parameter(last, wrapped)
    else:
        module.register_buffer(last, value)


def _lookup(root: nn.Module, name: str) -> Any:
    module: Any = root
    for part in name.split("."):
        module = getattr(module, part)
    return module


def rewrite(plan: Plan, state: Mapping[str, Tensor], calling: Calling) -> GrownModule:
    """The grown module: the plan's graph with its sizes rewritten, over the expanded `state`.

    Args:
        state: expanded tensors by parameter or buffer name, tied ones once.
        calling: how the source is called.
    """
    source = plan.anatomy.captured.graph
    graph = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    for node in source.nodes:
        if node.op == "call_function":
            if "_assert_tensor_metadata" in str(node.target):
                continue
            args, kwargs = grown_args(node, plan.anatomy, plan.maps)
            args = fx.map_arg(args, lambda n: twins[n])
            kwargs = fx.map_arg(kwargs, lambda n: twins[n])
            twins[node] = graph.create_node("call_function", runnable(node.target), args, kwargs, node.name)
        elif node.op == "output":
            twins[node] = graph.output(fx.map_arg(node.args[0], lambda n: twins[n]))
        else:
            twins[node] = graph.create_node(node.op, node.target, (), {}, node.name)
    graph.lint()
    return GrownModule(fx.GraphModule(nn.Module(), graph), state, plan, calling)


def export(module: GrownModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The grown module as an exported program. The batch size is symbolic where it was for the source."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return GrownModule.forward(module, *args, **kwargs)

    # Export matches sizes to arguments by the signature, and loses those of arguments in **kwargs.
    forward.__signature__ = module.calling.signature  # type: ignore[attr-defined]
    batch = module.calling.batch
    shapes = dynamic_batch(args, kwargs, batch) if batch is not None else None
    with torch.no_grad(), patch.object(module, "forward", forward):
        return torch.export.export(module.eval(), args, dict(kwargs), dynamic_shapes=shapes, strict=False)
