"""Growths that random modules and recipes once got wrong, each as the smallest formula that shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.errors import PlanError

sys.path.insert(0, str(Path(__file__).parent))
from formula import Formula, grow, numbers, same

Case = tuple[Callable[[Any, Tensor], Any], dict[str, tuple[int, ...]], str]


def hidden(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.inward)


def _none_repeated(m: Any, x: Tensor) -> Tensor:
    h = torch.tanh(hidden(m, x))
    rows = [h[:0].repeat_interleave(4, 0), h[:0].repeat(3, 1), h[1:].repeat(2, 1), h]
    return F.linear(torch.cat(rows), m.out)


def _written_over(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x).clone()
    h[:, :2] *= m.gain
    h[:, 4:] = 3 * h[:, 4:]
    return F.linear(torch.tanh(h), m.out)


def _best(m: Any, x: Tensor) -> Tensor:
    h, rows = hidden(m, x), torch.tanh(m.rows)
    scores = torch.full((x.shape[0], 4), -torch.inf, dtype=x.dtype)
    scores[:, :3] = h @ rows.T
    return torch.tanh(rows @ m.out.T)[scores.topk(2, 1).indices] + F.linear(torch.tanh(h), m.out)[:, None]


def _apart(m: Any, x: Tensor) -> Tensor:
    h = torch.tanh(hidden(m, x))[..., None] * torch.arange(
        1.0, 5.0, dtype=x.dtype
    )  # examples, channels, places
    i, j = torch.tensor([0, 2]), torch.tensor([3, 1])
    picked = h[i, :, j]
    h[i, :, j] = 2 * picked
    return torch.cat([picked @ m.out.T, h.sum(2) @ m.out.T])


def _in_order(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x)
    scores = torch.cat([h @ h.T, torch.zeros(x.shape[0], 1, dtype=x.dtype)], 1)
    ordered = torch.cat([scores.sort(1).values, scores.cummax(1).values], 1) / scores.norm()
    y = F.linear(torch.tanh(h), m.out)
    return torch.cat([ordered, y, y[scores.argsort(1)[:, 0] % x.shape[0]]], 1)


GROWS: dict[str, Case] = {
    "the best of scaled values, beside minus infinity": (
        _best,
        {"inward": (6, 5), "rows": (3, 6), "out": (2, 6)},
        "inward 0 by 2",
    ),
    "scaled values in order, beside zeros": (
        _in_order,
        {"inward": (6, 5), "rows": (3, 6), "out": (2, 6)},
        "inward 0 by 2",
    ),
    "rows and columns picked apart from each other, and written there": (
        _apart,
        {"inward": (6, 5), "out": (2, 6)},
        "inward 0 by 2",
    ),
    "rows that a mask picks, laid in a table": (
        lambda m, x: F.linear(torch.tanh(hidden(m, x))[x[:, 0].abs() < 9].view(1, -1, 6)[:, -1], m.out),
        {"inward": (6, 5), "out": (2, 6)},
        "inward 0 by 2",
    ),
    "scaled values cut at zero": (
        lambda m, x: (
            (s := (hidden(m, x) @ torch.tanh(m.rows).T).clamp(min=0).clamp_min(0)) / s.norm()
            + F.linear(torch.tanh(hidden(m, x)), m.out).sum()
        ),
        {"inward": (6, 5), "rows": (3, 6), "out": (2, 6)},
        "inward 0 by 2",
    ),
    "where an extreme of scaled values stands": (
        lambda m, x: F.linear(torch.tanh(h := hidden(m, x)), m.out)[(h @ h.T).min(1).indices.view(-1)],
        {"inward": (6, 5), "out": (3, 6)},
        "inward 0 by 2",
    ),
    "a piece of an axis that is written over": (
        _written_over,
        {"inward": (6, 5), "gain": (2,), "out": (3, 6)},
        "gain 0 by 2",
    ),
    "a strided slice that counts its start from the end": (
        lambda m, x: F.linear(hidden(m, x)[:, -6::2], m.out),
        {"inward": (6, 5), "out": (2, 3)},
        "inward 0 by 2",
    ),
    "rows of which there are none, repeated": (
        _none_repeated,
        {"inward": (6, 5), "out": (2, 6)},
        "inward 0 by 2",
    ),
    "one parameter twice in a product": (
        lambda m, x: torch.einsum("bi,i,i->b", hidden(m, x), m.gain, m.gain),
        {"inward": (4, 5), "gain": (4,)},
        "gain 0 by 2",
    ),
    "a product over an axis of size one, broadcast": (
        lambda m, x: (
            torch.einsum("bi,oi->bo", hidden(m, x), m.w) + F.linear(F.linear(x, m.other), m.w * m.gain)
        ),
        {"inward": (1, 5), "w": (2, 4), "gain": (4,), "other": (4, 5)},
        "w 1 by 2",
    ),
    "a shift by the largest of all, and by the least": (
        lambda m, x: (
            (torch.exp(hidden(m, x) - hidden(m, x).max()) @ m.out.t())
            / torch.exp(hidden(m, x) - hidden(m, x).min()).mean()
        ),
        {"inward": (6, 5), "out": (2, 6)},
        "inward 0 by 2",
    ),
    "rows laid in one order joined with rows laid in another": (
        lambda m, x: (
            F.linear(
                torch.tanh(torch.stack([m.rows.repeat(4, 1), m.rows.repeat_interleave(4, 0)], 1)), m.out
            ).sum((0, 1))
            + hidden(m, x)
        ),
        {"inward": (2, 5), "rows": (3, 6), "out": (2, 6)},
        "rows 1 by 2",
    ),
    "a merged axis of which one part is shared out": (
        lambda m, x: (
            F.linear(torch.tanh(F.linear(torch.tanh(hidden(m, x)), m.w)), m.out)[:, 0]
            + F.linear(torch.tanh(F.linear(x, m.flat)), m.w.reshape(1, 12))[:, 0]
        ),
        {"inward": (4, 5), "w": (3, 4), "out": (2, 3), "flat": (12, 5)},
        "w 1 by 2",
    ),
}


@pytest.mark.parametrize("spread", ["symmetric", "uneven(1, 2)", "diagonal", "first"])
@pytest.mark.parametrize("name", GROWS)
def test_it_grows_and_computes_the_same(name: str, spread: str, tmp_path: Path) -> None:
    formula, shapes, line = GROWS[name]
    module, x = Formula(formula, **shapes), numbers(3, 5)
    same(grow(module, tmp_path, line, f"spread * with {spread}", x=x), module, numbers(3, 5, seed=2))


def _unknown(m: Any, x: Tensor) -> Tensor:
    ones = torch.ones(6, dtype=x.dtype)
    return F.linear(hidden(m, x) * ones, m.out) + F.linear(ones.erfinv(), m.other)


REFUSED: dict[str, tuple[str, Case]] = {
    "uneven copies under a norm over two axes": (
        "S330",
        (
            lambda m, x: torch.einsum(
                "bot,ho->bht", F.layer_norm(hidden(m, x).transpose(1, 2), (4, 4)), m.out
            ),
            {"inward": (4, 5), "out": (2, 4)},
            "inward 0 by 3/2",
        ),
    ),
    "positions of queries under a causal mask": (
        "S306",
        (
            lambda m, x: (
                F.scaled_dot_product_attention(m.q.expand(3, 4, 5), x, x, is_causal=True).mean(1) @ m.out
            ),
            {"q": (1, 4, 5), "out": (5, 2)},
            "q 1 by 2",
        ),
    ),
    "an op without a rule reads what is made inside the graph": (
        "S308",
        (_unknown, {"inward": (6, 5), "out": (2, 6), "other": (2, 6)}, "inward 0 by 2"),
    ),
    "a merged axis of which the copied part grows": (
        "S330",
        (*GROWS["a merged axis of which one part is shared out"][:2], "w 0 by 2"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name: str, tmp_path: Path) -> None:
    code, (formula, shapes, line) = REFUSED[name]
    x = numbers(3, 4, 5) if code in ("S306",) or "norm" in name else numbers(3, 5)
    with pytest.raises(PlanError) as caught:
        grow(Formula(formula, **shapes), tmp_path, line, "spread * with uneven(1, 2)", x=x)
    assert caught.value.code == code
    assert "aten." in str(caught.value)


def test_a_refusal_names_what_the_equation_contradicts_and_nothing_else(tmp_path: Path) -> None:
    """The product of two streams that norms read as they are: twice the sum, and no weight between. A third
    norm, and a product that has a gain to take the factor, have no part in it."""

    def streams(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        h, k, other = hidden(m, x), F.linear(x, m.key), F.linear(x, m.third)
        first, second = F.layer_norm(h, (4,)), F.rms_norm(k, (4,))
        third = F.layer_norm(other, (4,), m.gain)
        return (h * k).sum(-1), (first * third).sum(-1), F.linear(second, m.out)

    shapes = {"inward": (4, 5), "key": (4, 5), "third": (4, 5), "gain": (4,), "out": (2, 4)}
    with pytest.raises(PlanError, match="off by a factor of") as caught:
        grow(Formula(streams, **shapes), tmp_path, "inward 0 by 2", x=numbers(3, 5))
    (found,) = caught.value.diagnostics
    against = [note for note in found.notes if note.startswith("against it stands")]
    named = " ".join([found.message, *found.notes])
    assert "it is an output of the model" in named
    assert ["aten.layer_norm" in note for note in against] == [True, False]
    assert ["aten.rms_norm" in note for note in against] == [False, True]


def test_a_tied_weight_that_nothing_can_scale_is_named(tmp_path: Path) -> None:
    module = Formula(
        lambda m, x: m.head(F.rms_norm(F.embedding(x.abs().long(), m.rows), (4,))),
        rows=(9, 4),
    )
    module.head = nn.Linear(4, 9, bias=False)
    module.head.weight = module.rows
    with pytest.raises(PlanError, match="it is an output of the model") as caught:
        grow(module, tmp_path, "rows 1 by 2", x=numbers(3, 5))
    assert "head.weight and rows are one tensor" in str(caught.value)


@pytest.mark.parametrize(
    "cut", [lambda s: s.clamp(min=True), lambda s: s.clamp_max(1), lambda s: s.clamp(-1, 0)]
)
def test_scaled_values_cut_elsewhere_than_at_zero_are_refused(cut: Any, tmp_path: Path) -> None:
    def formula(m: Any, x: Tensor) -> Tensor:
        h = hidden(m, x)
        s = cut(h @ torch.tanh(m.rows).T)
        return s / s.norm() + F.linear(torch.tanh(h), m.out).sum()

    module = Formula(formula, inward=(6, 5), rows=(3, 6), out=(2, 6))
    with pytest.raises(PlanError, match="a constant replaces some of it") as caught:
        grow(module, tmp_path, "inward 0 by 2", x=numbers(3, 5))
    assert caught.value.code == "S330"


@pytest.mark.parametrize(
    "stated", ["weight := share(o) * share(i)", "weight := first(o)", "bias := share(o)"]
)
def test_what_is_not_summed_is_not_shared_out(stated: str, tmp_path: Path) -> None:
    module = Formula(
        lambda m, x: F.linear(torch.tanh(F.linear(x, m.inward, m.c)), m.out),
        inward=(6, 5),
        c=(6,),
        out=(2, 6),
    )
    with pytest.raises(PlanError, match="does not sum over") as caught:
        grow(module, tmp_path, "inward 0 by 2", f"expand aten.linear {{ {stated} }}", x=numbers(3, 5))
    assert caught.value.code == "S315"


def test_a_parameter_that_is_an_output_is_not_shared_out(tmp_path: Path) -> None:
    def both(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(torch.tanh(hidden(m, x)), m.out), m.out.t()

    module, x = Formula(both, inward=(4, 5), out=(2, 4)), numbers(3, 5)
    with pytest.raises(PlanError) as caught:
        grow(module, tmp_path, "inward 0 by 2", x=x)
    assert caught.value.code == "S330"


@pytest.mark.parametrize("line", ["k 0 by 2", "q 1 by 2", "q 1 by 3/2", "q 3 by 2", "v 2 by 3/2"])
def test_attention_of_grouped_heads(line: str, tmp_path: Path) -> None:
    """Two queries to each of three keys, by torch's own grouping: keys, queries to a key, and the sizes of a
    head grow, those of the keys and of the values apart."""

    def attend(m: Any, x: Tensor) -> Tensor:
        q = torch.einsum("bti,grid->bgrtd", x, m.q).flatten(1, 2)
        k, v = (torch.einsum("bti,gid->bgtd", x, w) for w in (m.k, m.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return torch.einsum("bhtd,hdo->bto", mixed, m.out)

    module = Formula(attend, q=(3, 2, 5, 4), k=(3, 5, 4), v=(3, 5, 6), out=(6, 6, 2))
    lines = (line, "spread * with uneven(1, 2)", "noise * at 10 dB")
    same(grow(module, tmp_path, *lines, x=numbers(3, 4, 5)), module, numbers(3, 4, 5, seed=2))


def test_a_view_of_what_lies_otherwise_in_memory(tmp_path: Path) -> None:
    """Attention whose queries and keys are wider than its values lays out its result otherwise."""

    def attend(m: Any, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bti,hid->bhtd", x, w) for w in (m.q, m.k, m.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return F.linear(mixed.transpose(1, 2).view(3, 4, 9), m.out)

    module = Formula(attend, q=(3, 5, 3), k=(3, 5, 3), v=(3, 5, 3), out=(2, 9))
    x = numbers(3, 4, 5)
    same(grow(module, tmp_path, "q 2 by 2", x=x), module, numbers(3, 4, 5, seed=2))
