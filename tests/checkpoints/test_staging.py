"""An output stands in its place whole, or not at all; what killed runs left is cleared away."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from surgeon.checkpoints import staging as staging_module
from surgeon.checkpoints.reading import SINGLE
from surgeon.checkpoints.staging import set_aside, staging
from surgeon.checkpoints.writing import Spec, write_checkpoint
from surgeon.errors import CheckpointError


def test_staging_leaves_nothing_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staging(tmp_path / "out", False) as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_staging_leaves_the_old_output_after_an_exception(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(ValueError, match="no"), staging(out, True):
        raise ValueError("no")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "old").read_text() == "old"


def test_force_replaces_the_whole_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(CheckpointError, match="exists already") as caught, staging(out, False):
        pass
    assert caught.value.code == "S410"
    with staging(out, True) as folder:
        (folder / "new").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.iterdir()] == ["new"]


def test_too_little_room_is_known_beforehand(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    told = pytest.raises(CheckpointError, match=r"needs 1\.0 EB; .* free")
    with told as caught, staging(out, False, needed=10**18):
        pass
    assert caught.value.code == "S411"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "S411"), (errno.EROFS, "S412")])
def test_a_failing_disk_is_told(number: int, code: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught, staging(tmp_path / "out", False):
        raise OSError(number, "the disk says no")
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    with pytest.raises(CheckpointError, match="cannot write") as caught, staging(out, False):
        pass
    assert caught.value.code == "S412"


def test_an_output_that_failed_is_set_aside(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with pytest.raises(ValueError, match="failed"), staging(tmp_path / "out", False) as folder:
            (folder / "text").write_text(text)
            set_aside(folder, tmp_path / "out")
            raise ValueError("failed")
    assert [p.name for p in tmp_path.iterdir()] == ["out.not-preserved"]
    assert (tmp_path / "out.not-preserved" / "text").read_text() == "second"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught, staging(tmp_path / "new" / "out", False) as folder:
        (folder / SINGLE).symlink_to("/dev/full")
        write_checkpoint(folder, [Spec("t", (3,), torch.float32)], lambda name: (torch.ones(3),))
    assert str(caught.value) == "\n".join(
        [
            f"error[S411]: the disk of {tmp_path / 'new'} is full",
            "  help: nothing was left behind",
        ]
    )
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_another_process_leaves_nothing(tmp_path: Path) -> None:
    script = """
