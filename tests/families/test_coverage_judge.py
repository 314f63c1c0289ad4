"""The judge of the coverage sweep: it finds nothing in a sound growth, and finds what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from coverage import TOGETHER, attempt, make
from coverage_judge import judge, wrong
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

Folders = tuple[Path, Path, dict[str, Any]]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def grown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    place = tmp_path_factory.mktemp("judge")
    assert make("llama", "LlamaForCausalLM", place / "source", tied=request.param) is request.param
    row = attempt(place / "source", TOGETHER, place / "grown", judged_as=LlamaForCausalLM)
    assert row["wrong"] == []
    return place / "source", place / "grown", row["fields"]


def _said(folders: Folders) -> str:
    source, target, fields = folders
    return "\n".join(wrong(judge(source, target, LlamaForCausalLM, fields, 0.0)))


def test_a_number_that_nobody_said_is_found(grown: Folders) -> None:
    file = grown[1] / "config.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"max_position_embeddings": 65}))
    assert "config: changes" in _said(grown)
    file.write_text(before)


def test_a_weight_of_another_value_dtype_or_name_is_found(grown: Folders) -> None:
    file = grown[1] / "model.safetensors"
    before = load_file(file)
    name = "model.layers.0.mlp.down_proj.weight"
    for tensors, found in (
        (before | {name: before[name] * 1.01}, "unpadded"),
        (before | {name: before[name].to(torch.float16)}, "saved"),
        ({n: t for n, t in before.items() if n != name}, "missing_keys"),
        (before | {"another": torch.zeros(1)}, "unexpected_keys"),
    ):
        save_file(tensors, file, {"format": "pt"})
        assert found in _said(grown)
    save_file(before, file, {"format": "pt"})
