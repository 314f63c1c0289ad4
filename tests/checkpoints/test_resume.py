"""Interrupted runs taken up again, and runs shared by several processes: the bytes are those of one run."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import surgeon
from surgeon.checkpoints.journal import Journal, checksum_of
from surgeon.checkpoints.staging import staging
from surgeon.checkpoints.writing import Spec, shards_of, write_shards
from surgeon.errors import CheckpointError
from surgeon.operations import size_of
from surgeon.running.ranks import is_first, joined

SHARD = "40KB"
JOB = {"recipe": "a", "source": "b"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "source"
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_hidden_layers=2)
    LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=16, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(source: Path) -> dict[str, str]:
    """The bytes of an undisturbed run."""
    out = source.parent / "whole"
    surgeon.apply("grow", source, out, shard_size=SHARD, device="cpu")
    found = contents(out)
    assert len([name for name in found if name.endswith(".safetensors")]) > 4
    return found


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def command(source: Path, out: Path, *options: str) -> list[str]:
    words = ["-m", "surgeon", "apply", "grow", str(source), "--out", str(out), "--shard-size", SHARD]
    return [*words, "--device", "cpu", *options]


def hidden(out: Path) -> list[Path]:
    return list(out.parent.glob(f".{out.name}.surgeon-*"))


def test_a_killed_run_is_gone_on_with(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, *command(source, out)], stdout=subprocess.DEVNULL)
    while process.poll() is None and not [d for p in hidden(out) for d in p.glob(".*.done")]:
        time.sleep(0.001)
    process.kill()
    process.wait()
    (left,) = hidden(out)
    finished = {
        p.name: p.stat().st_mtime_ns for p in left.glob("model-*") if Journal(left).is_finished(p.name)
    }
    assert finished
    surgeon.apply("grow", source, out, shard_size=SHARD, device="cpu", resume=True)
    assert contents(out) == whole
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished  # not written again


def test_what_another_job_left_is_refused_and_said(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), staging(out, False, 0, JOB) as folder:
        write_some(folder)
        raise KeyboardInterrupt
    other = staging(out, False, 0, {**JOB, "source": "c"})
    with pytest.raises(CheckpointError, match="made with another source") as caught, other:
        raise AssertionError("not reached")
    assert caught.value.code == "S416"
    assert len(hidden(out)) == 1  # still there for the right one
    with staging(out, False, 0, JOB) as again:
        assert again == folder
        assert Journal(again).holds_shards
    assert [p.name for p in out.iterdir()] == ["model.safetensors"]  # the notes are gone


def write_some(folder: Path) -> None:
    Journal(folder).begin(JOB)
    shards = shards_of([Spec("t", (3,), torch.float32)])
    write_shards(folder, shards, lambda name: (torch.ones(3),), journal=Journal(folder))


def test_killed_while_its_notes_go_a_run_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of all steps before a folder is put in place; at each of them the next run must know whose
    shards these are."""
    out, unlink = tmp_path / "out", Path.unlink
    for moment in range(4):
        with pytest.raises(InterruptedError), staging(out, False, 0, JOB) as folder:
            journal = Journal(folder)
            journal.begin(JOB)
            for name in ("a", "b"):
                (folder / name).write_text(name)
                journal.finished(name, checksum_of(folder / name))
            raise InterruptedError
        left = [moment]

        def killed(path: Path, missing_ok: bool = False, left: list[int] = left) -> None:
            if not left[0]:
                raise InterruptedError
            left[0] -= 1
            unlink(path, missing_ok)

        (folder,) = hidden(out)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", killed)
            with pytest.raises(InterruptedError) if moment < 3 else contextlib.nullcontext():
                Journal(folder).forget()
        with pytest.raises(InterruptedError), staging(out, False, 0, JOB):
            raise InterruptedError  # not refused as another job's


def test_without_resume_a_stopped_run_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), staging(out, False) as folder:
        write_some(folder)
        raise KeyboardInterrupt
    assert not hidden(out)


