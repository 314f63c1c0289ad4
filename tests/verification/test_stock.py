"""The graph held against stock transformers, and what the source's own noise is measured by."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from coverage import make
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM
from versions import CLASSES_OF_5_24

import surgeon
from surgeon import apply, verify
from surgeon.errors import ModelError, NotPreserved, fail
from surgeon.models.supply import Supply
from surgeon.surgery import subject, tracing
from surgeon.verification.invariant import difference, unbounded
from surgeon.verification.native import Observed, compare_stock, observe, observe_wider, refuse_other_graph
from surgeon.verification.rounding import round_otherwise

CPU = torch.device("cpu")


def observed(output: torch.Tensor) -> Observed:
    return Observed(torch.float32, {"y": output.double()}, False)


def test_a_graph_that_computes_something_else_is_refused() -> None:
    output = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    wider = output + 1e-7
    refuse_other_graph(observed(output), observed(wider), {"y": output[:2]})
    with pytest.raises(ModelError, match=r"relative difference 1\.0e-03") as caught:
        refuse_other_graph(observed(output), observed(wider), {"y": output[:2] * 1.001})
    assert caught.value.code == "S213"


@pytest.mark.parametrize("exact", [torch.ones(3, 5), torch.full((3, 4), float("nan"))])
def test_another_shape_and_no_number_are_something_else(exact: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="not what the class computes"):
        refuse_other_graph(observed(torch.ones(3, 4)), None, {"y": exact.double()})


@pytest.mark.parametrize(("own", "kept"), [(torch.float32, True), (torch.bfloat16, False)])
def test_only_float64_may_be_unknown_to_a_class(own: torch.dtype, kept: bool) -> None:
    def refuses(*_: Any) -> Observed:
        raise RuntimeError("expected scalar type Float but found Double")

    small = replace(observed(torch.ones(3, 4)), dtype=own)
    if kept:
        assert observe_wider(refuses, small) is None
    else:
        with pytest.raises(RuntimeError, match="scalar type"):
            observe_wider(refuses, small)


def test_a_dtype_in_which_a_class_gives_no_numbers_tells_of_no_noise() -> None:
    """Else any distance would be within it."""
    small = observed(torch.ones(3, 4))
    none = observed(torch.full((3, 4), math.nan))
    assert observe_wider(lambda _: none, small) is None
    assert observe_wider(lambda _: small, small) is small


@pytest.mark.parametrize("own", [torch.float16, torch.float32, torch.float64])
def test_what_rules_a_word_out_is_no_magnitude(own: torch.dtype) -> None:
    """Classes write the smallest number of the dtype that they run in: it hides no error of the others."""
    least = torch.finfo(own).min
    ours = torch.tensor([[1.0, least, 0.5], [-2.0, 1.0, least]], dtype=own)
    wider = torch.tensor([[1.0, -math.inf, 0.5], [-2.0, 1.0, torch.finfo(torch.float64).min]]).double()
    assert difference(ours, unbounded(ours).double(), None) == difference(ours, wider, None) == 0.0
    moved = torch.where(ours == 0.5, 0.75, ours)
    assert difference(moved, wider, None) == 0.125
    assert difference(ours.abs(), wider, None) == math.inf


def test_another_failure_is_no_unknown_dtype() -> None:
    def fails(*_: Any) -> Observed:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        observe_wider(fails, observed(torch.ones(3, 4)))


@pytest.mark.parametrize("whole", [True, False])
def test_pictures_that_could_not_be_traced_are_shown_to_stock(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced with words alone, the width of what is made of pictures is not seen to be that of words: grown
    without it, the class would take no picture any more."""
    traced = tracing.capture_class

    def blind(module: Any, source: Any, known: frozenset[str], supply: Supply, *others: Any) -> Any:
        if supply.pictures:
            raise fail(ModelError, "S210", "too dark")
        return traced(module, source, known, supply, *others)

    for module in (tracing, subject):
        monkeypatch.setattr(module, "capture_class", blind)
    make("qwen2_vl", "Qwen2VLForConditionalGeneration", tmp_path / "source")
    fields = ["hidden_size", "num_attention_heads", "num_key_value_heads"]
    widths = ", ".join(f"config.text_config.{field}" for field in fields)
    widths += ", config.vision_config.hidden_size" * whole
    recipe = tmp_path / "wide.surgery"
    recipe.write_text(f"recipe wide() {{\n    grow {widths} by 2\n    preserve logits\n}}\n")
    if whole:
        result = apply(recipe, tmp_path / "source", tmp_path / "grown", device="cpu")
        assert "proved without pictures: too dark" in result.plan.notes
        assert result.report.native is not None and result.report.native.passed
        return
    with pytest.raises(NotPreserved, match="the grown class fails on pictures among words") as caught:
        apply(recipe, tmp_path / "source", tmp_path / "grown", device="cpu")
    assert caught.value.code == "S504" and not (tmp_path / "grown").exists()


