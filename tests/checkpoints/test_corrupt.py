"""Damaged models and recipes: each is refused with its code and one message that names file and fault,
nothing is written, and the source stays as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import damage
import pytest
import torch
from damage import NORM, Damage
from damaged import CONFIGS, RECIPES, SHARDS, WEIGHTS, Case, broken_link
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from surgeon import cli
from surgeon.checkpoints.reading import SINGLE, open_checkpoint
from surgeon.errors import CheckpointError
from surgeon.models import native


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=1)
    folder = tmp_path_factory.mktemp("models") / "sound"
    LlamaForCausalLM(LlamaConfig(vocab_size=31, max_position_embeddings=16, **sizes)).save_pretrained(folder)
    return folder


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The exit code and stderr of a command line, in this process, where permissions hold."""
    monkeypatch.setattr(native, "MAX_PARAMETERS", 99)

    def running(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["surgeon", *map(str, words)])
        with damage.no_privilege():
            return cli.run(), capsys.readouterr().err

    return running


def refused(result: tuple[int, str], code: str, message: str) -> None:
    exit_code, error = result
    assert error.startswith(f"error[{code}]: "), error
    assert message in error
    assert exit_code == 2
    assert error.count("error[") == 1 and "Traceback" not in error


def check(case: Case, sound: Path, folder: Path, run: Run, command: str) -> None:
    spoil, code, message = case
    model = damage.copied(sound, folder / "model", spoil)
    before = damage.snapshot(model)
    out = ("--out", folder / "new" / "out", "--device", "cpu") if command == "apply" else ()
    refused(run(command, "hyperclone", model, *out), code, message)
    assert damage.snapshot(model) == before
    assert [p.name for p in folder.iterdir()] == ["model"]


@pytest.mark.parametrize("command", ["plan", "apply"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_damaged_config_is_refused(name: str, command: str, sound: Path, tmp_path: Path, run: Run) -> None:
    check(CONFIGS[name], sound, tmp_path, run, command)


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights_are_refused(name: str, sound: Path, tmp_path: Path, run: Run) -> None:
    check(WEIGHTS[name], sound, tmp_path, run, "apply")


@pytest.mark.parametrize("name", SHARDS)
def test_damaged_shards_are_refused(name: str, sound: Path, tmp_path: Path, run: Run) -> None:
    check(SHARDS[name], sound, tmp_path, run, "apply")


@pytest.mark.parametrize("name", RECIPES)
def test_a_garbled_recipe_is_refused(name: str, sound: Path, tmp_path: Path, run: Run) -> None:
    content, code, message = RECIPES[name]
    file = tmp_path / "r.surgery"
    file.write_bytes(content)
    exit_code, error = run("apply", file, sound, "--out", tmp_path / "out", "--device", "cpu")
    assert error.startswith(f"error[{code}]: "), error
    assert message in error and exit_code == 2 and "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["r.surgery"]


@pytest.mark.parametrize("kind", [damage.as_folder, damage.as_pipe, damage.unreadable, broken_link])
def test_a_recipe_that_is_no_file(
    kind: Callable[[str], Damage], sound: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "r.surgery").write_text("recipe r() {\n    grow hidden by 2\n}\n")
    kind("r.surgery")(tmp_path)
    refused(run("apply", tmp_path / "r.surgery", sound, "--out", tmp_path / "out"), "S106", "r.surgery")
    assert [p.name for p in tmp_path.iterdir()] == ["r.surgery"]


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        ("", "S201", "there is no model"),
        ("a" * 5000, "S201", "there is no model"),
        ("/" + "a" * 5000, "S201", "there is no model"),
        ("/dev/zero", "S201", "there is no model /dev/zero"),
    ],
)
def test_a_model_that_is_nothing(model: str, code: str, message: str, tmp_path: Path, run: Run) -> None:
    refused(run("apply", "hyperclone", model, "--out", tmp_path / "out"), code, message)
    assert list(tmp_path.iterdir()) == []


