"""What a model makes of numbers alone, found in its graph and computed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx, nn

from surgeon.axes.maps import NEW, clone_map
from surgeon.graph.capture import capture
from surgeon.graph.captured import Captured
from surgeon.graph.closed import closed_nodes, evaluate, frontier
from surgeon.planning.known import _channels, match_values


class Sloped(nn.Module):
    """Adds slopes of positions, as a model with position-biased heads does."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.gain = heads, nn.Parameter(torch.ones(heads, 1))

    def forward(self, x: Tensor) -> Tensor:
        base = torch.full((), 2 ** (-8 / self.heads))
        slopes = base ** torch.arange(1, self.heads + 1)
        mask = torch.rand(5) > 0.5
        return x * self.gain + slopes[:, None] * torch.arange(5) + mask


def captured(heads: int) -> Captured:
    return capture(Sloped(heads), (torch.zeros(heads, 5),))


def test_the_outermost_closed_node_holds_the_slopes() -> None:
    graph = captured(4)
    (outer,) = frontier(graph, closed_nodes(graph))  # what is drawn at random is none
    slopes = 2.0 ** -torch.tensor([2.0, 4.0, 6.0, 8.0], dtype=torch.float64)
    torch.testing.assert_close(evaluate([outer])[outer.name], slopes[:, None] * torch.arange(5))


def test_slopes_of_more_heads_hold_the_slopes_of_fewer() -> None:
    rows = []
    for graph in (captured(4), captured(8)):
        (outer,) = frontier(graph, closed_nodes(graph))
        rows.append(evaluate([outer])[outer.name].double().numpy())
    index = match_values(rows[0], rows[1], clone_map(4, 8))
    assert index is not None
    assert index.tolist() == [NEW, 0, NEW, 1, NEW, 2, NEW, 3]
    assert match_values(rows[0] + 1, rows[1], clone_map(4, 8)) is None
    assert np.array_equal(match_values(rows[0], np.tile(rows[0], (2, 1)), clone_map(4, 8)), clone_map(4, 8))


def test_a_number_that_is_moved_to_the_traces_device_has_its_value() -> None:
    aten, graph = torch.ops.aten, fx.Graph()
    made = graph.call_function(aten.full.default, ([2], 0.25), {"device": torch.device("meta")})
    moved = graph.call_function(aten.to.device, (made, torch.device("meta"), torch.float64))
    assert evaluate([moved])[moved.name].tolist() == [0.25, 0.25]


class Waves(nn.Module):
    """Adds cosines of positions, made in float32 of whole numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.gain = width, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        rate = 1.0 / 1e6 ** (torch.arange(self.width) / self.width)
        return x * self.gain + (torch.arange(3, dtype=torch.float32)[:, None] * rate).cos()


def test_cosines_that_float32_cannot_tell_apart_stand_at_their_own_places() -> None:
    made = []
    for width in (8, 24):
        graph = capture(Waves(width), (torch.zeros(3, width),))
        (outer,) = frontier(graph, closed_nodes(graph))
        made.append(evaluate([outer])[outer.name].T.numpy())
    assert len(np.unique(made[1].astype(np.float32), axis=0)) < 24
    index = match_values(made[0], made[1], clone_map(8, 24))
    assert index is not None
    assert np.flatnonzero(index != NEW).tolist() == list(range(0, 24, 3))
    assert torch.get_default_dtype() == torch.float32


def test_channels_of_a_value_that_is_empty_along_another_axis_are_rows_of_nothing() -> None:
    assert _channels(torch.zeros(64, 0), 32, 2).shape == (32, 0)
    rows = _channels(torch.arange(24).reshape(12, 2), 3, 2)  # 2 × 3 channels × 2, of two numbers each
    assert rows.tolist() == [
        [0, 1, 2, 3, 12, 13, 14, 15],
        [4, 5, 6, 7, 16, 17, 18, 19],
        [*range(8, 12), *range(20, 24)],
    ]
