"""Scales of what is read or written by position: along such an axis all pieces must have one scale."""

from __future__ import annotations

import numpy as np

from surgeon.graph.calls import Call
from surgeon.graph.inference import is_float, is_whole
from surgeon.graph.positions import indexed, padded, placed, steps_of, worked
from surgeon.planning.products import Products
from surgeon.planning.scales import Cells, has_scale, zeros


class Positional(Products):
    """The equations of lookups, scatters, windows, paddings, sorts and running sums."""

    def _one_piece(self, cells: Cells, dim: int, name: str) -> Cells:
        """Cells whose pieces along `dim` must have one scale: what happens there mixes them."""
        first = np.take(cells, [0], axis=dim)
        self.equal_all([first, cells], name, "pieces of different scale meet")
        return first

    def _index(self, call: Call) -> Cells:
        name, where = call.node.name, indexed(call)
        if where is None:
            for node, _ in call.tensors():
                self.exact(self.of(node), name, "it is read by position")
            return zeros(self.shape(self.axes_of(name)))
        cells = self.of(call.args[0])
        for i in where:
            cells = self._one_piece(cells, i, name)
        shape = self.shape(self.axes_of(name))
        chosen = len(shape) - cells.ndim + len(where)
        before, after = cells.shape[: where[0]], cells.shape[where[-1] + 1 :]
        return np.broadcast_to(cells.reshape((*before, *(1,) * chosen, *after)), shape)

    def _put(self, call: Call) -> Cells:
        name, where = call.node.name, indexed(call)
        shape = self.shape(self.axes_of(name))
        if where is None:
            for node, _ in call.tensors():
                self.exact(self.of(node), name, "it is read by position")
            return zeros(shape)
        node, spots = placed(call, where)
        cells, given = self.of(call.args[0]), self.of(node)
        given = given.reshape((1,) * (cells.ndim - len(where) + len(spots) - given.ndim) + given.shape)
        for i in where:
            cells = self._one_piece(cells, i, name)
        for i in spots:
            given = self._one_piece(given, i, name)
        after = given.shape[spots[-1] + 1 :]
        given = given.reshape((*given.shape[: where[0]], *(1,) * len(where), *after))
        return np.broadcast_to(self.equal_all([cells, given], name, "values of different scale meet"), shape)

    def _unfold(self, call: Call) -> Cells:
        cells = self.of(call.args[0])
        dim = call.axis_arg(call.arg("dimension"), cells.ndim)
        cells = self._one_piece(cells, dim, call.node.name)[..., None]
        return np.broadcast_to(cells, self.shape(self.axes_of(call.node.name)))

    def _patches(self, call: Call) -> Cells:
        cells = self.of(call.args[0])
        for dim in (cells.ndim - 2, cells.ndim - 1):
            cells = self._one_piece(cells, dim, call.node.name)
        shape = self.shape(self.axes_of(call.node.name))
        places = shape[-2] // cells.shape[-3]  # pieces of what a patch has of one channel
        return np.broadcast_to(np.repeat(cells[..., 0], places, axis=-2), shape)

    def _fold(self, call: Call) -> Cells:
        cells, shape = self.of(call.args[0]), self.shape(self.axes_of(call.node.name))
        cells = self._one_piece(cells, cells.ndim - 1, call.node.name)
        cells = cells.reshape((*cells.shape[:-2], shape[-3], -1))  # channels, and positions within a patch
        return np.broadcast_to(self._one_piece(cells, cells.ndim - 1, call.node.name)[..., None], shape)

    def _strided(self, call: Call) -> Cells:
        cells, read = self.of(call.args[0]), steps_of(call)
        for dim in range(read.front, cells.ndim - read.back):
            cells = self._one_piece(cells, dim, call.node.name)
        shape = self.shape(self.axes_of(call.node.name))
        between = (1,) * (len(shape) - read.front - read.back)
        laid = (*cells.shape[: read.front], *between, *cells.shape[cells.ndim - read.back :])
        return np.broadcast_to(cells.reshape(laid), shape)

    def _pad(self, call: Call) -> Cells:
        cells = self.of(call.args[0])
        if has_scale(call.arg("value") or 0):
            self.exact(cells, call.node.name, "a constant is put beside it")
        for i in padded(call):
            cells = self._one_piece(cells, i, call.node.name)
        return np.broadcast_to(cells, self.shape(self.axes_of(call.node.name)))

    def _along(self, call: Call) -> list[Cells | None]:
        name, outputs = call.node.name, self.anatomy.values[call.node.name]
        rank, dims = len(self.axes_of(call.args[0].name)), worked(call)
        several = [self.of(node) for node, _ in call.tensors() if is_float(node)]
        several = [c if c.ndim == rank else np.expand_dims(c, dims[0]) for c in several]
        if call.flag == "nonlinear" or not several:
            for node, _ in call.tensors():
                self.exact(self.of(node), name, "it is read by position")
            return [None if v is None else zeros(self.shape(v.axes)) for v in outputs]
        for i in dims:
            several = [self._one_piece(c, i, name) for c in several]
        cells = self.equal_all(several, name, "values of different scale meet")
        if any(has_scale(a) for a in call.args if isinstance(a, float)):
            self.exact(cells, name, "a constant replaces some of it")
        if is_whole(call.node):  # where something stands, which is the same in any scale
            cells = zeros(cells.shape)
        return [None if v is None else np.broadcast_to(cells, self.shape(v.axes)) for v in outputs]
