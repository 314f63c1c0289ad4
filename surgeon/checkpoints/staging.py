"""A folder written beside its target and put in place by one rename, or not at all.

While it is written, the folder is called ``.TARGET.surgeon-`` and eight letters drawn at random, and its
process holds a lock on it. The system drops the lock when the process ends, however it ends, so the next
run to the same target tells the folder of a killed run from that of a running one. It removes it, or goes
on from the shards in it that are finished.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.filesize import decimal

from surgeon.checkpoints.journal import Journal
from surgeon.errors import CheckpointError, fail
from surgeon.running.stops import Deferral

NEW, OLD = "surgeon", "old"  # what is being written; what stood there, for the moment of two renames
REMOVED = "removed_"  # in place of the letters drawn at random
AT_FDCWD, RENAME_EXCHANGE = -100, 2
IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@contextlib.contextmanager
def staging(
    target: Path, force: bool, needed: int = 0, job: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """A folder beside `target` that becomes it when the block ends well, and vanishes otherwise.

    Parent folders made for it vanish too. Signals that stop the process wait while it is made, put in
    place and removed. With a `job` the folder of a stopped run of the same job is taken up, and one with
    finished shards stays where the block does not end well. Raises CheckpointError S410 (the target
    exists), S411 (no room), S412 (cannot write), S414 (another run is writing it), S416 (what is left is
    of another job).
    """
    shown, target = target, _absolute(target)
    made: list[Path] = []
    with Deferral() as stops:
        try:
            left = _take_leftovers(target, shown, job)
            try:
                _refuse(target, shown, force)
                made = [p for p in target.parents if not p.exists()]
                target.parent.mkdir(parents=True, exist_ok=True)
                _refuse_too_large(target.parent, needed - (_size(left[0]) if left else 0))
                folder, lock = left or _make(target, NEW)
            except BaseException:
                if left:
                    os.close(left[1])
                raise
        except OSError as error:
            _remove_empty(made)
            raise _write_error(shown, error) from error
        except BaseException:
            _remove_empty(made)
            raise
        try:
            with stops.heeded():
                yield folder
            Journal(folder).forget()
            put_in_place(folder, target, force or target.is_symlink(), shown)
        except OSError as error:
            if not _is_writing(error, target.parent):
                raise
            kept = job is not None and Journal(folder).holds_shards
            raise _write_error(shown, error, kept) from error
        finally:
            if job is None or not Journal(folder).holds_shards:
                _remove(folder)
            os.close(lock)
            _remove_empty(made)


def refuse_source(out: Path, folder: Path) -> None:
    """The source stays untouched, even with --force. Raises CheckpointError S410."""
    target, source = out.resolve(), folder.resolve()
    if target == source or target in source.parents:
        raise fail(
            CheckpointError, "S410", f"{out} is or holds the source model", help="choose another --out"
        )


def refuse_existing(out: Path, force: bool) -> None:
    """Raises CheckpointError S410 for an output that may not be replaced, S412 where it cannot stand."""
    with writing_to(out):
        _refuse(_absolute(out), out, force)


@contextlib.contextmanager
def writing_to(out: Path | None) -> Iterator[None]:
    """Raises CheckpointError S411 or S412 for what the system refuses to do at `out`."""
    try:
        yield
    except OSError as error:
        if out is None:
            raise
        raise _write_error(out, error) from error


def _refuse(target: Path, shown: Path, force: bool) -> None:
    if os.path.ismount(target):
        raise fail(
            CheckpointError,
            "S412",
            f"cannot write {shown}: it is a mount point, which no finished folder can be renamed to",
            help="choose a folder inside it",
        )
    if not os.path.lexists(target):
        return
    if not any(kind(target.lstat().st_mode) for kind in (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)):
        raise fail(
            CheckpointError,
            "S412",
            f"cannot write {shown}: it is a device, pipe or socket, which --force does not replace either",
            help="name a folder",
        )
    if (not target.is_dir() or any(target.iterdir())) and not force:
        raise _exists(shown)


def _refuse_too_large(parent: Path, needed: int) -> None:
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise fail(
            CheckpointError,
            "S411",
            f"the grown model needs {decimal(needed)}; {parent} has {decimal(free)} free",
        )


def _exists(shown: Path, since: str = "already") -> CheckpointError:
    return fail(
        CheckpointError, "S410", f"{shown} exists {since}", help="choose another --out, or add --force"
    )


def _absolute(path: Path) -> Path:
    """So that `.` and `x/..` have a name and a parent."""
    return Path(os.path.abspath(path))


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _remove(path: Path) -> None:
    """Remove a hidden folder with all it holds, a file or a link, as far as the system lets us. A folder gets
    another name first, so that another rank, which may still be writing, can put nothing new into it."""
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):
            path = path.rename(path.with_name(path.name[: -len(REMOVED)] + REMOVED))
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_writing(error: OSError, parent: Path) -> bool:
    """Whether the system refused to write here: other libraries raise OSError for whatever they read."""
    if error.errno is None:
        return False
    return error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(parent)


def _write_error(target: Path, error: OSError, kept: bool = False) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return fail(
            CheckpointError,
            "S411",
            f"the disk of {_absolute(target).parent} is full",
            help="finished shards are left for --resume" if kept else "nothing was left behind",
        )
    return fail(CheckpointError, "S412", f"cannot write {target}: {error.strerror or error}")


# ── folders of runs, living and dead ─────────────────────────────────────────────────────


def _make(target: Path, kind: str) -> tuple[Path, int]:
    """A new hidden folder beside `target`, and the open lock on it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.{kind}-", dir=target.parent))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(OSError):  # a file system without locks: leftovers stay
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # else another run found it unlocked, and took it for a leftover
            return folder, lock
        os.close(lock)


