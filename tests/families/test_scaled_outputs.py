"""Classes whose logits stay while other outputs come out scaled, held against stock transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from coverage import make

import surgeon
from surgeon.errors import PlanError
from surgeon.models.inputs import real_inputs

RECIPE = "recipe mine() {{\n    grow hidden by 2\n    noise linear at 10 dB\n{}}}\n"


def grown(name: str, tmp_path: Path, statement: str = "    preserve logits\n") -> surgeon.Result:
    make("", name, tmp_path / "source")
    recipe = tmp_path / "mine.surgery"
    recipe.write_text(RECIPE.format(statement))
    return surgeon.apply(recipe, tmp_path / "source", tmp_path / "out", device="cpu")


def answers(name: str, folder: Path) -> Any:
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float64).eval()
    inputs = real_inputs(model, seed=5)
    with torch.no_grad():
        return model(**{k: v.double() if torch.is_floating_point(v) else v for k, v in inputs.items()})


def test_two_towers_keep_their_logits_and_embeddings_of_length_one(tmp_path: Path) -> None:
    result = grown("SiglipModel", tmp_path)
    said = "text_embeds, image_embeds come out times 0.7071"
    assert result.report.verdict == f"Preserved; {said}."
    assert any(note.startswith(said) for note in result.plan.notes)
    record = json.loads((tmp_path / "out" / "surgery.json").read_text())
    assert record["proof"]["verdict"] == result.report.verdict
    before, after = (answers("SiglipModel", tmp_path / place) for place in ("source", "out"))
    close = dict(rtol=0, atol=1e-5)  # weights were rounded to float32
    torch.testing.assert_close(after.logits_per_text, before.logits_per_text, **close)
    torch.testing.assert_close(after.text_embeds, before.text_embeds.repeat(1, 2) / 2**0.5, **close)
    torch.testing.assert_close(after.image_embeds.norm(dim=-1), before.image_embeds.norm(dim=-1), **close)
    pooled = before.vision_model_output.pooler_output
    torch.testing.assert_close(after.vision_model_output.pooler_output, pooled.repeat(1, 2), **close)
    again = surgeon.verify(tmp_path / "source", tmp_path / "out", device="cpu")
    assert again.verdict == result.report.verdict


def test_embeddings_that_are_to_stay_are_a_reason_to_refuse(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="it is an output of the model, off by"):
        grown("SiglipModel", tmp_path, "    preserve text_embeds, logits\n")


def test_a_tied_head_scales_the_hidden_states_that_come_with_the_logits(tmp_path: Path) -> None:
    result = grown("T5GemmaForConditionalGeneration", tmp_path)
    assert result.report.verdict == "Preserved; decoder_hidden_states.0 comes out times 0.7071."
    assert result.report.native is not None and result.report.native.greedy
