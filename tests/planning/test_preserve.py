"""What `preserve` keeps, and what it lets come out scaled: said in the plan, and held to in the proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import surgeon
from surgeon.errors import PlanError
from surgeon.verification.native import Observed, compare_stock


def normalised(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


class Towers(nn.Module):
    """Two embeddings, of length one, and how alike they are. A copied vector of length one is 1/√n times
    the source's, so both cannot be kept with the sum of their products."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.picture = nn.Linear(5, 6), nn.Linear(4, 6)
        self.mix = nn.Linear(6, 6)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        hidden = torch.tanh(self.mix(torch.tanh(self.words(x))))
        words, picture = normalised(hidden), normalised(self.picture(y))
        return {
            "logits_per_word": words @ picture.T,
            "word_embeds": words,
            "towers": {"words": (hidden,), "picture": picture},
        }


def grow(tmp_path: Path, *statements: str) -> tuple[surgeon.Result, dict[str, Any], tuple[Tensor, ...]]:
    """The result, and what the module gave and the grown one gives: its outputs in a row."""
    torch.manual_seed(0)
    module, inputs = Towers(), (torch.randn(3, 5), torch.randn(3, 4))
    recipe = tmp_path / "mine.surgery"
    body = ('grow axis("mix.weight", 0) by 3', *statements)
    recipe.write_text("recipe mine() {\n" + "".join(f"    {line}\n" for line in body) + "}\n")
    result = surgeon.apply(recipe, module, example_inputs=inputs, device="cpu")
    assert result.model is not None
    wide = tuple(x.double() for x in inputs)
    with torch.no_grad():
        return result, module.double()(*wide), tuple(tree_leaves(result.model.double()(*wide)))


def test_logits_stay_and_what_cannot_is_scaled_and_said(tmp_path: Path) -> None:
    result, before, (logits, words, hidden, picture) = grow(tmp_path, "preserve logits")
    towers = before["towers"]
    torch.testing.assert_close(logits, before["logits_per_word"])
    torch.testing.assert_close(words, before["word_embeds"].repeat(1, 3) / 3**0.5)
    torch.testing.assert_close(picture, towers["picture"].repeat(1, 3) / 3**0.5)
    # Nothing is in the way of this one, so it stays though it is not named.
    torch.testing.assert_close(hidden, towers["words"][0].repeat(1, 3))
    assert list(result.plan.scaled_outputs) == ["word_embeds", "towers.picture"]
    assert result.plan.notes[0].startswith("word_embeds, towers.picture come out times 0.5774")
    assert result.report.verdict == "Preserved; word_embeds, towers.picture come out times 0.5774."
    assert result.report.as_dict()["scaled_outputs"]["word_embeds"] == [pytest.approx(3**-0.5)]
    assert result.report.exact is not None and result.report.exact.outputs < 1e-14


@pytest.mark.parametrize("statements", [(), ("preserve logits, word_embeds",), ("preserve logits, towers",)])
def test_all_that_is_named_must_stay(statements: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="it is an output of the model") as caught:
        grow(tmp_path, *statements)
    assert caught.value.code == "S330"


def test_what_may_come_out_scaled_is_proposed(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        grow(tmp_path, "preserve logits_per_word, word_embeds")
    assert "`preserve` other outputs than word_embeds, and it may come out scaled" in str(caught.value)


def test_a_name_stands_for_all_below_it(tmp_path: Path) -> None:
    result, _, _ = grow(tmp_path, "preserve towers.words")
    assert set(result.plan.scaled_outputs) == {"word_embeds", "towers.picture"}


def test_a_name_that_no_output_has_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="nothing called word_embed,") as caught:
        grow(tmp_path, "preserve word_embed")
    assert caught.value.code == "S332"
    assert "did you mean `word_embeds`?" in str(caught.value)
    assert "towers.words.0" in str(caught.value)


def test_logits_are_all_outputs_where_none_is_called_so(tmp_path: Path) -> None:
    class Lengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = normalised(self.linear(x))
            return y @ y.T, y

    recipe = tmp_path / "mine.surgery"
    recipe.write_text('recipe mine() {\n    grow axis("linear.weight", 0) by 2\n    preserve logits\n}\n')
    with pytest.raises(PlanError, match="it is an output of the model, off by"):
        surgeon.plan(recipe, Lengths(), (torch.randn(3, 5),))


@pytest.mark.parametrize(("factor", "passed"), [(3**-0.5, True), (1.0, False), (1.001 * 3**-0.5, False)])
def test_stock_transformers_is_held_to_the_scale_that_is_said(
    factor: float, passed: bool, tmp_path: Path
) -> None:
    """The check of a written folder, on outputs as stock transformers may give them."""
    result, before, _ = grow(tmp_path, "preserve logits")

    def seen(logits: Tensor, words: Tensor) -> Observed:
        return Observed(torch.float32, {"logits_per_word": logits, "word_embeds": words}, False)

    source = seen(before["logits_per_word"], before["word_embeds"])
    grown = seen(before["logits_per_word"], factor * before["word_embeds"].repeat(1, 3))
    assert compare_stock(result.plan, source, source, {}, grown).passed is passed
