"""Rows of a sweep, each made in a forked process of its own: what is imported once serves all, and what dies
or hangs takes nothing with it."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import resource
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Row = dict[str, Any]
BYTES = 9 * 2**30


def isolated(key: Row, make: Callable[[], Row], seconds: float) -> Row:
    """`key` and what `make` returns, or ``crash`` and why."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, make))
    process.start()
    theirs.close()
    try:
        made = ours.recv() if ours.poll(seconds) else {"crash": f"no answer in {seconds:.0f} s"}
    except EOFError:
        made = {"crash": "the process died"}
    process.kill()
    process.join()
    return key | made


def _child(pipe: Any, make: Callable[[], Row]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    warnings.simplefilter("ignore")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            row = make()
        except BaseException as error:
            row = {"crash": f"{type(error).__name__}: {error}"[:300], "text": traceback.format_exc()[-1500:]}
    pipe.send(row)
    os._exit(0)


def sweep(
    out: Path, several: Iterable[tuple[Row, Callable[[], Row]]], name: str, jobs: int, seconds: float
) -> Iterator[Row]:
    """Make the rows whose `name` is not in the file yet, and append each as it comes."""
    done = {json.loads(line)[name] for line in out.read_text().splitlines()} if out.exists() else set()
    wanted = [(key, make) for key, make in several if key[name] not in done]
    with ThreadPoolExecutor(jobs) as pool, out.open("a") as stream:
        for row in pool.map(lambda item: isolated(*item, seconds), wanted):
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            yield row
