"""Any rows of an expansion are the rows of the whole; shares and noise keep what they promise."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.axes.maps import NEW, clone_map
from surgeon.checkpoints import tensors
from surgeon.language.syntax import Spread
from surgeon.planning.transforms import AxisGrowth, Noise, Transform
from surgeon.rewriting.weights import blocks, expand

SPREADS = (
    Spread("symmetric"),
    Spread("diagonal"),
    Spread("first"),
    Spread("uneven", (Fraction(1), Fraction(2), Fraction(5))),
)


@st.composite
def axis(draw: st.DrawFn, spread: bool) -> AxisGrowth:
    size = draw(st.integers(1, 6))
    kind = draw(st.sampled_from(["unchanged", "clone", "to", "new", "shuffled"]))
    if kind == "unchanged":
        return AxisGrowth(size, size, None)
    factor = draw(st.integers(1, 4))
    index = clone_map(size, size * factor + (draw(st.integers(0, size)) if kind == "to" else 0))
    if kind == "new":
        index = np.append(index, [NEW] * draw(st.integers(1, 4)))
    if kind == "shuffled":
        index = np.random.default_rng(draw(st.integers(0, 99))).permutation(index)
    return AxisGrowth(size, len(index), index, draw(st.sampled_from(SPREADS)) if spread else None)


@st.composite
def transforms(draw: st.DrawFn) -> Transform:
    consumed = draw(st.sampled_from([None, 0, 1]))
    axes = tuple(draw(axis(i == consumed)) for i in range(draw(st.integers(max(1, (consumed or 0) + 1), 3))))
    scale = None
    if draw(st.booleans()):
        parts = tuple(
            np.arange(a.target) % 2 if i == 0 else np.zeros(a.target, int) for i, a in enumerate(axes)
        )
        scale = np.array([0.5, 3.0]).reshape(2, *[1] * (len(axes) - 1)), parts
    noisy = any(a.spread is not None for a in axes) and draw(st.booleans())
    offset = draw(st.sampled_from([0.0, 1.0])) if scale is not None else 0.0
    return Transform("w", axes, scale, offset, Noise(10.0, 7) if noisy else None)


@settings(deadline=None)
@given(transforms(), st.data())
def test_rows_are_those_of_the_whole(transform: Transform, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    source = torch.randn(transform.source_shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = source.clone()
    whole = expand(source, transform)
    assert tuple(whole.shape) == transform.target_shape
    assert torch.equal(source, before)
    rows = np.array(data.draw(st.lists(st.integers(0, whole.shape[0] - 1), max_size=9)), dtype=np.int64)
    assert torch.equal(expand(source, transform, rows=rows), whole[torch.from_numpy(rows)])
    joined = torch.cat(list(blocks(source, transform, None, torch.device("cpu"))))
    assert torch.equal(joined, whole)


def test_a_large_tensor_comes_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "BLOCK_ELEMENTS", 64)
    axes = (AxisGrowth(10, 30, clone_map(10, 30)), AxisGrowth(7, 14, clone_map(7, 14), SPREADS[3]))
    transform = Transform("w", axes, None, 0.0, Noise(10.0, 3))
    source = torch.randn(10, 7, dtype=torch.float64)
    pieces = list(blocks(source, transform, None, torch.device("cpu")))
    assert len(pieces) == 8
    whole = torch.cat(pieces)
    assert torch.equal(whole, expand(source, transform))
    # C·E = 1 and N·E = 0: summed over the copies of an input, each copy of an output is the source's.
    summed = whole.reshape(3, 10, 2, 7).sum(2)
    assert (summed - source).abs().max() < 1e-14
    plain = expand(source, Transform("w", axes, None))
    level = (whole - plain).square().mean(1).sqrt() / plain.square().mean(1).sqrt()
    assert torch.allclose(level, torch.full_like(level, 10**-0.5), rtol=1e-3)  # to 12 bits of the largest


@settings(deadline=None)
@given(transforms())
def test_copies_read_what_their_source_channel_read(transform: Transform) -> None:
    """Shares and noise, summed over the copies of each channel: the source's weight."""
    dim = next(
        (i for i, a in enumerate(transform.axes) if a.spread is not None and a.index is not None), None
    )
    if dim is None or (transform.axes[dim].spread or SPREADS[0]).name == "diagonal":
        return
    transform = replace(transform, scale=None, offset=0.0)
    axis, others = transform.axes[dim], list(transform.axes)
    others[dim] = AxisGrowth(axis.size, axis.size, None)
    source = torch.randn(transform.source_shape, dtype=torch.float64)
    wanted = expand(source, Transform("w", tuple(others), None))
    grown = expand(source, transform)
    assert axis.index is not None
    kept = torch.from_numpy(np.flatnonzero(axis.index != NEW))
    index = torch.from_numpy(axis.index)[kept]
    summed = torch.zeros_like(wanted).index_add_(dim, index, grown.index_select(dim, kept))
    torch.testing.assert_close(summed, wanted, rtol=1e-10, atol=1e-10)
    assert not grown.index_select(dim, torch.from_numpy(np.flatnonzero(axis.index == NEW))).any()
