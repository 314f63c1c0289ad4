"""Killed at any moment, ``surgeon apply`` leaves its target finished or untouched; on a full disk too."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from surgeon import cli, operations
from surgeon.errors import CheckpointError

KILLS = int(os.environ.get("SURGEON_KILLS", "9"))
SEED = int(os.environ.get("SURGEON_SEED", "0"))
LEFT = "stopped; shards that were finished are left for --resume\n"
NOTHING = "stopped; nothing was left behind\n"


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What killed runs left; see killing.py. SURGEON_KILLS says how many."""
    script, folder = Path(__file__).with_name("killing.py"), tmp_path_factory.mktemp("kills")
    words = [sys.executable, str(script), str(folder), str(KILLS), str(SEED)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_killed_run_leaves_the_target_finished_or_as_it_was(kills: list[dict[str, Any]]) -> None:
    assert len(kills) == KILLS
    for kill in kills:
        assert kill["target"] in ("finished", "old" if kill["force"] else "absent"), kill
        assert kill["source_same"] and kill["cleared"] and not kill["accepted_half"], kill


def test_a_signal_that_can_be_caught_is_one_message_and_nothing_left(kills: list[dict[str, Any]]) -> None:
    for kill in kills:
        if kill["rank"] >= 0:  # which of two ranks says it depends on where both were
            assert kill["left"] == 0 or kill["code"] == -signal.SIGKILL, kill
            continue
        if kill["signal"] == "SIGKILL":
            assert kill["error"] == "" and kill["code"] in (0, -signal.SIGKILL), kill
        elif kill["code"] == 0:  # it came after the end
            assert kill["error"] == "" and kill["target"] == "finished", kill
        elif kill["target"] == "finished":
            assert kill["code"] == 3, kill
            assert kill["error"].startswith("stopped; ") and kill["error"].endswith("finished before that\n")
        else:
            # A run that had not got to its start yet has nothing of its own to leave.
            said = (LEFT, NOTHING) if kill["resumed"] else (NOTHING,)
            assert kill["code"] == 3 and kill["error"] in said, kill
        assert kill["left"] == 0 or kill["resumed"] or kill["code"] == -signal.SIGKILL, kill


def test_a_killed_run_that_had_resumed_is_gone_on_with(kills: list[dict[str, Any]]) -> None:
    resumed = [kill for kill in kills if kill["resumed"]]
    assert len(resumed) == KILLS // 4
    for kill in resumed:
        assert kill["taken_up"] > 0 and kill["ended"] == "finished", kill


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=1)
    folder = tmp_path_factory.mktemp("models") / "source"
    LlamaForCausalLM(LlamaConfig(vocab_size=31, max_position_embeddings=16, **sizes)).save_pretrained(folder)
    return folder


def test_the_command_itself_is_terminated(source: Path, tmp_path: Path) -> None:
    words = ["apply", "grow", str(source), "--out", str(tmp_path / "new" / "out"), "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-m", "surgeon.cli", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not list(tmp_path.rglob("*.safetensors")):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 3
    assert error == NOTHING
    assert list(tmp_path.iterdir()) == []


# ── full disks ───────────────────────────────────────────────────────────────────────────


def apply(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and stderr of ``surgeon apply`` in this process."""
    words = ["surgeon", "apply", "grow", str(source), "--out", str(out), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", words)
    return cli.run(), capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with room for 256 KiB; skipped where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    words = [mount or "", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if mount is None or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_too_small_is_known_before_writing(
    source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "full").write_bytes(b"x" * 240 * 1024)
    code, error = apply(source, small_disk / "out", monkeypatch, capsys)
    assert code == 2
    assert error.startswith("error[S411]: the grown model needs ") and "kB free" in error
    assert os.listdir(small_disk) == ["full"]


@pytest.mark.parametrize("room", [0, 4, 20, 48])
def test_a_disk_that_fills_up_while_it_is_written(
    room: int,
    source: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`room` KiB are left of what was there when the room was looked at."""
    total = 256 * 1024
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(total, 0, total))  # type: ignore[attr-defined]
    (small_disk / "others").write_bytes(b"x" * (total - room * 1024))
    code, error = apply(source, small_disk / "new" / "out", monkeypatch, capsys)
    assert code == 2
    assert (
        error == f"error[S411]: the disk of {small_disk / 'new'} is full\n  help: nothing was left behind\n"
    )
    assert os.listdir(small_disk) == ["others"]


@pytest.mark.parametrize("limit", [0, 5000])
def test_a_limit_on_the_size_of_files(
    limit: int,
    source: Path,
    tmp_path: Path,
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            operations.apply("grow", source, tmp_path / "out", device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code == "S412"
    assert f"cannot write {tmp_path / 'out'}: {os.strerror(errno.EFBIG)}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