def test_what_is_odd_but_sound_is_grown_and_what_is_left_out_is_told(
    sound: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    more = damage.tensors(lambda state: state.update({"model.extra": torch.ones(3)}))
    wrong_total = damage.sharded(lambda folder, index: index["metadata"].update(total_size=1))
    model = damage.copied(sound, tmp_path / "model", more, wrong_total)
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 16}')
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"")
    assert run("apply", "hyperclone", model, "--out", tmp_path / "out", "--device", "cpu") == (0, "")
    notes = json.loads((tmp_path / "out" / "surgery.json").read_text())["notes"]
    assert notes == [
        "left out, as LlamaForCausalLM has no place for them: 1 tensor (model.extra)",
        "1_Pooling/config.json: word_embedding_dimension 16 → 32, as config.hidden_size",
        "README.md is a new card: what the source's says, its licence too, is not in it",
        "not carried over: onnx/",
    ]
    pooling = tmp_path / "out" / "1_Pooling" / "config.json"
    assert pooling.read_text() == '{"word_embedding_dimension": 32}'


# ── sources that change while they are read ──────────────────────────────────────────────


def rewritten(folder: Path) -> None:
    """One tensor's bytes, in place; the size stays."""
    with (folder / SINGLE).open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\1" * 8)


def replaced(folder: Path) -> None:
    """As a download does it: another file takes the name. Its time may be the same."""
    status = (folder / SINGLE).stat()
    save_file(load_file(folder / SINGLE), folder / "new", metadata={"format": "pt"})
    os.utime(folder / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "new").rename(folder / SINGLE)


def retyped(folder: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")


CHANGES = {"truncated": damage.cut(0.5), "rewritten": rewritten, "replaced": replaced, "config": retyped}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["planning", "expanding and writing", "proof: both graphs in float64"])
def test_a_source_that_changes_while_it_is_read(
    change: str, moment: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgeon import operations

    model = damage.copied(sound, tmp_path / "model")

    def stage(text: str) -> None:
        if text == moment:
            CHANGES[change](model)

    with pytest.raises(CheckpointError) as caught:
        operations.apply("hyperclone", model, tmp_path / "out", device="cpu", stage=stage)
    assert caught.value.code == "S415", str(caught.value)
    name = "config.json" if change == "config" else SINGLE
    assert f"{model / name} changed while surgeon was reading it" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


CUT_SHORT = """
import os, sys
from pathlib import Path
from surgeon import cli
from surgeon.checkpoints.tensors import StoredTensor

file, rows, calls = Path(sys.argv.pop(1)), StoredTensor.rows, []

def cut(self, *asked):
    calls.append(asked)
    if len(calls) == 3:  # the tensor is open, and its file was seen to be what it was
        os.truncate(file, 4096)
    return rows(self, *asked)

StoredTensor.rows = cut
cli.main()
"""


def test_a_file_cut_short_under_a_tensor_is_an_error_and_no_signal(tmp_path: Path) -> None:
    sizes = dict(hidden_size=64, intermediate_size=512, num_attention_heads=2, num_hidden_layers=1)
    config = LlamaConfig(vocab_size=9999, max_position_embeddings=16, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    file, out = tmp_path / "model" / SINGLE, tmp_path / "out"
    words = ["apply", "hyperclone", tmp_path / "model", "--out", out, "--device", "cpu"]
    told = subprocess.run(
        [sys.executable, "-c", CUT_SHORT, file, *words], stderr=subprocess.PIPE, text=True, timeout=100
    )
    refused((told.returncode, told.stderr), "S415", f"{file} changed while surgeon was reading it")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_file_that_is_gone_while_it_is_read(sound: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(damage.copied(sound, tmp_path / "model"))
    checkpoint.read(NORM)
    (tmp_path / "model" / SINGLE).unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file") as caught:
        checkpoint.refuse_changes()
    assert caught.value.code == "S403"