@CLASSES_OF_5_24
def test_a_model_that_magnifies_its_rounding_is_told_from_one_that_is_wrong(tmp_path: Path) -> None:
    """One of the sentences has ten times the noise of the others, and the class knows no float64 that would
    tell: it is seen by rounding otherwise. A fault of the same model stays one."""
    make("inkling2", "Inkling2ForConditionalGeneration", tmp_path / "source")
    (tmp_path / "wide.surgery").write_text("recipe wide() {\n    grow hidden by 2\n    preserve logits\n}\n")
    source, grown = tmp_path / "source", tmp_path / "grown"
    report = apply(tmp_path / "wide.surgery", source, grown, device="cpu").report
    assert report.native is not None
    assert report.native.noise_against == "itself rounding otherwise"
    weights = load_file(grown / "model.safetensors")
    weights["model.llm.layers.1.attn.wo_ud.weight"][0] *= 1.01
    save_file(weights, grown / "model.safetensors", metadata={"format": "pt"})
    seen = verify(source, grown, device="cpu")
    assert seen.native is not None
    assert not seen.native.passed


@torch.no_grad()
def test_rounding_otherwise_moves_what_modules_give_by_a_rounding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh())
    x = torch.randn(5, 8)
    plain = model(x)
    linear = model[0](x)
    round_otherwise(model, 0)
    moved = model[0](x)
    eps = torch.finfo(torch.float32).eps
    assert 0 < float(((moved - linear) / linear).abs().max()) <= 1.5 * eps
    assert 0 < float((model(x) - plain).abs().max()) <= 4 * eps


class Counted(nn.Module):
    """Gives codes, then numbers in which each example is held against the others of its batch, then what a
    batch comes to."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, whole: bool) -> dict[str, torch.Tensor]:
        spread = (x - x.mean(0)) * self.scale
        return {"codes": x.long(), "spread": spread, **({"loss": spread.square().mean()} if whole else {})}


@pytest.mark.parametrize("whole", [True, False])
def test_batches_are_joined_where_they_may_be(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [{"x": torch.arange(6.0).reshape(3, 2) * n, "whole": whole} for n in (1, 2, 5)]
    monkeypatch.setattr(Supply, "batches", lambda *_: batches)
    asked = ("spread", "loss") if whole else ("spread",)
    joined, apart = (
        observe(Counted(), torch.float32, asked, Supply(joined=j)).outputs for j in (True, False)
    )
    for name in asked:
        alone = [torch.atleast_1d(Counted()(**batch)[name]) for batch in batches]
        assert torch.equal(apart[name], torch.cat(alone))
        assert torch.equal(joined[name], apart[name]) is whole  # where one is no batch, none is joined


def centred(model: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The class with each example's logits held against those beside it."""
    forward = model.forward

    @functools.wraps(forward)
    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = forward(self, *args, **kwargs)
        result["logits"] = result.logits - result.logits.mean(0)
        return result

    monkeypatch.setattr(model, "forward", changed)


def test_a_class_that_holds_examples_against_each_other_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its graph is of one batch: held against several, joined to one, it would be of something else."""
    centred(LlamaForCausalLM, monkeypatch)
    make("llama", "LlamaForCausalLM", tmp_path / "source")
    (tmp_path / "wide.surgery").write_text(
        "recipe wide() {\n    grow hidden, ffn by 2\n    preserve logits\n}\n"
    )
    report = apply(tmp_path / "wide.surgery", tmp_path / "source", tmp_path / "grown", device="cpu").report
    assert report.native is not None and report.native.passed and report.native.tolerance < 1e-5


class Two(nn.Module):
    """Gives two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.outer(torch.tanh(self.inner(x)))
        return {"logits": logits, "seen": logits.sum(-1)}


def test_every_output_of_stock_is_held_against_the_sources(tmp_path: Path) -> None:
    """Whichever is furthest from what it may be decides; one that the grown model lacks is no agreement."""
    before = {"logits": torch.linspace(-1, 1, 6).reshape(3, 2), "seen": torch.linspace(1, 2, 3)}

    def passed(after: dict[str, torch.Tensor], plan: Any) -> bool:
        source, grown = (Observed(torch.float32, outputs, False) for outputs in (before, after))
        return compare_stock(plan, source, source, {}, grown).passed

    (tmp_path / "wide.surgery").write_text('recipe wide() {\n    grow axis("inner.weight", 0) by 2\n}\n')
    plan = surgeon.plan(tmp_path / "wide.surgery", Two(), (torch.randn(3, 2),))
    assert passed(before, plan)
    assert not passed({**before, "seen": before["seen"] * 1.001}, plan)
    assert not passed({"logits": before["logits"]}, plan)
