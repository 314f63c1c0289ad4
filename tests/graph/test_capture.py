"""Capture: ops taken apart, and what a model that cannot be traced leaves behind, which must be nothing."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from versions import TRACER_OF_2_13

from surgeon.errors import ModelError
from surgeon.graph.capture import capture
from surgeon.graph.captured import Captured
from surgeon.graph.inference import infer
from surgeon.graph.parts import PARTS
from surgeon.graph.places import op_name, short
from surgeon.language import builtin_rules
from surgeon.verification.execution import Executor


def computed(captured: Captured, given: Mapping[str, Tensor]) -> Tensor:
    """The one result of a graph on `given` values of its placeholders, in float64."""
    wide = {name: v.double() if v.is_floating_point() else v for name, v in given.items()}
    runner = Executor(torch.device("cpu"), wide)
    for node in captured.nodes:
        if node.op == "call_function":
            runner.values[node.name] = runner.run_as_traced(node)
    (result,) = captured.results
    value = runner.values[result.name]
    assert isinstance(value, Tensor)
    return value


class Choosy(nn.Module):
    """Takes a path by what its weights compute."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.gate(x).sum() > 0 else x


def test_a_trace_that_fails_leaves_torch_as_it_was() -> None:
    """A mode left on torch's stack would answer every later call in the process."""
    module, x = Choosy(), torch.ones(2, 4)
    with pytest.raises(ModelError, match="Choosy cannot be captured") as caught:
        capture(module, (x,), values={"x": x})
    assert "forward" not in vars(module)
    assert "self.gate(x).sum() > 0" in str(caught.value)
    assert _get_current_function_mode_stack() == []