def test_a_shard_whose_bytes_changed_is_written_again(tmp_path: Path) -> None:
    write_some(tmp_path)
    file, journal = tmp_path / "model.safetensors", Journal(tmp_path)
    assert journal.is_finished(file.name)
    before = checksum_of(file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert not journal.is_finished(file.name)
    write_some(tmp_path)
    assert checksum_of(file) == before


@pytest.mark.parametrize("text", ["", "0GB", "5 apples", "-1GB", "1.5GB"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="is no size of a shard"):
        size_of(text)


def test_wrong_flags_are_told_before_the_model_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no size of a shard"):
        surgeon.apply("grow", tmp_path / "no model", tmp_path / "out", shard_size="big")
    with pytest.raises(CheckpointError, match="unknown dtype"):
        surgeon.apply("grow", tmp_path / "no model", tmp_path / "out", dtype="float8")


def test_a_lock_is_let_go_of_when_another_run_lives(tmp_path: Path) -> None:
    out = tmp_path / "out"
    left, living = tmp_path / ".out.surgeon-aaaaaaaa", tmp_path / ".out.surgeon-bbbbbbbb"
    for folder in (left, living):
        folder.mkdir()
    write_some(left)
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(CheckpointError, match="another run"), staging(out, False, 0, JOB):
        raise AssertionError("not reached")
    os.close(lock)
    with staging(out, False, 0, JOB) as again:
        assert again == left


def test_a_full_disk_says_what_it_leaves(tmp_path: Path) -> None:
    out = tmp_path / "out"
    full = OSError(errno.ENOSPC, "full")
    with pytest.raises(CheckpointError, match="is full") as caught, staging(out, False, 0, JOB) as folder:
        write_some(folder)
        raise full
    assert "finished shards are left for --resume" in str(caught.value)
    assert hidden(out)
    with pytest.raises(CheckpointError, match="nothing was left behind"), staging(out, False):
        raise full
    assert not hidden(out)


def test_sizes_are_those_of_transformers() -> None:
    assert [size_of(t) for t in ("5GB", "300mb", "40 KB", "7")] == [5 * 10**9, 3 * 10**8, 40_000, 7]


# ── several processes ────────────────────────────────────────────────────────────────────


def ranks(arguments: list[str]) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*words, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_ranks_write_what_one_does(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    process = ranks(command(source, tmp_path / "out"))
    said, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert said.count("Preserved.") == 1  # one rank speaks
    # How often float64 rounds in the proof depends on the threads, and the proof's figures are recorded.
    told = {"surgery.json", "README.md"}
    found = contents(tmp_path / "out")
    assert found.keys() == whole.keys()
    assert all(found[name] == whole[name] for name in whole.keys() - told)


def test_what_one_rank_refuses_is_told_once(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    process = ranks(command(source, tmp_path / "out"))
    _, errors = process.communicate(timeout=100)
    assert process.returncode != 0
    assert errors.count("error[S410]") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_rank_that_dies_ends_the_job(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = ranks(command(source, out))
    while process.poll() is None and not hidden(out):
        time.sleep(0.002)
    os.kill(child_of_rank(process.pid, 1), signal.SIGKILL)
    process.communicate(timeout=100)
    assert process.returncode != 0
    assert not out.exists()
    assert not hidden(out)


def test_a_rank_without_an_address_is_told_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": ""}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CheckpointError, match="rank 1 of 2 does not know where the first one is") as caught:
        joined().__enter__()
    assert caught.value.code == "S417"


ALONE = """
import signal, sys
from surgeon.running import ranks
from surgeon.running.ranks import joined
ranks.FAREWELL = 0.1
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(flush=True)
with joined() as both:
    both.agree(int)
"""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_waits_for_the_other_heeds_a_signal(rank: str) -> None:
    """Without torchrun nobody kills it after that."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    job = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with subprocess.Popen(
        [sys.executable, "-c", ALONE],
        env=os.environ | job,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as waiting:
        assert waiting.stdout is not None
        waiting.stdout.readline()
        time.sleep(1.5)  # torch is imported and tries
        waiting.terminate()
        try:
            assert waiting.wait(timeout=30) == 7
        finally:
            waiting.kill()


@pytest.mark.parametrize(
    ("environment", "speaks"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"WORLD_SIZE": "2", "RANK": "1"}, False),
        ({"WORLD_SIZE": "2"}, True),
    ],
)
def test_a_process_alone_speaks(
    environment: dict[str, str], speaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first() is speaks


def child_of_rank(parent: int, rank: int) -> int:
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            environment = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, NotADirectoryError):
            continue
        if int(status[1]) == parent and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    raise AssertionError("no such rank")
