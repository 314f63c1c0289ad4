"""A sample of the proof finds what is wrong where it looks, and claims nothing of the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import surgeon
from surgeon.errors import CheckpointError, NotPreserved
from surgeon.operations import plan as planned
from surgeon.rewriting import checkpoint as rewriting
from surgeon.verification.sampling import draw

LAYERS = 7


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_hidden_layers=LAYERS)
    folder = tmp_path_factory.mktemp("sampling") / "model"
    LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=16, **sizes)).save_pretrained(folder)
    return folder


def apply(source: Path, out: Path, verify: str) -> surgeon.Result:
    return surgeon.apply("grow", source, out, device="cpu", verify=verify)


def spoilt(monkeypatch: pytest.MonkeyPatch, layer: str) -> None:
    """What is written of one layer is wrong."""
    real = rewriting.GrownCheckpoint.produce
    calls: list[str] = []

    def produce(self: Any, disk: str) -> Iterator[torch.Tensor]:
        first = disk not in calls
        calls.append(disk)
        factor = 1.5 if first and f"{layer}.mlp.up_proj" in disk else 1.0
        yield from (block * factor for block in real(self, disk))

    monkeypatch.setattr(rewriting.GrownCheckpoint, "produce", produce)


def test_the_first_the_last_and_two_others_are_run(source: Path) -> None:
    plan = planned("grow", source)
    sample = draw(plan)
    assert sample.layers == LAYERS and len(sample.run) == 4
    assert {"model.layers.0", f"model.layers.{LAYERS - 1}"} <= set(sample.run)
    assert len(sample.stands) == LAYERS - 4
    left = {name for name in plan.anatomy.captured.parameters if name in sample.unrun}
    named = {plan.anatomy.captured.parameters[n].split(".mlp")[0].split(".self_attn")[0] for n in left}
    assert not any(layer in named for layer in sample.run)


def test_a_sample_is_not_called_preserved(source: Path, tmp_path: Path) -> None:
    result = apply(source, tmp_path / "out", "sample")
    report = result.report
    assert not report.failed and not report.preserved and report.native is None
    assert report.exact is not None and report.exact.nodes > 0
    assert report.sampled is not None and report.sampled.layers == LAYERS
    record = json.loads((tmp_path / "out" / "surgery.json").read_text())["proof"]
    assert record["preserved"] is False and record["verified"] == "sample"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"4 of {LAYERS} repeated layers" in card and "the same function" not in card
    assert surgeon.verify(source, tmp_path / "out", device="cpu").preserved  # the whole, later


def test_none_says_that_it_is_not_verified(source: Path, tmp_path: Path) -> None:
    report = apply(source, tmp_path / "out", "none").report
    assert not report.failed and not report.preserved and report.exact is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not verified" in card and "the same function" not in card


def test_what_is_written_wrong_in_a_layer_that_is_run_is_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt(monkeypatch, f"layers.{LAYERS - 1}")
    with pytest.raises(NotPreserved) as caught:
        apply(source, tmp_path / "out", "sample")
    assert caught.value.code == "S503" and f"layers.{LAYERS - 1}.mlp.up_proj" in str(caught.value)
    assert not (tmp_path / "out").exists() and (tmp_path / "out.not-preserved").is_dir()


def test_what_is_written_wrong_in_another_is_what_a_sample_cannot_see(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = draw(planned("grow", source)).run
    other = next(i for i in range(LAYERS) if f"model.layers.{i}" not in run)
    spoilt(monkeypatch, f"layers.{other}")
    assert not apply(source, tmp_path / "out", "sample").report.preserved
    monkeypatch.undo()
    assert not surgeon.verify(source, tmp_path / "out", device="cpu").preserved


def test_a_wrong_growth_is_found_by_the_graphs_of_a_sample(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgeon.verification import coexecution

    real = coexecution.expand
    monkeypatch.setattr(coexecution, "expand", lambda *args: real(*args) * 1.01)
    with pytest.raises(NotPreserved) as caught:
        apply(source, tmp_path / "out", "sample")
    assert caught.value.code == "S501"


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown way to verify") as caught:
        apply(tmp_path / "none", tmp_path / "out", "some")
    assert caught.value.code == "S419"