import signal, sys, time
from pathlib import Path
from surgeon.checkpoints.staging import staging
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
with staging(Path(sys.argv[1]), True) as folder:
    (folder / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with subprocess.Popen(
        [sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["out", "out/old"]


def test_what_stood_there_stands_again_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".surgeon-" in self.name:
            raise OSError(errno.EIO, "the disk says no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    monkeypatch.setattr(staging_module, "_exchange", lambda folder, target: False)
    with pytest.raises(CheckpointError, match="the disk says no") as caught, staging(out, True):
        pass
    assert caught.value.code == "S412"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "old").read_text() == "old"


def test_force_replaces_a_file_and_a_link_but_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        with staging(tmp_path / name, True) as folder:
            (folder / "new").write_text("new")
        assert [p.name for p in (tmp_path / name).iterdir()] == ["new"]
    assert (tmp_path / "elsewhere" / "kept").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "file", "link"]


def test_force_replaces_no_pipe_or_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(CheckpointError, match="it is a device, pipe or socket") as caught,
        staging(tmp_path / "pipe", True),
    ):
        pass
    assert caught.value.code == "S412"
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"] and (tmp_path / "pipe").is_fifo()


def test_a_link_to_nowhere_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with (
        pytest.raises(CheckpointError, match="link exists already") as caught,
        staging(tmp_path / "link", False),
    ):
        pass
    assert caught.value.code == "S410"
    assert (tmp_path / "link").is_symlink()


def test_an_error_of_reading_elsewhere_is_not_called_one_of_writing(tmp_path: Path) -> None:
    for error in (FileNotFoundError(errno.ENOENT, "no such file", "/elsewhere/x"), OSError("cannot load")):
        with pytest.raises(OSError) as caught, staging(tmp_path / "out", False):
            raise error
        assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_an_output_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with staging(Path("out"), False) as folder:
        (folder / "new").write_text("new")
    with (
        pytest.raises(CheckpointError, match=r"error\[S410\]: out exists already"),
        staging(Path("out"), False),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def kept(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    for name in (".out.surgeon-abcdefgh", ".out.old-abcdefgh"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half")
    (tmp_path / ".out.surgeon-a_file_1").write_text("a file that a folder replaced")
    others = [".out.surgeon-x.surgeon-abcdefgh", ".other.surgeon-abcdefgh", ".out.surgeon-notes"]
    for name in others:
        (tmp_path / name).write_text("another's")
    with staging(tmp_path / "out", False) as folder:
        (folder / "new").write_text("new")
    assert kept(tmp_path) == sorted([*others, "out/new"])


@pytest.mark.parametrize("exchanging", [True, False])
def test_killed_at_the_last_step_the_next_run_finds_the_old_or_the_new(
    exchanging: bool, tmp_path: Path
) -> None:
    """The process kills itself right before each system call of the last step."""
    script = f"""
import os, signal, sys
from pathlib import Path
from surgeon.checkpoints import staging as module
if not {exchanging}:
    module._exchange = lambda folder, target: False
calls = ("os.rename", "os.rmdir", "os.remove", "os.mkdir", "shutil.rmtree", "ctypes.dlsym", "os.chmod")
left = int(sys.argv[2])
def count(event, args):
    global left
    left -= event in calls
    if left == 0 and event in calls:
        os.kill(os.getpid(), signal.SIGKILL)
with module.staging(Path(sys.argv[1]), True) as folder:
    (folder / "new").write_text("new")
    sys.addaudithook(count)
"""
    seen = set()
    for moment in range(1, 20):
        out = tmp_path / str(moment) / "out"
        out.mkdir(parents=True)
        (out / "old").write_text("old")
        done = subprocess.run([sys.executable, "-c", script, str(out), str(moment)], check=False)
        with pytest.raises(CheckpointError, match="exists already"), staging(out, False):
            pass
        assert kept(out.parent) in (["out/old"], ["out/new"])
        seen.add(kept(out.parent)[0])
        if done.returncode == 0:
            break
    assert done.returncode == 0 and seen == {"out/old", "out/new"}


def test_another_rank_puts_nothing_into_a_folder_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may still be at its shards when the first one stops, and a new file would keep the folder."""
    rmtree, met = shutil.rmtree, []

    def meeting(path: Path, ignore_errors: bool) -> None:
        with pytest.raises(FileNotFoundError):
            (folder / "shard").write_text("another rank's")
        met.append(path)
        rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", meeting)
    with pytest.raises(KeyboardInterrupt), staging(tmp_path / "out", False) as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert len(met) == 1
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_do_not_destroy_each_other(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging(out, False) as first:
        (first / "first").write_text("first")
        with pytest.raises(CheckpointError) as caught, staging(out, True):
            pass
        assert caught.value.code == "S414"
        assert "another run of surgeon is writing" in str(caught.value)
        assert (first / "first").is_file()
    assert kept(tmp_path) == ["out/first"]


def test_whoever_finishes_first_is_not_replaced_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging_module, "_take_leftovers", lambda *_: None)  # both looked, then both began
    out = tmp_path / "out"
    with (
        pytest.raises(CheckpointError, match="out exists by now: another run finished first") as caught,
        staging(out, False) as second,
    ):
        (second / "second").write_text("second")
        with staging(out, False) as first:
            (first / "first").write_text("first")
    assert caught.value.code == "S410"
    assert kept(tmp_path) == ["out/first"]
    with staging(out, True) as last:
        (last / "last").write_text("last")
    assert kept(tmp_path) == ["out/last"]


def test_a_folder_taken_for_a_leftover_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = fcntl.flock
    taken: list[Path] = []

    def taking(descriptor: int, how: int) -> None:
        if not taken:  # between its making and its locking
            taken.extend(tmp_path.glob(".out.surgeon-*"))
            taken[0].rmdir()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", taking)
    with staging(tmp_path / "out", False) as folder:
        assert folder != taken[0]
        (folder / "new").write_text("new")
    assert kept(tmp_path) == ["out/new"]


def test_without_locks_nothing_is_removed_that_may_be_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, how: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / ".out.surgeon-abcdefgh").mkdir()
    with staging(tmp_path / "out", False) as folder:
        (folder / "new").write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.surgeon-abcdefgh", "out"]


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with (
        pytest.raises(CheckpointError, match="it is a mount point") as caught,
        staging(tmp_path / "out", True),
    ):
        pass
    assert caught.value.code == "S412"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_output_is_in_place(number: int, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(number, stop)
    try:
        real, out = os.fsync, tmp_path / "out"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop), staging(out, False) as new:
            (new / "new").write_text("new")
            patch.setattr(os, "fsync", lambda file: (os.kill(os.getpid(), number), real(file)))
        assert signal.getsignal(number) is stop
        assert kept(tmp_path) == ["out/new"]
        with pytest.raises(Stop), staging(out, True):
            os.kill(os.getpid(), number)
            pytest.fail("heeded at once while the folder is written")
        assert kept(tmp_path) == ["out/new"]
    finally:
        signal.signal(number, before)


def test_in_another_thread_signals_are_left_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with staging(tmp_path / "out", False):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before] and signal.getsignal(signal.SIGINT) is before


def test_a_signal_inside_a_finaliser_stops_all_the_same() -> None:
    script = """
import os, signal, time
from surgeon.running.stops import Unwinding
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
signals = Unwinding()
try:
    late = Late()
    del late
    time.sleep(30)
except KeyboardInterrupt:
    signals.over()
    print("unwound", signals.came)
"""
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "unwound True\n", "")
