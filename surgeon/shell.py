"""The process around a command: the console it writes to, where its JSON goes, and what is said, with which
exit code, of an error that ends it."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from surgeon.errors import EXIT_INTERNAL, EXIT_USER, CheckpointError, NotPreserved, SurgeonError, fail
from surgeon.running.ranks import ToldElsewhere, is_first

if TYPE_CHECKING:
    from rich.console import Console

FILE_WIDTH = 1000  # columns of a file or pipe; no table is wider than what it holds
USAGE_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException, wherever this typer takes it from


def open_console() -> Console:
    """Of a terminal's width, or, in a file or pipe, as wide as a line is long: there names stay whole."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich's own leaves with the code that says `not preserved`

    console = Output(highlight=False, quiet=not is_first())
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    return console


def quiet_libraries() -> None:
    """Keep other libraries' bars and warnings out of the report."""
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextmanager
def stages(console: Console) -> Iterator[Any]:
    """A spinner that names the stage at hand, silent when not on a terminal; other libraries are quiet."""
    if not console.is_terminal:
        quiet_libraries()
        yield lambda text: None
        return
    with console.status("reading") as status:
        quiet_libraries()
        yield lambda text: status.update(text)


@contextmanager
def json_to(file: Path | None) -> Iterator[None]:
    """Refuse a place for the JSON that cannot be written before the work is done, and put errors there.
    Raises CheckpointError S412."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        why = "it is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise fail(CheckpointError, "S412", f"cannot write {file}: {why}", help="name a file for --json")
    try:
        yield
    except SurgeonError as error:
        with suppress(SurgeonError):  # the first error is the one to tell
            write_json(file, {"exit": error.exit_code, "errors": [asdict(d) for d in error.diagnostics]})
        raise


def write_json(file: Path | None, content: dict[str, Any]) -> None:
    if file is None or not is_first():
        return
    stood = file.exists()
    try:
        file.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        if not stood:
            with suppress(OSError):
                file.unlink()
        raise unwritable(file, error) from error


def unwritable(file: Path, error: OSError) -> CheckpointError:
    return fail(CheckpointError, "S412", f"cannot write {file}: {error.strerror}")


class Stopped(Exception):
    """A signal to stop came, and not everything is as it was before."""


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def telling_of(out: Path, resume: bool) -> Iterator[None]:
    """Raises Stopped for KeyboardInterrupt when `out` was put in place before it, or something is left to
    go on from."""
    before = _identity(out)
    try:
        yield
    except KeyboardInterrupt as stop:
        if _identity(out) in (None, before):
            if resume:
                raise Stopped("shards that were finished are left for --resume") from stop
            raise
        raise Stopped(f"{out} was finished before that") from stop


def tell(error: BaseException, stopped: bool) -> int:
    """Say what went wrong, and return the exit code for it."""
    if isinstance(error, ToldElsewhere):
        return error.exit_code
    if isinstance(error, Stopped):
        typer.echo(f"stopped; {error}", err=True)
        return EXIT_INTERNAL
    lost = stopped and not isinstance(error, NotPreserved)  # a library made another error of it
    if lost or isinstance(error, (typer.Abort, KeyboardInterrupt)):
        typer.echo("stopped; nothing was left behind", err=True)
        return EXIT_INTERNAL
    if isinstance(error, SurgeonError):
        # A file's name need not be text.
        typer.echo(str(error).encode("utf-8", "backslashreplace").decode(), err=True)
        return error.exit_code
    if isinstance(error, USAGE_ERROR):
        error.show()
        return EXIT_USER
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full or isinstance(error, BrokenPipeError):
        with suppress(OSError):  # what is buffered has no room, or no reader
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if full:
        typer.echo(f"error[S412]: cannot write to the standard output: {os.strerror(errno.ENOSPC)}", err=True)
        return EXIT_USER
    if not isinstance(error, BrokenPipeError):
        if os.environ.get("SURGEON_TRACEBACK"):
            raise error
        typer.echo(
            f"error[S900]: surgeon failed: {type(error).__name__}: {error}\n"
            "  help: this is a bug; SURGEON_TRACEBACK=1 shows where",
            err=True,
        )
    return EXIT_INTERNAL
