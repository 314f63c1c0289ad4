"""Detectors whose positions are sinusoids of the hidden size: added to queries and keys alone, they let it
grow. Where a norm reads the sum, or no wider class makes the source's sinusoids, it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from coverage import RECIPE, attempt, make
from tiny_configs import TWEAKS

import surgeon
from surgeon.axes.maps import NEW
from surgeon.planning.plan import Plan

LAYERS = {"encoder_layers": 1, "decoder_layers": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detectors") / "source"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TWEAKS, "detr", TWEAKS.get("detr", {}) | LAYERS)
        make("detr", "DetrForObjectDetection", folder)
    return folder


def planned(source: Path, folder: Path, times: int) -> Plan:
    recipe = folder / "wide.surgery"
    recipe.write_text(RECIPE.format("hidden").replace("by 2", f"by {times}"))
    return surgeon.plan(recipe, source)


@pytest.mark.parametrize("times", [2, 3])
def test_queries_and_keys_read_the_places_of_the_sources_sinusoids(
    source: Path, tmp_path: Path, times: int
) -> None:
    """Worked out from the formula: the frequency of source pair i is that of pair n·i, in the half of rows
    and in that of columns; sine and cosine stand side by side."""
    plan = planned(source, tmp_path, times)
    pairs = 16
    places = [
        half * 2 * pairs * times + 2 * times * i + u for half in (0, 1) for i in range(pairs) for u in (0, 1)
    ]
    readers = (
        "encoder.layers.0.self_attn.q",
        "encoder.layers.0.self_attn.k",
        "decoder.layers.0.encoder_attn.k",
    )
    for name in readers:
        index = plan.transforms[f"model.{name}_proj.weight"].axes[1].index
        assert index is not None
        assert np.flatnonzero(index != NEW).tolist() == places, name
        assert index[places].tolist() == list(range(64))
    values = plan.transforms["model.encoder.layers.0.self_attn.v_proj.weight"].axes[1].index
    assert values is not None and np.bincount(values).tolist() == [times] * 64


def test_other_pictures_and_masks_than_the_traced_ones_find_the_same(source: Path, tmp_path: Path) -> None:
    import transformers

    found = attempt(source, ("hidden", "ffn", "heads"), tmp_path / "grown")
    assert "exact" in found, found
    assert found["exact"] < 1e-13
    picture = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(2, 96, 160, dtype=torch.long)
    mask[1, 64:], mask[1, :, 128:] = 0, 0
    seen = {}
    for folder in (source, tmp_path / "grown"):
        model = transformers.DetrForObjectDetection.from_pretrained(folder, dtype=torch.float64).eval()
        with torch.no_grad():
            seen[folder.name] = model(picture, mask)
    # Both compute in float64; the grown weights were rounded to float32 when written.
    for part in ("logits", "pred_boxes"):
        before, after = (getattr(seen[name], part) for name in ("source", "grown"))
        torch.testing.assert_close(after, before, rtol=0, atol=2e-6)


def test_sinusoids_that_no_wider_class_makes_are_refused_by_their_number(tmp_path: Path) -> None:
    make("xglm", "XGLMForCausalLM", tmp_path / "source")
    refused = attempt(tmp_path / "source", ("hidden",), tmp_path / "grown")
    assert refused["code"] == "S323"
    assert "58 of its 64 channels stand at no place among the 128 of the grown class" in refused["text"]
    assert "it enters aten.index_select in module model.embed_positions" in refused["text"]
    assert "grow dims that this value does not depend on (ffn, head_dim)" in refused["text"]
