"""The command line: exit codes, one message per mistake, nothing half-written."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from surgeon import cli


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["surgeon", *map(str, words)])
    return cli.run()


def test_plan_shows_dims_config_and_counts(
    monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    assert run(monkeypatch, "plan", "hyperclone", model / "config.json", "--json", file) == 0
    shown = capsys.readouterr().out
    assert "config.hidden_size: 24 → 48" in shown
    assert "config.num_key_value_heads: 2 → 4" in shown
    assert "never separate" in shown
    assert json.loads(file.read_text())["config"]["intermediate_size"] == [40, 80]


def test_apply_then_verify_then_a_broken_weight(
    monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    out = tmp_path / "grown"
    assert run(monkeypatch, "apply", "grow", model, "--out", out, "--device", "cpu") == 0
    assert "Preserved." in capsys.readouterr().out
    record = json.loads((out / "surgery.json").read_text())
    assert record["proof"]["preserved"] and record["plan"]["recipe"] == "grow"
    assert run(monkeypatch, "verify", model, out, "--device", "cpu") == 0
    state = load_file(out / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"][3, 2] += 0.1
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert run(monkeypatch, "verify", model, out, "--device", "cpu") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "NOT preserved" in shown and "model.layers.0.mlp.up_proj" in shown


MISTAKES = [
    (["plan", "hyperclon", "{model}"], "did you mean `hyperclone`?"),
    (["plan", "hyperclone", "nowhere"], "there is no model nowhere"),
    (["plan", "hyperclone", "{model}", "--set", "n=abc"], "there is no parameter `abc`"),
    (["plan", "hyperclone", "{model}", "--set", "n"], "not of the form NAME=VALUE"),
    (["apply", "hyperclone", "{model}", "--out", "{tmp}"], "exists already"),
    (["apply", "hyperclone", "{model}", "--out", "{model}", "--force"], "is or holds the source model"),
    (["apply", "hyperclone", "{model}", "--out", "{tmp}/x", "--device", "tpu"], "unknown device tpu"),
    (["apply", "hyperclone", "{model}", "--out", "{tmp}/x", "--dtype", "int3"], "unknown dtype int3"),
    (["apply", "hyperclone", "{model}/config.json", "--out", "{tmp}/x"], "no weights to grow"),
    (["demo", "--out", "{model}"], "is no model that surgeon grew"),
    (["explain", "S999"], "there is no diagnostic S999"),
    (["explain", "{model}", "no.such[0]"], "there is no axis no.such[0]"),
    (["apply", "hyperclone", "{model}"], "Missing option"),
    (["plan", "{tmp}/none.surgery", "{model}"], "declares no recipe"),
    (["plan", "{tmp}/odd.surgery", "{model}"], "no family names a dim hiden"),
    (["plan", "{tmp}/half.surgery", "{model}"], "is not a whole number"),
    (["plan", "grow", "{model}x"], "did you mean `{model}`?"),
    (["plan", "grow", "{model}", "--set", "n=2", "--set", "n=3"], "n is set twice"),
    (["plan", "grow", "{model}", "--set", "=2"], "not of the form NAME=VALUE"),
    (["explain", "{model}"], "an axis is to be named, too"),
    (["explain", "{model}", "model.nrm.weight[0]"], "did you mean `model.norm.weight[0]`?"),
    (["fmt", "--check", "{tmp}/bytes.surgery"], "byte 0 is not UTF-8"),
    (["fmt", "--check", "{tmp}"], "is a directory"),
    (["plan", "{tmp}/field.surgery", "{model}"], "did you mean `hidden_size`?"),
    (["plan", "{tmp}/axis.surgery", "{model}"], "did you mean `model.layers.*.mlp.up_proj.weight`?"),
    (
        ["plan", "{tmp}/ninth.surgery", "{model}"],
        "model.layers.0.mlp.up_proj.weight has 2 axes, none numbered 9",
    ),
    (
        ["plan", "{tmp}/twice.surgery", "{model}"],
        "config.intermediate_size is asked to grow to 80 and to 120",
    ),
    (["plan", "{tmp}/two.surgery", "{model}"], "name the one to use: {tmp}/two.surgery:first"),
    (
        ["plan", "{tmp}/two.surgery", "{model}", "--set", "n=3"],
        "name the one to use: {tmp}/two.surgery:first",
    ),
    (["plan", "{tmp}/two.surgery:secnd", "{model}"], "did you mean `second`?"),
    (["plan", "{tmp}/unit.surgery", "{model}"], "did you mean `dB`?"),
]
FILES = {
    "none": "op my.op : pointwise nonlinear\n",
    "odd": "recipe odd() {\n    grow hiden by 2\n}\n",
    "half": "recipe half() {\n    grow hidden by 13/11\n}\n",
    "field": "recipe field() {\n    grow config.hiden_size by 2\n}\n",
    "axis": 'recipe axis() {\n    grow axis("model.layers.*.mlp.uproj.weight", 0) by 2\n}\n',
    "ninth": 'recipe ninth() {\n    grow axis("*.up_proj.weight", 9) by 2\n}\n',
    "twice": "recipe twice() {\n    grow ffn by 2\n    grow config.intermediate_size by 3\n}\n",
    "two": "recipe first() {\n    grow ffn by 2\n}\nrecipe second() {\n    grow ffn by 3\n}\n",
    "unit": "recipe unit() {\n    grow ffn by 2\n    noise linear at 10 db\n}\n",
}


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_gets_one_message_and_exit_code_2(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name, text in FILES.items():
        (tmp_path / f"{name}.surgery").write_text(text)
    (tmp_path / "bytes.surgery").write_bytes(b"\xff\xfe")
    before = sorted(p.name for p in tmp_path.iterdir())
    filled = [w.format(model=model, tmp=tmp_path) for w in words]
    assert run(monkeypatch, *filled) == 2
    error = capsys.readouterr().err
    assert message.format(model=model, tmp=tmp_path) in error
    assert "Traceback" not in error
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_recipe_is_chosen_by_its_name_and_slips_in_patterns_are_said(
    monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "two.surgery"
    file.write_text(
        "recipe first() {\n    grow ffn by 2\n}\n"
        'recipe second() {\n    grow ffn by 3\n    spread linear with first at "*.mlp.*", "*.mlpp.*"\n'
        '    noise linear at 10 dB in "*.nrm"\n    expand aten.linear at "*.dwn" '
        "{ weight := copy(o) * first(i) }\n}\n"
    )
    assert run(monkeypatch, "plan", f"{file}:first", model / "config.json") == 0
    assert "config.intermediate_size: 40 → 80" in capsys.readouterr().out
    assert run(monkeypatch, "plan", f"{file}:second", model / "config.json") == 0
    shown = capsys.readouterr().out
    assert "config.intermediate_size: 40 → 120" in shown
    assert 'note: spread of linear: "*.mlpp.*" fits no module that has any' in shown
    assert 'note: noise of linear: "*.nrm" fits no module that has any' in shown
    assert 'note: expand of aten.linear: "*.dwn" fits no module that has any' in shown
    assert '"*.mlp.*"' not in shown


def test_a_size_that_the_class_derives_is_not_grown_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sizes = {"vocab_size": 61, "n_embd": 24, "n_layer": 1, "n_head": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))
    file = tmp_path / "heads.surgery"
    file.write_text("recipe heads() {\n    grow head_dim by 2\n}\n")
    assert run(monkeypatch, "plan", file, tmp_path / "config.json") == 2
    assert "error[S313]: gpt2: nothing would grow" in capsys.readouterr().err


def test_verify_says_what_is_no_growth(
    monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "grown"
    words = ["apply", "grow", model, "--out", out, "--device", "cpu", "--verify", "none"]
    assert run(monkeypatch, *words) == 0
    capsys.readouterr()
    assert run(monkeypatch, "verify", out, model, "--device", "cpu") == 2
    assert "help: the source is named first, then what has grown from it" in capsys.readouterr().err
    config = json.loads((out / "config.json").read_text()) | {"architectures": ["LlamaModel"]}
    (out / "config.json").write_text(json.dumps(config))
    assert run(monkeypatch, "verify", model, out, "--device", "cpu") == 2
    assert "is a LlamaModel, and" in capsys.readouterr().err


def test_a_class_with_more_layers_is_told_by_its_parameters(
    monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "deeper.surgery"
    file.write_text("recipe deeper() {\n    grow config.num_hidden_layers by 2\n}\n")
    assert run(monkeypatch, "plan", file, model / "config.json") == 2
    shown = capsys.readouterr().err
    assert "note: the source has model.norm.weight" in shown
    assert "note: the grown class has model.layers.1.self_attn.q_proj.weight" in shown


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from surgeon.version import VERSION

    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"surgeon {VERSION}\n"


def test_names_are_whole_in_a_file_and_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    import surgeon
    from surgeon.rendering import dim_rows, show_dims

    monkeypatch.delenv("COLUMNS", raising=False)  # which says how wide whatever is
    assert run(monkeypatch, "dims", model / "config.json") == 0
    shown = capsys.readouterr().out
    assert "model.embed_tokens.weight[1], model.layers.*.self_attn.q_proj.weight[1] and" in shown
    assert all(line == line.rstrip() for line in shown.splitlines())
    called = [row.label for row in dim_rows(surgeon.dims(model / "config.json"))]
    assert all(label.endswith(("weight[0]", "weight[1]")) for label in called)  # after no op
    narrow = Console(width=40, force_terminal=True, file=io.StringIO())
    show_dims(narrow, dim_rows(surgeon.dims(model / "config.json")))
    assert isinstance(narrow.file, io.StringIO) and "…" not in narrow.file.getvalue()


def test_a_reader_who_leaves_is_no_failed_proof(model: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "surgeon", "apply", "grow", str(model), "--out", str(tmp_path / "grown")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 3
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_without_arrows_gets_the_plan(model: Path) -> None:
    words = [sys.executable, "-m", "surgeon", "plan", "grow", str(model / "config.json")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    found = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    assert "config.hidden_size: 24 ? 48" in found.stdout


def test_an_unexpected_failure_exits_3_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("surgeon.operations.plan_with_forecast", broken)
    assert run(monkeypatch, "plan", "hyperclone", "x") == 3
    assert "surgeon failed: RuntimeError: boom" in capsys.readouterr().err


def test_ctrl_c_is_one_message_and_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("surgeon.operations.plan_with_forecast", stopped)
    assert run(monkeypatch, "plan", "hyperclone", "x") == 3
    assert "stopped; nothing was left behind" in capsys.readouterr().err


def test_fmt_check_and_fmt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "r.surgery"
    file.write_text("recipe   r( ) {\ngrow hidden   by 2\n}\n")
    assert run(monkeypatch, "fmt", "--check", file) == 1
    assert run(monkeypatch, "fmt", file) == 0
    assert run(monkeypatch, "fmt", "--check", file) == 0
    assert run(monkeypatch, "check", file) == 0
    assert "sound" in capsys.readouterr().out


def test_an_output_that_fails_its_proof_is_kept_aside(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    from surgeon.rewriting import checkpoint

    real = checkpoint.blocks

    def off(*args: Any) -> Iterator[torch.Tensor]:
        yield from (block * 1.5 for block in real(*args))

    monkeypatch.setattr(checkpoint, "blocks", off)
    out = tmp_path / "grown"
    assert run(monkeypatch, "apply", "grow", model, "--out", out, "--device", "cpu") == 1
    assert "kept aside" in capsys.readouterr().err
    assert not out.exists()
    assert (tmp_path / "grown.not-preserved" / "model.safetensors").is_file()
    shutil.rmtree(tmp_path / "grown.not-preserved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("way", "said"), [("none", "Not verified"), ("sample", "the whole was not.")])
def test_what_was_not_checked_is_said_and_is_no_failure(
    way: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    words = ["apply", "grow", model, "--out", tmp_path / "grown", "--device", "cpu", "--verify", way]
    assert run(monkeypatch, *words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert said in shown and "Preserved." not in shown


def test_help_and_check_load_no_torch() -> None:
    code = "import surgeon.cli, surgeon.language, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_check_rules_tells_a_wrong_rule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    right, wrong = tmp_path / "right.surgery", tmp_path / "wrong.surgery"
    right.write_text("op aten.silu : pointwise nonlinear\n")
    wrong.write_text("op aten.flip : pointwise nonlinear\n")
    assert run(monkeypatch, "check", "--rules", right) == 0
    assert "right     aten.silu" in capsys.readouterr().out
    assert run(monkeypatch, "check", "--rules", wrong) == 1
    assert "wrong     aten.flip" in capsys.readouterr().out


def test_a_json_file_that_cannot_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "no" / "plan.json"
    assert run(monkeypatch, "plan", "hyperclone", model / "config.json", "--json", file) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_place_for_json_is_looked_at_before_the_work(
    monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "apply", "grow", model, "--out", tmp_path / "grown", "--json", tmp_path) == 2
    assert "it is a folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_of_the_json_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(self: Path, text: str, **_: object) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "wide.surgery"
    file.write_text("recipe wide() {\n  grow ffn by 2\n}\n")
    monkeypatch.setattr(Path, "write_text", full)
    assert run(monkeypatch, "fmt", file) == 2
    assert "wide.surgery: No space left on device" in capsys.readouterr().err
    file.unlink()
    words = ["plan", "grow", model / "config.json", "--json", tmp_path / "plan.json"]
    assert run(monkeypatch, *words) == 2
    assert "plan.json: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["plan", "grow", "{tmp}/nowhere"], "S201"),
        (["plan", "growe", "{model}"], "S106"),
        (["dims", "{tmp}"], "S202"),
        (["apply", "grow", "{model}", "--out", "{model}"], "S410"),
        (["verify", "{model}", "{tmp}"], "S202"),
    ],
)
def test_errors_are_in_the_json(
    words: list[str], code: str, monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    filled = [word.format(model=model, tmp=tmp_path) for word in words]
    assert run(monkeypatch, *filled, "--json", file) == 2
    found = json.loads(file.read_text())
    assert found["exit"] == 2 and [error["code"] for error in found["errors"]] == [code]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_place_of_what_is_printed_is_said(model: Path) -> None:
    words = [sys.executable, "-m", "surgeon", "plan", "grow", str(model / "config.json")]
    with open("/dev/full", "wb") as full:
        found = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr == "error[S412]: cannot write to the standard output: No space left on device\n"