def _take_leftovers(target: Path, shown: Path, job: Mapping[str, str] | None) -> tuple[Path, int] | None:
    """Remove what killed runs to `target` left; of one killed between two renames, put back what stood
    there. Of a folder with finished shards of `job`, return it and the lock on it. Raises CheckpointError
    S414 when one of the runs lives, S416 for finished shards of another job."""
    taken: tuple[Path, int] | None = None
    with contextlib.ExitStack() as locks:
        pattern = re.compile(rf"\.{re.escape(target.name)}\.({NEW}|{OLD})-[a-z0-9_]{{8}}")
        names = sorted(os.listdir(target.parent)) if target.parent.is_dir() else []
        for name in names:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            path = target.parent / name
            try:
                lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):  # a file or link that a new folder replaced
                    _remove(path)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if job is not None and match[1] == NEW and taken is None and Journal(path).holds_shards:
                    Journal(path).refuse_other(job, shown)
                    taken = path, os.dup(lock)
                    locks.callback(os.close, taken[1])
                    continue
                if match[1] == OLD and (path / target.name).exists() and not os.path.lexists(target):
                    (path / target.name).rename(target)
                _remove(path)
            except BlockingIOError:
                if match[1] == NEW:
                    raise fail(
                        CheckpointError,
                        "S414",
                        f"another run of surgeon is writing {shown}",
                        help="wait for it, stop it, or choose another --out",
                    ) from None
            except OSError:  # a file system without locks: whose it is cannot be known
                pass
            finally:
                os.close(lock)
        locks.pop_all()  # the caller's from here on
        return taken


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


# ── the last step ────────────────────────────────────────────────────────────────────────


def put_in_place(folder: Path, target: Path, replace: bool = True, shown: Path | None = None) -> None:
    """Sync a finished folder to disk and rename it to `target`; what stood there goes.

    Without `replace` only an empty folder may stand there: raises CheckpointError S410 for anything
    else. Should the last rename fail, what stood there stands there again.
    """
    folder.chmod(0o755)
    for path in (*folder.rglob("*"), folder):
        _sync(path)
    if not (replace and os.path.lexists(target)):
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno not in IN_THE_WAY:
                raise
            raise _exists(shown or target, "by now: another run finished first, perhaps") from error
    elif _exchange(folder, target):
        _remove(folder)
    else:
        _replace(folder, target)
    _sync(target.parent)


def _exchange(folder: Path, target: Path) -> bool:
    """Let two paths change places in one step; False where the system or file system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    done: int = call(AT_FDCWD, os.fsencode(folder), AT_FDCWD, os.fsencode(target), RENAME_EXCHANGE)
    return done == 0


def _replace(folder: Path, target: Path) -> None:
    """The same in two steps. Who is killed between them leaves the old folder to be put back."""
    beside, lock = _make(target, OLD)
    old = beside / target.name
    try:
        target.rename(old)
        folder.rename(target)
    finally:
        if os.path.lexists(old) and not os.path.lexists(target):
            old.rename(target)
        _remove(beside)
        os.close(lock)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(folder: Path, target: Path) -> Path:
    """Move an output that failed its proof to ``TARGET.not-preserved``, replacing an older one."""
    aside = target.with_name(_absolute(target).name + ".not-preserved")
    with Deferral():
        put_in_place(folder, aside)
    return aside
