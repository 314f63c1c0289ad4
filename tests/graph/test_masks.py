"""Rows that a mask picks, and is written at: the module itself, on the inputs that led the trace and on
others, is the judge."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from test_capture import computed
from torch import Tensor, nn

from surgeon.errors import ModelError
from surgeon.graph.capture import capture
from surgeon.graph.captured import Captured

X = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
DEEP = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([[1, 4, 4, 2], [1, 2, 3, 4]])
MANY = torch.arange(180) % 2 == 0


def led(module: nn.Module, values: Mapping[str, Tensor]) -> Captured:
    return capture(module, (), {k: v.to("meta") for k, v in values.items()}, values=values, led=True)


def assert_same(module: nn.Module, captured: Captured, values: Mapping[str, Tensor]) -> None:
    given = dict(zip(captured.inputs, values.values(), strict=True))
    torch.testing.assert_close(computed(captured, given), module(**values).double())


class Inverted(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        mask = (ids > 2)[..., None].repeat(1, 1, 6)
        return x[mask.logical_not_()]


class Cleared(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        mask = (ids > 2)[..., None].repeat(1, 1, 6)
        mask[..., 0] = False
        return x[mask]


class ClearedByView(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        mask = (ids > 2)[..., None].tile(6)
        mask[..., 0].fill_(False)
        return x[mask]


class Narrowed(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        mask = (ids > 2)[..., None].repeat(1, 1, 6)
        mask &= torch.arange(6, device=x.device) > 1
        return x[mask]


class Named(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        column = (ids == 4)[..., None]
        return x[column.expand(size=(2, 4, 6))] + x[column.repeat(repeats=(1, 1, 6))]


class FromOne(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x[(ids[:1, 1] == 4).expand(2)]


class Nowhere(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        made, mask = x.clone(), (ids == 9)[..., None].expand(-1, -1, 6)
        made[mask] = (x[mask].view(-1, 6) * 2).flatten()
        return made


@pytest.mark.parametrize("kind", [Inverted, Cleared, ClearedByView, Narrowed, Named, FromOne, Nowhere])
def test_a_mask_however_it_is_stretched_and_changed(kind: type[nn.Module]) -> None:
    values = {"x": X, "ids": IDS}
    assert_same(kind(), led(kind(), values), values)


class Put(nn.Module):
    """Into rows of two axes, at a mask that is stretched over the first."""

    def forward(self, x: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        made = x.clone()
        made[(ids == 4)[..., None].expand(-1, -1, 3)] = rows
        return made


@pytest.mark.parametrize("shape", [(5,), (1, 5), (9, 5), (1,), ()])
def test_what_is_put_at_a_stretched_mask_may_be_of_fewer_rows(shape: tuple[int, ...]) -> None:
    values = {"x": DEEP, "ids": IDS, "rows": torch.randn(shape, generator=torch.Generator().manual_seed(2))}
    assert_same(Put(), led(Put(), values), values)


class Last(nn.Module):
    """A path that positions tell which a mask of many places has."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * 2 if torch.arange(len(mask), device=x.device)[mask].max() > 178 else x * 3


class First(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        table = torch.zeros(180, device=x.device)
        table[mask] = 1
        return x * 2 if table[0] == 1 else x * 3


@pytest.mark.parametrize("kind", [Last, First])
def test_a_path_that_positions_tell_is_asserted(kind: type[nn.Module]) -> None:
    values = {"x": X, "mask": MANY}
    captured = led(kind(), values)
    assert_same(kind(), captured, values)
    with pytest.raises(ModelError) as caught:
        computed(captured, dict(zip(captured.inputs, (X, ~MANY), strict=True)))
    assert caught.value.code == "S212"


class Numbered(nn.Module):
    """One number at as many places as there are, of whatever type it is."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        first, seen = x.flatten().repeat(4)[:180].clone(), ~mask
        counts = torch.ones(180, device=x.device).long()
        first[mask] = 0.0
        counts[mask], counts[~mask] = 2.5, torch.full((1,), 7, device=x.device)
        seen[mask] = 3
        return first + counts + seen


def test_one_number_is_written_wherever_a_mask_is_true_and_no_more_is_taken_for_granted() -> None:
    captured = led(Numbered(), {"x": X, "mask": MANY})
    assert not captured.branches
    for mask in (MANY, ~MANY, torch.arange(180) < 7):
        assert_same(Numbered(), captured, {"x": X, "mask": mask})
