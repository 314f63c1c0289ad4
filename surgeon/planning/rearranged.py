"""Scales of what is only laid otherwise: views, slices, pieces and what is put together of them. Every piece
keeps its scale, and takes it along."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from surgeon.axes.maps import Maps
from surgeon.axes.store import Axis
from surgeon.graph.calls import Axes, Call
from surgeon.graph.kinds import permutation, segments, split_sizes
from surgeon.planning.positional import Positional
from surgeon.planning.scales import Cells, zeros


class Rearranged(Positional):
    """The equations of ops that compute nothing."""

    def _identity(self, call: Call) -> Cells:
        return self.of(call.args[0])

    def _reshape(self, call: Call) -> Cells:
        cells, shape = self.of(call.args[0]), self.shape(self.axes_of(call.node.name))
        if call.rule.kind is not None and call.rule.kind.name == "reshape":
            axes, made = self.axes_of(call.args[0].name), self.axes_of(call.node.name)
            sizes = [tuple(self.anatomy.store.size(a) for a in several) for several in (axes, made)]
            for old, new in segments(sizes[0], sizes[1]):
                if self._product(axes[old]) != self._product(made[new]):  # in a way that was not typed
                    for i in range(len(axes))[old]:
                        cells = self._one_piece(cells, i, call.node.name)
                    shape = (*shape[: new.start], *(1,) * (new.stop - new.start), *shape[new.stop :])
            cells, shape = cells.reshape(shape), self.shape(made)
            return np.broadcast_to(cells, shape)
        return cells.reshape(shape)

    def _product(self, axes: Axes) -> Axis:
        return self.anatomy.store.resolve(tuple(factor for axis in axes for factor in axis))

    def _strange(self, axes: Axes, made: Axes) -> bool:
        """Whether axes come from others in a way that was not typed."""
        known = {leaf for axis in axes for leaf in self.anatomy.store.leaves(axis)}
        return any(leaf not in known for axis in made for leaf in self.anatomy.store.leaves(axis))

    _unsqueeze = _squeeze = _reshape

    def _permute(self, call: Call) -> Cells:
        return self.of(call.args[0]).transpose(permutation(call))

    def _expand(self, call: Call) -> Cells:
        cells = self.of(call.args[0])
        shape = self.shape(self.axes_of(call.node.name))
        return np.broadcast_to(cells.reshape((1,) * (len(shape) - cells.ndim) + cells.shape), shape)

    def _pick(self, call: Call, dim: int, channels: NDArray[np.int64], output: int = 0) -> Cells:
        """The cells of a piece of the first argument: `channels` are those it takes along `dim`."""
        old = self._source_parts(self.axes_of(call.args[0].name)[dim])[channels]
        axes = self.axes_of(call.node.name, output)
        cells = self.of(call.args[0])
        if len(axes) < cells.ndim:  # select: the axis goes
            return np.take(cells, int(old[0]), axis=dim)
        new = self._source_parts(axes[dim])
        _, first = np.unique(new, return_index=True)
        return np.take(cells, old[first], axis=dim)

    def _source_parts(self, axis: Axis) -> NDArray[np.int64]:
        return Maps(self.anatomy.store, {}).parts(axis)

    def _slice(self, call: Call) -> Cells:
        axes = self.axes_of(call.args[0].name)
        dim = call.axis_arg(call.arg("dim", 0), len(axes))
        size = self.anatomy.store.size(axes[dim])
        length = self.anatomy.store.size(self.axes_of(call.node.name)[dim])
        start, stop, step = call.arg("start"), call.arg("end"), call.arg("step", 1)
        known = all(v is None or isinstance(v, int) for v in (start, stop, step))
        channels = np.arange(size)[slice(start, stop, step)] if known else np.arange(min(length, size))
        out = self.axes_of(call.node.name)
        if len(channels) != length or not length:
            return zeros(self.shape(out))
        if self._strange(axes[dim : dim + 1], out[dim : dim + 1]):
            return np.broadcast_to(
                self._one_piece(self.of(call.args[0]), dim, call.node.name), self.shape(out)
            )
        return self._pick(call, dim, channels)

    def _select(self, call: Call) -> Cells:
        axes = self.axes_of(call.args[0].name)
        dim = call.axis_arg(call.arg("dim", 0), len(axes))
        position = call.arg("index")
        size = self.anatomy.store.size(axes[dim])
        channel = position % size if isinstance(position, int) else 0
        return self._pick(call, dim, np.array([channel]))

    def _split(self, call: Call) -> list[Cells | None]:
        axes = self.axes_of(call.args[0].name)
        if "unbind" in str(call.node.target):
            dim = call.axis_arg(call.arg("dim", 0), len(axes))
            return [self._pick(call, dim, np.array([i]), i) for i in range(len(call.shapes))]
        dim, sizes = split_sizes(call, self.anatomy.store)
        (first, *_) = self.anatomy.values[call.node.name]
        if first is not None and self._strange(axes[dim : dim + 1], first.axes[dim : dim + 1]):
            return [self._one_piece(self.of(call.args[0]), dim, call.node.name)] * len(sizes)
        starts = np.cumsum([0, *sizes])
        return [
            self._pick(call, dim, np.arange(starts[i], starts[i] + size), i) for i, size in enumerate(sizes)
        ]

    def _joined(self, call: Call, dim: int, pieces: list[tuple[Cells, NDArray[np.int64]]]) -> Cells:
        """Cells of tensors laid end to end along `dim`; each piece with its channels' parts."""
        new = self._source_parts(self.axes_of(call.node.name)[dim])
        _, first = np.unique(new, return_index=True)
        others = np.broadcast_shapes(*(np.take(c, [0], axis=dim).shape for c, _ in pieces))
        taken = []
        offset = 0
        for cells, channels in pieces:
            here = first[(first >= offset) & (first < offset + len(channels))] - offset
            shape = (*others[:dim], len(here), *others[dim + 1 :])
            taken.append(np.broadcast_to(np.take(cells, channels[here], axis=dim), shape))
            offset += len(channels)
        return np.concatenate(taken, axis=dim)

    def _concatenate(self, call: Call) -> Cells:
        store = self.anatomy.store
        tensors = [t for t in call.args[0] if all(store.size(a) for a in self.axes_of(t.name))]
        dim = call.axis_arg(call.arg("dim", 0), len(self.axes_of(tensors[0].name)))
        laid = tuple(self.axes_of(t.name)[dim] for t in tensors)
        if self._strange(laid, self.axes_of(call.node.name)[dim : dim + 1]):  # put together again
            several = [self._one_piece(self.of(t), dim, call.node.name) for t in tensors]
            return self.equal_all(several, call.node.name, "pieces of different scale are joined")
        return self._joined(
            call, dim, [(self.of(t), self._source_parts(self.axes_of(t.name)[dim])) for t in tensors]
        )

    def _stack(self, call: Call) -> Cells:
        rank = len(self.axes_of(call.node.name))
        dim = call.axis_arg(call.arg("dim", 0), rank)
        one = np.zeros(1, dtype=np.int64)
        return self._joined(call, dim, [(np.expand_dims(self.of(t), dim), one) for t in call.args[0]])
