"""Buffers of few numbers, which a checkpoint holds and a trace is led by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from surgeon.checkpoints.reading import open_checkpoint
from surgeon.models.native import build_meta
from surgeon.models.source import TransformersSource
from surgeon.models.stored import few_numbers
from surgeon.surgery.subject import _grown_class, examine


class Config(PretrainedConfig):
    model_type = "counting"

    def __init__(self, hidden_size: int = 8, **others: object) -> None:
        self.hidden_size = hidden_size
        super().__init__(**others)


class Counting(PreTrainedModel):
    """As many steps as a buffer says; one that is not saved, one of several numbers, and one that only the
    small class has."""

    config_class = Config
    base_model_prefix = "model"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.words = nn.Embedding(11, config.hidden_size)
        self.register_buffer("steps", torch.tensor(2))
        self.register_buffer("loose", torch.tensor([1.0, 2.0]), persistent=False)
        self.register_buffer("most", torch.zeros(3))
        if config.hidden_size == 8:
            self.register_buffer("small", torch.zeros(2))
        self.post_init()

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        x = self.words(input_ids)
        for _ in range(int(self.steps)):
            x = x + 1
        return (x * self.most.sum(),)


def folder(place: Path, **put: Tensor) -> Path:
    Counting(Config()).save_pretrained(place)
    tensors = load_file(place / "model.safetensors")
    save_file({**tensors, **put}, place / "model.safetensors", {"format": "pt"})
    return place


def led_by(place: Path, most: int = 64) -> dict[str, list[float]]:
    found = few_numbers(build_meta(Config(), Counting)[0], open_checkpoint(place), most)
    return {name: buffer.flatten().tolist() for name, buffer in found.items()}


def test_buffers_that_are_saved_and_short(tmp_path: Path) -> None:
    place = folder(tmp_path, steps=torch.tensor(5), loose=torch.tensor([7.0, 7.0]))
    assert led_by(place) == {"steps": [5], "most": [0, 0, 0], "small": [0, 0]}
    assert led_by(place, most=2) == {"steps": [5], "small": [0, 0]}


@pytest.mark.parametrize("most", [torch.zeros(1000), torch.tensor([0.0, float("inf"), 1.0])])
def test_what_is_stored_otherwise_leads_nowhere(tmp_path: Path, most: Tensor) -> None:
    assert led_by(folder(tmp_path, most=most)).keys() == {"steps", "small"}


@pytest.mark.parametrize("prefix", ["", "state.net."])
def test_in_a_sharded_checkpoint_of_a_training_run(tmp_path: Path, prefix: str) -> None:
    tensors = load_file(folder(tmp_path / "plain", steps=torch.tensor(5)) / "model.safetensors")
    dcp.save({prefix + name: tensor for name, tensor in tensors.items()}, checkpoint_id=tmp_path / "sharded")
    assert led_by(tmp_path / "sharded")["steps"] == [5]


def test_a_trace_and_that_of_the_grown_class_go_as_many_steps_as_the_checkpoint_says(tmp_path: Path) -> None:
    place = folder(tmp_path, steps=torch.tensor(5))
    given = {"input_ids": torch.randint(11, (2, 3))}
    subject = examine(TransformersSource(str(place), Config(), Counting, place, inputs=given))
    grown = _grown_class(subject, {"hidden_size": 16})[3]
    for captured in (subject.anatomy.captured, grown):
        assert sum(node.target is torch.ops.aten.add.Tensor for node in captured.nodes) == 5
