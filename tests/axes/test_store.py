"""The algebra of axes, on random products and concatenations."""

from __future__ import annotations

import sys
from itertools import product as combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from surgeon.axes.maps import Maps, clone_map
from surgeon.axes.store import UNIT, Axis, AxisConflict, Cat, Factor, Store, parts

sys.path.insert(0, str(Path(__file__).parent))
from drawn import SHAPES, Shape, build, divisors, size_of


@given(SHAPES)
def test_resolve_keeps_the_size_and_is_normal(shape: Shape) -> None:
    store = Store()
    axis = build(store, shape)
    assert store.size(axis) == size_of(shape)
    once = store.resolve(axis)
    assert store.size(once) == size_of(shape)
    assert store.resolve(once) == once


@given(SHAPES, st.data())
def test_regroup_keeps_the_size_and_flattens_back(shape: Shape, data: st.DataObject) -> None:
    store = Store()
    axis = build(store, shape)
    size = size_of(shape)
    low = data.draw(st.sampled_from(divisors(size)))
    try:
        groups = store.regroup(axis, (size // low, low))
    except AxisConflict:
        assume(False)
        raise
    assert [store.size(g) for g in groups] == [size // low, low]
    flat = tuple(f for g in groups for f in g)
    assert store.size(flat) == size
    assert store.resolve(flat) == store.resolve(axis)
    assert store.size(axis) == size


@given(st.integers(2, 120), st.data())
def test_a_fresh_dim_regroups_into_any_sizes(size: int, data: st.DataObject) -> None:
    store = Store()
    axis = store.fresh(size)
    a = data.draw(st.sampled_from(divisors(size)))
    b = data.draw(st.sampled_from(divisors(size // a)))
    groups = store.regroup(axis, (a, b, size // a // b))
    assert [store.size(g) for g in groups] == [a, b, size // a // b]
    assert store.resolve(tuple(f for g in groups for f in g)) == store.resolve(axis)


def test_regroup_refuses_another_size() -> None:
    store = Store()
    with pytest.raises(AxisConflict, match="cannot be regrouped"):
        store.regroup(store.fresh(12), (5, 2))


def test_axes_counted_in_different_orders_are_none() -> None:
    """Batch and heads, say: which of each meet depends on how many there are."""
    store = Store()
    batch, heads = store.fresh(3), store.fresh(4)
    with pytest.raises(AxisConflict, match=r"counted in different orders: d0:3·d1:4 and d1:4·d0:3") as caught:
        store.unify((*batch, *heads), (*heads, *batch))
    assert set(caught.value.dims) == {0, 1}


@given(SHAPES, SHAPES, st.booleans())
def test_unify_is_symmetric(left: Shape, right: Shape, pinned: bool) -> None:
    def run(swap: bool) -> tuple[bool, list[int], tuple[bool, ...]]:
        store = Store()
        a, b = build(store, left), build(store, right)
        if pinned:
            store.pin(a, "S301", "asked")
        try:
            whole = store.unify(b, a) if swap else store.unify(a, b)
        except AxisConflict:
            return False, [], ()
        assert store.resolve(a) == store.resolve(b) == store.resolve(whole)
        leaves = list(store.leaves(whole))
        return True, [store.sizes[d] for d in leaves], tuple(bool(store.pins_of(d)) for d in leaves)

    done, sizes, pins = run(False)
    assert run(True) == (done, sizes, pins)
    assert done or size_of(left) != size_of(right) or sizes == []
    if done:
        assert size_of(left) == size_of(right)
        assert all(pins) or not pinned


@given(SHAPES)
def test_unify_with_a_fresh_dim_takes_its_structure(shape: Shape) -> None:
    store = Store()
    axis = build(store, shape)
    whole = store.fresh(size_of(shape))
    assert store.unify(whole, axis) == store.resolve(axis) == store.resolve(whole)
    ties = {d for a, b, _ in store.ties for d in (a, b)}
    assert ties >= set(whole)
    assert store.size(whole) == size_of(shape)


@given(st.lists(st.integers(2, 6), min_size=1, max_size=4))
def test_unify_of_products_is_elementwise(sizes: list[int]) -> None:
    store = Store()
    a, b = (tuple(f for s in sizes for f in store.fresh(s)) for _ in range(2))
    store.unify(a, b)
    assert [store.root(d) for d in a] == [store.root(d) for d in b]
    assert len({store.root(d) for d in a}) == len(sizes)


def test_axes_of_different_sizes_do_not_meet() -> None:
    store = Store()
    a, b = store.fresh(4), store.fresh(6)
    with pytest.raises(AxisConflict, match="different sizes") as caught:
        store.unify(a, b)
    assert set(caught.value.dims) == {*a, *b}


def test_pins_follow_a_dim_through_binding_and_union() -> None:
    store = Store()
    a, b, c = store.fresh(6), store.fresh(6), store.fresh(6)
    store.pin(a, "S303", "a softmax runs over it")
    store.unify(b, a)
    assert store.pins_of(b[0])
    pieces = store.regroup(b, (2, 3))
    store.unify(c, a)
    for dim in (*store.leaves(c), *store.leaves(pieces[0])):
        assert [p.code for p in store.pins_of(dim)] == ["S303"]


@given(SHAPES, st.data())
def test_cut_gives_two_pieces_that_make_the_whole(shape: Shape, data: st.DataObject) -> None:
    store = Store()
    axis = build(store, shape)
    size = size_of(shape)
    assume(size > 1)
    at = data.draw(st.integers(1, size - 1))
    try:
        left, right = store.cut(axis, at)
    except AxisConflict as conflict:
        assert "inside a product" in str(conflict)
        return
    assert (store.size(left), store.size(right)) == (at, size - at)
    doubled = {d: clone_map(store.sizes[d], 2 * store.sizes[d]) for d in store.leaves(axis)}
    maps = Maps(store, doubled)
    np.testing.assert_array_equal(maps.index((Cat((left, right)),)), maps.index(axis))


@given(st.integers(2, 40), st.data())
def test_slice_has_the_size_asked_for(size: int, data: st.DataObject) -> None:
    store = Store()
    axis = store.fresh(size)
    pieces = []
    for _ in range(3):
        start = data.draw(st.integers(0, size))
        stop = data.draw(st.integers(start, size))
        pieces.append((store.slice(axis, start, stop), stop - start))
    assert all(store.size(piece) == extent for piece, extent in pieces)
    assert store.size(axis) == size


@given(st.integers(2, 12))
def test_units_takes_an_axis_apart(size: int) -> None:
    store = Store()
    axis = store.fresh(size)
    store.units(axis)
    assert parts(store, axis) == size
    assert store.size(axis) == size


def test_an_axis_of_one_needs_no_dim() -> None:
    store = Store()
    assert store.fresh(1) == UNIT
    assert store.size(UNIT) == 1
    assert store.show(UNIT) == "1"


@pytest.mark.parametrize(("a", "b"), combinations([2, 3], [4, 5]))
def test_a_common_tail_is_drawn_out(a: int, b: int) -> None:
    store = Store()
    left, right, tail = store.fresh(a), store.fresh(b), store.fresh(7)
    axis = (Cat(((*left, *tail), (*right, *tail))),)
    assert store.resolve(axis) == (Cat((left, right)), *tail)
    assert store.show(axis) == f"(d0:{a} ++ d1:{b})·d2:7"


UNITS: st.SearchStrategy[Shape] = st.recursive(
    st.integers(1, 3),
    lambda inner: st.tuples(
        st.sampled_from(["product", "cat"]), st.lists(inner, min_size=1, max_size=3).map(tuple)
    ),
    max_leaves=6,
)


def written_otherwise(data: st.DataObject, axis: Axis) -> Axis:
    """The same axis, its products multiplied out here and there, its concatenations nested."""
    factors: list[Factor] = []
    for factor in axis:
        if isinstance(factor, Cat):
            pieces = [written_otherwise(data, part) for part in factor.parts]
            if len(pieces) > 2 and data.draw(st.booleans()):
                pieces = [pieces[0], (Cat(tuple(pieces[1:])),)]
            factors.append(Cat(tuple(pieces)))
        else:
            factors.append(factor)
    if len(factors) > 1 and isinstance(factors[0], Cat) and data.draw(st.booleans()):
        rest = factors[1:]
        return (Cat(tuple((*part, *rest) for part in factors[0].parts)),)
    return tuple(factors)


@given(UNITS, st.data())
def test_the_normal_form_does_not_depend_on_how_an_axis_is_written(shape: Shape, data: st.DataObject) -> None:
    store = Store()
    axis = build(store, shape)
    other = written_otherwise(data, axis)
    once = store.resolve(axis)
    assert store.resolve(other) == once == store.resolve(once)
    assert parts(store, other) == parts(store, axis)
    maps = Maps(store, {d: clone_map(store.sizes[d], 2 * store.sizes[d]) for d in store.leaves(axis)})
    np.testing.assert_array_equal(maps.index(other), maps.index(axis))


@given(UNITS, st.data())
def test_two_normal_forms_are_two_axes(shape: Shape, data: st.DataObject) -> None:
    """Of two arrangements of the same dims with different normal forms, some growth tells them apart."""
    store = Store()
    axis = build(store, shape)
    dims = [*dict.fromkeys(store.leaves(axis))]
    order = dict(zip(dims, data.draw(st.permutations(dims)), strict=True))

    def renamed(a: Axis) -> Axis:
        return tuple(Cat(tuple(renamed(p) for p in f.parts)) if isinstance(f, Cat) else order[f] for f in a)

    other = renamed(store.resolve(axis))
    if store.resolve(other) == store.resolve(axis):
        return
    told = False
    for dim in dims:
        maps = Maps(store, {dim: np.array([*range(store.sizes[dim]), 0, 0])})
        a, b = maps.index(axis), maps.index(other)
        told = told or len(a) != len(b) or bool((a != b).any())
    assert told


@given(UNITS, UNITS, st.booleans())
def test_unify_ends_in_one_axis_with_units_too(left: Shape, right: Shape, swap: bool) -> None:
    store = Store()
    a, b = build(store, left), build(store, right)
    assume(store.size(a) == store.size(b))
    try:
        whole = store.unify(b, a) if swap else store.unify(a, b)
    except AxisConflict:
        return
    assert store.resolve(a) == store.resolve(b) == store.resolve(whole)


def test_pieces_are_viewed_in_rows() -> None:
    """Pieces a b a' b laid end to end and viewed as two rows: a' is a, and each row is a ++ b."""
    store = Store()
    a, again, b = store.fresh(4), store.fresh(4), store.fresh(2)
    rows, row = store.regroup((Cat((a, b, again, b)),), (2, 6))
    assert parts(store, rows) == 2
    assert store.resolve(row) == store.resolve((Cat((a, b)),))
    assert store.root(again[0]) == store.root(a[0])