def test_ops_are_the_sum_of_their_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
    aten = torch.ops.aten
    for dim in (0, 2, -1):
        gain = torch.randn([n if i == dim % 3 else 1 for i, n in enumerate(x.shape)], dtype=x.dtype)
        parts = PARTS[aten._weight_norm.default](x, gain, dim)
        torch.testing.assert_close(parts, torch._weight_norm(x, gain, dim % 3), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(PARTS[aten.glu.default](x, 1), aten.glu.default(x, 1), rtol=1e-14, atol=1e-15)


def test_a_rule_goes_before_the_parts_of_an_op() -> None:
    x = torch.ones(2, 4)
    kept, apart = (
        {op_name(node) for node in capture(nn.GLU(), (x,), known=known).nodes}
        for known in ({"aten.glu"}, {"aten.sigmoid"})
    )
    assert "aten.glu.default" in kept
    assert "aten.glu.default" not in apart and "aten.sigmoid.default" in apart


PIECES = {
    "prelu": lambda x: (x, torch.tensor([0.3, -0.2, 0.7, 0.1, 0.9, 0.2], dtype=x.dtype)),
    "instance_norm": lambda x: (x, None, x[0, :, 0], None, None, True, 0.1, 1e-5, False),
    "pixel_shuffle": lambda x: (x.reshape(2, 8, 3, 3), 2),
    "pixel_unshuffle": lambda x: (x.reshape(2, 3, 4, 6)[:, :, :, :4], 2),
    "channel_shuffle": lambda x: (x, 3),
    "argmax": lambda x: (x.round(), 1, True),  # of equal ones, the first
    "argmin": lambda x: (x.round(), None, True),
    "addcmul": lambda x: (x, x.cos(), x.sin()),
    "addcdiv": lambda x: (x, x.cos(), x.exp()),
    "lerp.Tensor": lambda x: (x, x.cos(), x.sin()),
    "var_mean.correction": lambda x: (x, [0, -1]),
}


@pytest.mark.parametrize("name", PIECES)
def test_parts_compute_what_the_op_does(name: str) -> None:
    x = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")
    torch.testing.assert_close(PARTS[op](*PIECES[name](x)), op(*PIECES[name](x)), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("piece", [(1, 0, 2), (1, 4), (2, -3, -1), (1, 2, 5), (0,), (1, 0, 6, 2), (2, 3, 1)])
def test_a_piece_written_over_is_put_between_what_lies_around_it(piece: tuple[int, ...]) -> None:
    op, x = torch.ops.aten.slice_scatter.default, torch.arange(24.0).reshape(1, 6, 4).repeat(4, 1, 1)
    dim, *bounds = piece
    y = -torch.ops.aten.slice.Tensor(x, dim, *bounds)
    assert torch.equal(PARTS[op](x, y, *piece), op(x, y, *piece))
    turned = PARTS[op](x.transpose(1, 2), y.transpose(1, 2), {1: 2, 2: 1}.get(dim, dim), *bounds)
    assert torch.equal(turned.transpose(1, 2), op(x, y, *piece))
    if len(bounds) < 3:  # no steps
        assert turned.stride() == x.transpose(1, 2).stride()


def test_composites_are_taken_apart_unless_their_parts_check_values() -> None:
    """An inverse looks whether there is one as it runs, which no graph of values holds: it stays whole."""

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.diff(x @ torch.linalg.inv(x), dim=0)

    class Difference(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.diff(x, dim=0)

    known = {"aten.slice", "aten.narrow", "aten.sub", "aten.matmul"}
    ops = {op_name(node) for node in capture(Difference(), (torch.eye(3),), known=known).nodes}
    assert "aten.diff.default" not in ops and "aten.sub.Tensor" in ops
    whole = {op_name(node) for node in capture(Both(), (torch.eye(3),), known=known).nodes}
    assert not any("with_effects" in name for name in whole)
    assert whole & {
        "aten.linalg_inv.default",
        "aten.linalg_inv_ex.default",
    }  # torch 2.11 checks nothing there


TABLES = {
    "sizes of several stages": ([(3, 4), (5, 6)], None),
    "three deep, of truth": ([[[True], [False]], [[False], [True]]], None),
    "whole numbers and fractions": ([1, 2.5, -3], None),
    "as another type": ([[1, 2], [3, 4]], torch.float64),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_numbers_keep_them_where_the_model_has_no_data(name: str) -> None:
    data, dtype = TABLES[name]

    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.as_tensor(data, dtype=dtype, device=x.device).sum()

    x = torch.arange(3.0)
    captured = capture(Table(), (x.to("meta"),))
    assert not captured.constants
    nodes = [n for n in captured.nodes if op_name(n) != "aten.full.default"]
    made = captured.program.module().cpu()
    for node in made.graph.nodes:  # the graph says where it was traced
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "device"}
    made.recompile()
    wanted = torch.as_tensor(data, dtype=dtype)
    table = next(n for n in nodes if op_name(n) == "aten.sum.default").args[0]
    assert tuple(table.meta["val"].shape) == wanted.shape and table.meta["val"].dtype == wanted.dtype
    torch.testing.assert_close(made(x), Table()(x), rtol=0, atol=0)


def test_a_number_made_like_another_tensor_is_one_of_the_graph() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.new_tensor(0.3) + x.new_tensor([1, 2, 4], dtype=torch.float64).sum()

    x = torch.arange(3.0)
    captured = capture(Scaled(), (x.to("meta"),))
    assert not captured.constants
    made = captured.program.module().cpu()
    for node in made.graph.nodes:  # the graph says where it was traced
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "device"}
    made.recompile()
    torch.testing.assert_close(made(x), Scaled()(x), rtol=0, atol=0)


def test_sizes_that_computed_values_tell_are_refused() -> None:
    class Picking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            picked = x[self.layer(x).sum(-1) > 0]
            return picked if len(picked) == 1 else picked * 2

    with pytest.raises(ModelError, match="what it computes tells a size or a path") as caught:
        capture(Picking(), (torch.randn(4, 3),))
    assert caught.value.code == "S210"
    assert re.search(r"at .*test_capture\.py:\d+ in forward: ", caught.value.diagnostics[0].notes[0])


def test_what_is_no_table_of_numbers_is_refused() -> None:
    class Ragged(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tensor([[1, 2], [3]], device=x.device).sum()

    with pytest.raises(ModelError, match="Ragged makes a tensor of data as it runs"):
        capture(Ragged(), (torch.arange(3.0, device="meta"),))


def test_a_masked_scatter_is_the_sum_of_its_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 4, generator=generator)
    rows = torch.rand(3, 5, generator=generator) > 0.5
    masks = {
        "a row at a time": rows[..., None],
        "the same, spread": rows[..., None].expand_as(x),
        "each element": torch.rand(3, 5, 4, generator=generator) > 0.5,
        "nothing": torch.zeros(3, 5, 1, dtype=torch.bool),
        "some channels": torch.tensor([True, False, True, True]),
        "all": torch.tensor(True),
    }
    scatter = PARTS[torch.ops.aten.masked_scatter.default]
    for source in (torch.randn(40, 4, generator=generator), torch.randn(200, generator=generator)):
        for name, mask in masks.items():
            assert torch.equal(scatter(x, mask, source), x.masked_scatter(mask, source)), name


class Counting(nn.Module):
    """Asks its inputs how many rows there are, as models of pictures of many sizes do."""

    def forward(self, x: Tensor, counts: Tensor, mask: Tensor) -> Tensor:
        lengths = torch.repeat_interleave(counts.prod(1), counts[:, 0])
        ends = torch.unique_consecutive(lengths.repeat_interleave(2).cumsum(0) // 2 * 2)
        lengths = lengths + 0 * ends.diff().shape[0]
        parts = torch.split(x, lengths.tolist(), dim=0)
        return torch.stack([part.sum(0) for part in parts]) + x[mask].sum(0)


def test_rows_that_inputs_count_are_numbers_of_the_graph_and_asserted() -> None:
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    values = {
        "x": x,
        "counts": torch.tensor([[1, 4], [1, 5]]),
        "mask": torch.tensor([True, False, True] * 3),
    }
    module = Counting()
    captured = capture(module, (), {k: v.to("meta") for k, v in values.items()}, values=values)
    given = dict(zip(captured.inputs, values.values(), strict=True))
    torch.testing.assert_close(computed(captured, given), module(**values).double())
    assert any("[4, 5]" in said for said in captured.branches), captured.branches
    again = capture(module, (), {k: v.to("meta") for k, v in values.items()}, values=values, led=True)
    assert captured.led and [str(n.target) for n in again.nodes] == [str(n.target) for n in captured.nodes]
    for name, other in (("counts", torch.tensor([[1, 5], [1, 4]])), ("mask", ~values["mask"])):
        with pytest.raises(ModelError) as caught:
            computed(captured, {**given, name: other})
        assert caught.value.code == "S212"


def test_a_path_for_each_of_the_numbers_that_an_input_holds_is_one_path() -> None:
    class Grouped(nn.Module):
        def forward(self, x: Tensor, groups: Tensor) -> Tensor:
            return torch.stack([x[groups == group].sum(0) * group for group in groups.unique()])

    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    groups = torch.tensor([5, 2, 5, 5, 2, 9])
    values = {"x": x, "groups": groups}
    captured = capture(Grouped(), (), {k: v.to("meta") for k, v in values.items()}, values=values)
    given = dict(zip(captured.inputs, values.values(), strict=True))
    torch.testing.assert_close(computed(captured, given), Grouped()(**values).double())
    with pytest.raises(ModelError) as caught:
        computed(captured, {**given, "groups": groups.flip(0)})
    assert caught.value.code == "S212"


def test_sizes_that_inputs_name_are_numbers_of_the_graph() -> None:
    class Sized(nn.Module):
        def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
            high, wide = sizes[0]
            piece = x[:, : high * 2, -wide:].reshape(high, -1, wide)
            first, second = piece.split([wide, high * 0 + 1], dim=1)
            return first.sum() + second + torch.zeros(high, 1, wide, device=x.device)

    x = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    values = {"x": x, "sizes": torch.tensor([[4, 3]])}
    module = Sized()
    captured = capture(module, (), {k: v.to("meta") for k, v in values.items()}, values=values)
    assert [tuple(node.meta["val"].shape) for node in captured.results] == [(4, 1, 3)]
    given = dict(zip(captured.inputs, values.values(), strict=True))
    torch.testing.assert_close(computed(captured, given), module(**values).double())
    assert captured.branches


class Picking(nn.Module):
    """Rows by a mask that its inputs tell, asked for and written over; the mask may be stretched."""

    def forward(self, x: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        spread = (ids == 4).unsqueeze(-1).expand_as(x)
        starts, none = torch.argwhere(ids[0] == 4).squeeze(1), torch.argwhere(ids[0] == 9).squeeze(1)
        for _ in range((ids[0][starts + 1] == 4).sum() + (ids[0][none] == 4).sum()):
            x = x + 1
        if x[spread].numel() != rows.numel():
            raise ValueError("not as many")
        rows = rows + x[spread].reshape(rows.shape)
        x = x * 2
        x[ids == 4] = rows
        x[:, [0, 2]] = 1.0
        x = torch.cat([part + len(part) for part in (x[ids == 4], x[ids != 4])])
        return x


def test_what_is_picked_by_a_mask_that_inputs_tell_is_picked_by_position() -> None:
    generator = torch.Generator().manual_seed(0)
    values = {
        "x": torch.randn(2, 4, 3, generator=generator),
        "rows": torch.randn(3, 3, generator=generator),
        "ids": torch.tensor([[1, 4, 4, 2], [1, 2, 3, 4]]),
    }
    module = Picking()
    captured = capture(module, (), {k: v.to("meta") for k, v in values.items()}, values=values)
    given = dict(zip(captured.inputs, values.values(), strict=True))
    torch.testing.assert_close(computed(captured, given), module(**values).double())


class Parted(nn.Module):
    """One layer for the rows that a mask picks, one for the others; the mask is stretched over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        spread = (ids == 4)[..., None].expand(*x.shape[:-1], 6)
        made = torch.zeros_like(x)
        made[spread] = self.first(x[spread].view(-1, 6)).flatten()
        made[~spread] = self.second(x[~spread].view(-1, 6)).flatten()
        pairs = x.unflatten(-1, (3, 2))
        halves = spread[..., :3].logical_not()[..., :1].expand(-1, -1, 3)
        pairs[halves] = pairs[halves] + 1
        pairs[~halves] = x.new_full((1,), 2.0)
        return made + pairs.flatten(-2)


def test_the_two_parts_of_a_stretched_mask_keep_their_channels() -> None:
    torch.manual_seed(0)
    module = Parted()
    values = {"x": torch.randn(2, 4, 6), "ids": torch.tensor([[1, 4, 4, 2], [1, 2, 3, 4]])}
    traced = {k: v.to("meta") for k, v in values.items()}
    captured = capture(Parted().to("meta"), (), traced, values=values)
    weights = {p: module.get_parameter(name).detach() for p, name in captured.parameters.items()}
    given = {**dict(zip(captured.inputs, values.values(), strict=True)), **weights}
    expected = module.double()(values["x"].double(), values["ids"])
    torch.testing.assert_close(computed(captured, given), expected)
    anatomy = infer(captured, builtin_rules())
    channels = {a for name in ("first", "second") for a in anatomy.parameter_axes(f"{name}.weight")}
    assert len(channels) == 1


def test_of_many_rows_that_a_mask_picks_only_how_many_there_are_is_taken_for_granted() -> None:
    class Kept(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            whole = mask[..., None].repeat(1, 1, x.shape[-1])
            return x[mask].reshape(len(x), -1, x.shape[-1]) + x[whole].view(len(x), -1, x.shape[-1])

    x = torch.randn(2, 90, 3, generator=torch.Generator().manual_seed(0))
    values = {"x": x, "mask": (torch.arange(90) % 2 == 0).repeat(2, 1)}
    module = Kept()
    captured = capture(module, (), {k: v.to("meta") for k, v in values.items()}, values=values)
    assert captured.shapes[captured.results[0].name] == ((2, 45, 3),)
    for mask in (values["mask"], values["mask"].flip(1)):
        given = dict(zip(captured.inputs, (x, mask), strict=True))
        torch.testing.assert_close(computed(captured, given), module(x, mask).double())
    with pytest.raises(ModelError, match=r"90 of them at tests/graph/test_capture\.py") as caught:
        computed(captured, {**given, "mask": torch.ones(2, 90, dtype=torch.bool)})
    assert caught.value.code == "S212"


def test_what_is_drawn_into_by_a_function_that_names_it_is_not_known_any_more() -> None:
    """As torch's own layers do, where a model makes one while it runs."""

    class Making(nn.Module):
        def forward(self, x: Tensor, count: Tensor) -> Tensor:
            nn.init.kaiming_uniform_(tensor=torch.empty(3, 3, device=x.device))
            for _ in range(int(count.sum())):
                x = x * 2
            return x

    values = {"x": torch.ones(2, 3), "count": torch.tensor([1, 2])}
    captured = capture(Making(), (), {k: v.to("meta") for k, v in values.items()}, values=values)
    given = dict(zip(captured.inputs, values.values(), strict=True))
    torch.testing.assert_close(computed(captured, given), 8 * values["x"].double())


class Unmasked(nn.Module):
    """Rows of which a mask, which weights and inputs tell, would leave nothing are left whole."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        masked = self.key(x) < 0
        masked[torch.where(masked.sum(-1) == masked.shape[-1])] = False
        return self.key(x).masked_fill(masked, 7.0)


def test_a_number_is_written_at_those_positions_alone_that_weights_tell() -> None:
    torch.manual_seed(0)
    module, x = Unmasked(), 3 * torch.randn(4, 16, 5)
    masked = module.key(x) < 0
    emptied = masked.all(-1)
    assert emptied.any() and masked[~emptied].any()
    captured = capture(Unmasked().to("meta"), (), {"x": x.to("meta")}, values={"x": x})
    weights = dict(module.named_parameters())
    given = {"x": x, **{p: weights[name].detach() for p, name in captured.parameters.items()}}
    torch.testing.assert_close(computed(captured, given), module.double()(x.double()))


def test_a_long_mask_is_asserted_by_where_it_is_true() -> None:
    class Sparse(nn.Module):
        def forward(self, x: Tensor, places: Tensor) -> Tensor:
            grid = nn.functional.pad(places, (0, 0, 0, 30), value=-1)
            return x[grid[grid >= 0]] * 2

    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    values = {"x": x, "places": torch.tensor([[5, -1, 1, 2, -1, -1], [-1, 0, -1, -1, -1, 7]])}
    module = Sparse()
    captured = capture(module, (), {k: v.to("meta") for k, v in values.items()}, values=values)
    assert captured.shapes[captured.results[0].name] == ((5, 3),)
    given = dict(zip(captured.inputs, values.values(), strict=True))
    torch.testing.assert_close(computed(captured, given), module(**values).double())
    moved = torch.tensor([[5, 1, 2, -1, -1, -1], [-1, 0, -1, -1, -1, 7]])
    with pytest.raises(ModelError) as caught:
        computed(captured, {**given, "places": moved})
    assert caught.value.code == "S212"


def test_positions_that_inputs_tell_are_those_and_no_more() -> None:
    """Each query looks at the best of the words that it may look at, and those are not all there are."""

    class Sparse(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            best = []
            for row, seen in zip(x, mask, strict=True):
                places = torch.nonzero(seen, as_tuple=False).flatten()
                (again,) = torch.where(seen)
                rows = row.index_select(0, places) + seen.nonzero(as_tuple=True)[0][:, None]
                best.append(rows.topk(min(2, len(again)), 0).values.sum(0))
            return torch.stack(best)

    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[False, True, False, True, True], [True, False, False, False, False]])
    values, module = {"x": x, "mask": mask}, Sparse()
    captured = capture(module, (), {k: v.to("meta") for k, v in values.items()}, values=values)
    given = dict(zip(captured.inputs, values.values(), strict=True))
    torch.testing.assert_close(computed(captured, given), module(**values).double())
    with pytest.raises(ModelError) as caught:
        computed(captured, {**given, "mask": mask.flip(1)})
    assert caught.value.code == "S212"


class Choosing(nn.Module):
    """Reads as many rows as its input says, by an index that it makes."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x[torch.arange(len(x), device=x.device)[mask]] * 2


def test_an_index_of_a_length_that_data_decides_is_none_of_known_numbers() -> None:
    x, mask = torch.ones(4, 3), torch.tensor([True, False, True, True])
    meta = (x.to("meta"), mask.to("meta"))
    rules = builtin_rules()
    left_open = infer(capture(Choosing(), meta, known={n for rule in rules for n in rule.names}), rules)
    assert not isinstance(left_open.captured.results[0].meta["val"].shape[0], int)
    told = capture(Choosing(), meta, values={"x": x, "mask": mask})
    assert told.shapes[told.results[0].name] == ((3, 3),)  # by the values of the mask


@TRACER_OF_2_13
def test_checks_of_values_are_left_out_where_asked() -> None:
    class Careful(nn.Module):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            torch._check_tensor_all(ids.sum() == 12 * x.shape[-1])
            return x * 2

    inputs = (torch.ones(2, 4, device="meta"), torch.ones(48, dtype=torch.long, device="meta"))
    for checks in (True, False):
        ops = [op_name(node) for node in capture(Careful(), inputs, checks=checks).nodes]
        assert ("aten.sum.default" in ops) is checks


class Striding(nn.Module):
    """Pads by a whole number that a buffer holds, and asks it; counts steps between positions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stride", torch.tensor(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] <= self.stride:
            return x
        places = torch.arange(5, device=x.device)
        steps = torch.diff(places, prepend=places[:1] - 1, dim=-1)
        return nn.functional.pad(x, (self.stride, self.stride - 2))[:, :5] * steps


def test_whole_numbers_in_buffers_lead_a_trace_and_are_asserted() -> None:
    x, module = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), Striding()
    numbers = dict(module.named_buffers())
    meta = Striding().to("meta")
    captured = capture(meta, (), {"x": x.to("meta")}, values={"x": x}, buffers=numbers)
    (name,) = captured.buffers

    def outcome(stride: int) -> Tensor:
        return computed(captured, {captured.inputs[0]: x, name: torch.tensor(stride)})

    torch.testing.assert_close(outcome(3), module(x).double())
    with pytest.raises(ModelError) as caught:
        outcome(2)
    assert caught.value.code == "S212"
    with pytest.raises(ModelError, match="cannot be captured"):
        capture(meta, (), {"x": x.to("meta")}, values={"x": x})


def test_a_graph_that_fails_on_its_inputs_says_where() -> None:
    class Chosen(nn.Module):
        def forward(self, x: Tensor, rows: Tensor) -> Tensor:
            return torch.index_select(x, 0, rows)

    x, rows = torch.randn(3, 2), torch.tensor([0, 2])
    captured = capture(Chosen(), (x, rows))
    given = dict(zip(captured.inputs, (x[:0], rows), strict=True))
    with pytest.raises(ModelError, match="index_select") as caught:
        computed(captured, given)
    assert caught.value.code == "S215"


class Table:
    """No module: it makes a tensor when it is first asked, and keeps it."""

    @functools.cached_property
    def values(self) -> Tensor:
        return torch.tensor([2.0, 3.0])


class Tabled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.seen = Table(), [1]

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self.seen.append(len(x))
        return x * self.table.values


def test_a_module_is_traced_as_if_for_the_first_time_whenever_it_is() -> None:
    module, x = Tabled(), torch.ones(2, 2)
    first, second = (capture(module, (x,)) for _ in range(2))
    assert [n.name for n in first.nodes] == [n.name for n in second.nodes]
    assert "values" not in vars(module.table) and not hasattr(module, "last") and module.seen == [1]


def test_a_file_of_the_working_folder_is_named_as_it_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert short(str(tmp_path / "gated.py")) == "gated.py"
    assert short(str(tmp_path / "a" / "b" / "c" / "gated.py")) == "b/c/gated.py"
    assert short(str(tmp_path.parent / "gated.py")).endswith(f"{tmp_path.parent.name}/gated.py")
