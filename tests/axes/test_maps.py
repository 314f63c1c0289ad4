"""Channel maps compose as axes do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from surgeon.axes.maps import NEW, Index, Maps, clone_map, copies_of, copy_number
from surgeon.axes.store import Axis, Cat, Store

sys.path.insert(0, str(Path(__file__).parent))
from drawn import SHAPES, Shape, build, laid_out, size_of


def draw_maps(data: st.DataObject, store: Store, axis: Axis, new: bool = True) -> dict[int, Index]:
    maps: dict[int, Index] = {}
    for dim in store.leaves(axis):
        size = store.sizes[dim]
        if data.draw(st.booleans()):
            channels = st.integers(NEW if new else 0, size - 1)
            extra = data.draw(st.lists(channels, max_size=2 * size))
            maps[dim] = np.array([*range(size), *extra], dtype=np.int64)
    return maps


@given(SHAPES, st.data())
def test_index_is_that_of_a_tensor_really_laid_out(shape: Shape, data: st.DataObject) -> None:
    store = Store()
    axis = build(store, shape)
    maps = draw_maps(data, store, axis)
    composed = Maps(store, maps)
    index = composed.index(axis)
    expected = laid_out(shape, store, axis, maps)
    assert len(index) == composed.target_size(axis) == len(composed.parts(axis))
    np.testing.assert_array_equal(index, expected)
    values = np.random.default_rng(0).standard_normal(size_of(shape))
    grown = np.where(index == NEW, 0.0, np.take(values, index))
    np.testing.assert_array_equal(grown, np.where(expected == NEW, 0.0, values[expected]))
    assert composed.grows(axis) == bool(maps)


@given(SHAPES, SHAPES, st.data())
def test_index_of_a_product_is_the_kronecker_product(a: Shape, b: Shape, data: st.DataObject) -> None:
    store = Store()
    assume(size_of(a) * size_of(b) <= 64)
    left, right = build(store, a), build(store, b)
    maps = Maps(store, draw_maps(data, store, (*left, *right), new=False))

    def matrix(axis: Axis) -> np.ndarray:
        return np.eye(store.size(axis))[maps.index(axis)]

    np.testing.assert_array_equal(matrix((*left, *right)), np.kron(matrix(left), matrix(right)))


@given(st.lists(SHAPES, min_size=2, max_size=3), st.data())
def test_index_of_a_concatenation_is_the_concatenation(shapes: list[Shape], data: st.DataObject) -> None:
    store = Store()
    pieces = tuple(build(store, s) for s in shapes)
    whole: Axis = (Cat(pieces),)
    maps = Maps(store, draw_maps(data, store, whole))
    expected, offset = [], 0
    for piece in pieces:
        index = maps.index(piece)
        expected.append(np.where(index == NEW, NEW, index + offset))
        offset += store.size(piece)
    np.testing.assert_array_equal(maps.index(whole), np.concatenate(expected))


@given(st.integers(1, 9), st.integers(1, 40))
def test_clone_map(source: int, target: int) -> None:
    index = clone_map(source, target)
    assert [int(i) for i in index] == [j % source for j in range(target)]
    number = copy_number(index, source)
    assert [int(i) for i in number] == [j // source for j in range(target)]
    assert copies_of(index, source).sum() == target


@given(st.lists(st.integers(NEW, 4), min_size=1, max_size=20))
def test_copies_and_their_numbers(channels: list[int]) -> None:
    index = np.array(channels, dtype=np.int64)
    assert [int(c) for c in copies_of(index, 5)] == [channels.count(i) for i in range(5)]
    assert [int(n) for n in copy_number(index, 5)] == [channels[:j].count(c) for j, c in enumerate(channels)]


@given(SHAPES, st.data())
def test_multiplicity_is_what_a_sum_is_multiplied_by(shape: Shape, data: st.DataObject) -> None:
    store = Store()
    axis = build(store, shape)
    maps = {
        d: clone_map(store.sizes[d], store.sizes[d] * data.draw(st.integers(1, 3)))
        for d in store.leaves(axis)
    }
    composed = Maps(store, maps)
    pieces, numbers = composed.multiplicity(axis), composed.parts(axis)
    copies = copies_of(composed.index(axis), size_of(shape))
    assert len(pieces) == int(numbers.max()) + 1
    for piece, count in enumerate(pieces):
        assert {int(c) for c in copies[np.unique(composed.index(axis)[numbers == piece])]} == {count}
