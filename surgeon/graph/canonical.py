"""One way to say one thing: ops of a fresh trace, put into the form that rules speak of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx


def canonical(graph: fx.Graph) -> None:
    """Put a graph whose ops are those of rules into the one form that they speak of."""
    _drop_copies(graph)
    _name_pieces(graph)
    _name_solids(graph)
    # What is computed for its shape alone ties nothing, nor do random numbers that nobody reads.
    graph.eliminate_dead_code(lambda node: node.is_impure(impure_random=False))
    _leave_positions(graph)
    _norm_one_axis(graph)
    _index_side_by_side(graph)
    _mask_each_head(graph)


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


def _index_side_by_side(graph: fx.Graph) -> None:
    """Indices apart from each other, as in ``x[i, :, j]``, have their axes at the front of what is read; so
    do those of ``x.movedim(1, -1)[i, j]``, which rules speak of."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target not in (aten.index.Tensor, aten.index_put.default):
            continue
        x, given, *others = node.args
        where = [i for i, index in enumerate(given) if index is not None]
        if where == list(range(where[0], where[-1] + 1)):
            continue
        if any(given[i].meta["val"].dtype == torch.bool for i in where):
            continue
        order = [*where, *(i for i in range(x.meta["val"].ndim) if i not in where)]
        with graph.inserting_before(node):
            moved = graph.call_function(aten.permute.default, (x, order))
        moved.meta = {**node.meta, "val": x.meta["val"].permute(order)}
        node.args = (moved, [given[i] for i in where], *others)
        if node.target is aten.index_put.default:
            whole, node.meta = node.meta, {**node.meta, "val": moved.meta["val"]}
            back = [order.index(i) for i in range(len(order))]
            with graph.inserting_after(node):
                laid = graph.call_function(aten.permute.default, (node, back))
            laid.meta = whole
            node.replace_all_uses_with(laid, delete_user_cb=lambda user, laid=laid: user is not laid)


def _mask_each_head(graph: fx.Graph) -> None:
    """A mask of queries and keys alone is one for every head, which rules name."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if not isinstance(mask, fx.Node) or mask.meta["val"].ndim != 2 or node.args[0].meta["val"].ndim < 3:
            continue
        with graph.inserting_before(node):
            made = graph.call_function(aten.unsqueeze.default, (mask, 0))
        made.meta = {**node.meta, "val": mask.meta["val"].unsqueeze(0)}
        node.replace_input_with(mask, made)


def name_dtypes(graph: fx.Graph) -> None:
    """A cast to the type of another tensor reads nothing of that tensor but its type."""
    aten = torch.ops.aten
    for node in graph.nodes:
        if node.target is aten.type_as.default:
            source, _ = node.args
            node.target, node.args = aten.to.dtype, (source, node.meta["val"].dtype)
