"""Values that hold something else between the source's channels: how they flow, what is refused, and what
the shares of their readers are. The oracle is the function itself, computed by hand on grown values whose
other channels are noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.axes.maps import NEW, Index, Maps, filled_map
from surgeon.axes.store import Cat, Store
from surgeon.errors import PlanError
from surgeon.graph.capture import capture
from surgeon.graph.inference import Anatomy, infer
from surgeon.language.loading import builtin_rules, loads
from surgeon.language.syntax import Recipe, Spread
from surgeon.planning.equations import solve_scales
from surgeon.planning.partial import Partial, infer_partial, measured_dims
from surgeon.planning.roles import infer_roles
from surgeon.planning.transforms import build_transforms
from surgeon.rewriting.weights import expand

WIDTH, TOKENS = 4, 3
PLACED: Index = np.array([0, NEW, 1, NEW, NEW, 2, NEW, 3, NEW, NEW, NEW, NEW])
FREE = PLACED == NEW


class Formula(nn.Module):
    """A function of parameters, x, and the buffer `waves`, which is tied to x's last axis by `inward`."""

    def __init__(self, what: Callable[[Formula, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.what = what
        shapes = dict(inward=(WIDTH, 5), out=(6, WIDTH), back=(WIDTH, WIDTH), kernel=(6, WIDTH, 1))
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.gain = nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("waves", torch.randn(TOKENS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.inward)
        return self.what(self, h, h + self.waves)


def known(formula: Formula) -> tuple[Anatomy, Maps, dict[str, frozenset[int]]]:
    """A captured formula whose hidden dim grows threefold, and in whose `waves` the source's channels stand
    at PLACED."""
    rules = tuple(builtin_rules())
    spoken_of = {name for rule in rules for name in rule.names}
    x = torch.randn(TOKENS, 5, dtype=formula.gain.dtype)
    anatomy = infer(capture(formula, (x,), known=spoken_of), rules)
    ((dim,),) = anatomy.parameter_axes("waves")[1:]
    assert isinstance(dim, int)
    maps = Maps(anatomy.store, {dim: filled_map(PLACED, WIDTH)}, {dim: PLACED})
    return anatomy, maps, {"b_waves": frozenset([dim])}


def flow(formula: Formula, recipe: Recipe) -> tuple[Anatomy, Maps, Partial]:
    anatomy, maps, partial = known(formula)
    roles = infer_roles(anatomy, recipe)
    return anatomy, maps, infer_partial(anatomy, maps, roles, partial, {"b_waves": "the waves"})


def recipe(words: str = "") -> Recipe:
    (made,) = loads(f"recipe r() {{\n grow config.width by 3\n {words}\n}}").recipes
    return made


def test_a_map_of_an_axis_leaves_out_what_is_free_in_any_factor() -> None:
    store = Store()
    (a,), (b,) = store.fresh(2), store.fresh(3)
    placed = np.array([NEW, 0, 1, NEW])
    maps = Maps(store, {a: filled_map(placed, 2)}, {a: placed})
    assert maps.index((a,)).tolist() == [0, 0, 1, 1]
    assert maps.index((a, b), frozenset([a])).tolist() == [-1, -1, -1, 0, 1, 2, 3, 4, 5, -1, -1, -1]
    laid = (Cat(((b,), (a,))),)
    assert maps.index(laid, frozenset([a])).tolist() == [0, 1, 2, NEW, 3, 4, NEW]
    assert maps.index(laid).tolist() == [0, 1, 2, 3, 3, 4, 4]


def test_a_filled_map_copies_every_channel_equally_often() -> None:
    filled = filled_map(PLACED, WIDTH)
    assert np.bincount(filled).tolist() == [3, 3, 3, 3]
    assert (filled[~FREE] == PLACED[~FREE]).all()


READERS: dict[str, Callable[[Formula, Tensor, Tensor], Tensor]] = {
    "a linear layer": lambda m, h, p: F.linear(p, m.out),
    "after what acts on each channel alone": lambda m, h, p: F.linear(torch.tanh(p * 2) * m.gain, m.out),
    "one weight for a partial and for a whole value": lambda m, h, p: F.linear(p, m.out) + F.linear(h, m.out),
    "a convolution": lambda m, h, p: F.conv1d(p.T[None], m.kernel)[0].T,
    "into the same dim again": lambda m, h, p: F.linear(
        F.layer_norm(h + F.linear(p, m.back), [h.shape[1]]), m.out
    ),
    "an einsum": lambda m, h, p: torch.einsum("oi,ti->to", m.out, p),
}


@pytest.mark.parametrize("spread", ["symmetric", "diagonal", "first", "uneven(1, 2)"])
@pytest.mark.parametrize("name", READERS)
def test_readers_leave_out_what_the_source_lacks(name: str, spread: str) -> None:
    """The grown function on grown weights, by hand: the other channels of the waves are noise."""
    formula = Formula(READERS[name]).double()
    asked = recipe(f"spread linear with {spread}\n noise linear at 0 dB")
    anatomy, maps, partial = flow(formula, asked)
    roles = infer_roles(anatomy, asked)
    equations = solve_scales(anatomy, maps, roles)
    assert not equations.system.conflicts
    transforms = build_transforms(anatomy, maps, roles, equations, asked, partial)
    grown = Formula(READERS[name]).double()
    for parameter, value in formula.named_parameters():
        if parameter in transforms:
            setattr(grown, parameter, nn.Parameter(expand(value.detach(), transforms[parameter])))
    waves = formula.get_buffer("waves")[:, np.maximum(PLACED, 0)]
    grown.waves = torch.where(torch.from_numpy(FREE), torch.randn_like(waves) * 10, waves)
    x = torch.randn(TOKENS, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(grown(x), formula(x), rtol=1e-12, atol=1e-12)


def test_the_check_above_sees_shares_that_do_not_leave_them_out() -> None:
    formula = Formula(READERS["a linear layer"]).double()
    anatomy, maps, partial = flow(formula, recipe())
    roles = infer_roles(anatomy, recipe())
    equations = solve_scales(anatomy, maps, roles)
    for readers, zero in ((partial, True), (Partial(), False)):
        (axis,) = build_transforms(anatomy, maps, roles, equations, recipe(), readers)["out"].axes[1:]
        assert axis.spread == Spread("symmetric")
        assert bool((axis.shares[FREE] == 0).all()) is zero


REFUSED: dict[str, tuple[Callable[[Formula, Tensor, Tensor], Tensor], str]] = {
    "a layer norm": (lambda m, h, p: F.layer_norm(p, [WIDTH]), "statistics"),
    "a variance": (lambda m, h, p: F.linear(p.var(1, keepdim=True) * h, m.out), "statistics"),
    "a group norm": (lambda m, h, p: F.linear(F.group_norm(p, 1), m.out), "statistics"),
    "a mean": (lambda m, h, p: F.linear(p.mean(1, keepdim=True) * h, m.out), "reduced to one number"),
    "two activations": (lambda m, h, p: p @ h.T, "no parameter that could leave them out"),
    "itself": (lambda m, h, p: torch.einsum("ti,si->ts", p, p), "no parameter"),
    "attention": (
        lambda m, h, p: F.scaled_dot_product_attention(p[None, None], h[None, None], h[None, None]),
        "no parameter",
    ),
    "a tied weight": (lambda m, h, p: F.linear(F.linear(p, m.back), m.back.T), "no parameter"),
    "an output": (lambda m, h, p: p, "an output of the model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_reads_all_channels_is_refused(name: str) -> None:
    what, reason = REFUSED[name]
    with pytest.raises(PlanError) as refused:
        flow(Formula(what), recipe())
    assert refused.value.code == "S331"
    text = str(refused.value)
    assert reason in text
    assert "the waves holds the source's values at 4 of 12 channels, others between" in text
    assert "it enters aten.add.Tensor" in text


def test_dims_are_measured_where_statistics_need_all_channels_to_be_copies() -> None:
    for what, measured in (
        (REFUSED["a layer norm"][0], True),
        (REFUSED["a group norm"][0], True),
        (REFUSED["a mean"][0], False),  # a scale may take up what it changes by
        (READERS["a linear layer"], False),
    ):
        anatomy, maps, _ = known(Formula(what))
        assert bool(measured_dims(anatomy) & set(maps.dims)) is measured


def test_whole_values_beside_partial_ones_stay_whole() -> None:
    formula = Formula(lambda m, h, p: F.linear(p, m.out) + F.linear(F.layer_norm(h, [WIDTH]), m.out))
    anatomy, _, partial = flow(formula, recipe())
    assert [name for name in anatomy.calls if partial.of(name)] == ["add"]
    assert partial.readers == {"p_out": {1: partial.of("b_waves")}}
