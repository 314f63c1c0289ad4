"""What is said before writing, held against what is then there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
)

import surgeon
from surgeon import cli
from surgeon.errors import CheckpointError
from surgeon.operations import plan_with_forecast
from surgeon.planning.plan import Plan
from surgeon.rendering import show_forecast
from surgeon.surgery.forecast import SUNDRIES, Forecast, Room, room_at

SIZES = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_hidden_layers=2)


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecast") / request.param
    torch.manual_seed(0)
    if request.param == "llama":
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=16, tie_word_embeddings=True, **SIZES))
    else:
        model = MixtralForCausalLM(
            MixtralConfig(max_position_embeddings=16, num_key_value_heads=2, num_local_experts=4, **SIZES)
        )
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def weights(folder: Path) -> int:
    """Bytes of all tensors in a folder, counted by safetensors itself."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            total += sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118
    return total


def test_bytes_and_shards_are_those_written(source: Path, tmp_path: Path) -> None:
    said: list[Forecast] = []
    out = tmp_path / "out"
    surgeon.apply(
        "grow",
        source,
        out,
        shard_size="60KB",
        device="cpu",
        planned=lambda plan, forecast: said.append(forecast) if forecast else None,
    )
    (forecast,) = said
    assert forecast.bytes_in == weights(source)
    assert forecast.bytes_out == weights(out)
    assert forecast.shards == len(list(out.glob("model-*.safetensors"))) > 1
    assert forecast.room is not None and forecast.room.place == tmp_path


def test_a_config_alone_is_foreseen_as_its_weights_are(source: Path) -> None:
    _, with_weights = plan_with_forecast("grow", source)
    _, without = plan_with_forecast("grow", source / "config.json")
    assert with_weights is not None and without is not None
    assert (without.bytes_in, without.bytes_out) == (with_weights.bytes_in, with_weights.bytes_out)
    assert with_weights.room is None and with_weights.seconds is None


def test_the_time_is_that_of_the_arithmetic_or_of_all_bytes() -> None:
    forecast = Forecast(3_000, 7_000, 1, 0, Room(Path("/"), 1, 500.0), 5.0)
    assert forecast.seconds == 20
    assert forecast.as_dict()["writing_seconds"] == 20
    assert Forecast(3_000, 7_000, 1, 0, Room(Path("/"), 1, 500.0), 25.0).seconds == 25


def medium(name: str) -> nn.Module:
    sizes = SIZES | dict(hidden_size=256, intermediate_size=512, vocab_size=20_000, num_attention_heads=4)
    sizes["max_position_embeddings"] = 32
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes))
    if name == "mixtral":
        return MixtralForCausalLM(MixtralConfig(num_key_value_heads=4, num_local_experts=8, **sizes))
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=512, n_head=8, vocab_size=500, n_positions=32))
    return ResNetForImageClassification(ResNetConfig(depths=[1, 1, 1, 1], num_labels=3))


@pytest.mark.parametrize(
    ("name", "verify"),
    [(n, "full") for n in ("llama", "mixtral", "gpt2", "resnet")] + [("gpt2", "none"), ("mixtral", "none")],
)
def test_the_memory_said_is_not_exceeded(name: str, verify: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    medium(name).save_pretrained(tmp_path / "source")
    said: list[tuple[Forecast | None, int]] = []

    def planned(plan: Plan, forecast: Forecast | None) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
        except OSError:
            pytest.skip("the peak of a process cannot be seen here")
        said.append((forecast, resident("VmRSS")))

    out = tmp_path / "out"
    surgeon.apply("grow", tmp_path / "source", out, device="cpu", planned=planned, verify=verify)
    ((forecast, before),) = said
    assert forecast is not None
    taken = resident("VmHWM") - before
    assert taken <= forecast.memory
    if verify == "full":  # what little the writing takes may be left over from what ran before
        assert forecast.memory < 20 * taken + SUNDRIES  # and says something


def resident(what: str) -> int:
    """Bytes of this process in memory, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    room = room_at(tmp_path / "not" / "there" / "out")
    assert room.place == tmp_path
    assert room.rate > 1e5
    assert list(tmp_path.iterdir()) == []


def test_plan_says_it_in_words_and_in_json(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    words = ["plan", "grow", str(source), "--out", str(tmp_path / "out"), "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["surgeon", *words])
    assert cli.run() == 0
    shown = capsys.readouterr().out
    assert "in one file; about " in shown and "before the proof" in shown
    said = json.loads(file.read_text())["forecast"]
    assert said["bytes_in"] == weights(source) and said["room"]["place"] == str(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json"]


def test_too_little_room_is_said_before_it_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=200)
    show_forecast(console, Forecast(10, 2_000_000, 1, 0, Room(Path("disk"), free=1_500_000, rate=1e9)))
    assert "disk has 1.5 MB free, which is too little: 2.0 MB are to be written." in capsys.readouterr().out
    show_forecast(console, Forecast(10, 2_000_000, 1, 0, Room(Path("disk"), free=2_000_000, rate=1e9)))
    assert "too little" not in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError) as caught:
        plan_with_forecast("grow", source, tmp_path / "file" / "out")
    assert caught.value.code == "S412"
