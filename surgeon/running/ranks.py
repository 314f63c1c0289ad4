"""The processes that share one surgery, as ``torchrun`` starts them: ranks 0 to N-1 of one job.

Ranks exchange no tensors, only what became of each step, through the job's key-value store. A wait on the
store is a loop in Python, so a signal to stop is heeded at once; a collective of a process group would
hold it back, with a dead rank for ever.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from surgeon.errors import CheckpointError, Diagnostic, SurgeonError, fail

T = TypeVar("T")
POLL = 0.02  # seconds between two looks at the store
ATTEMPT = 2.0  # seconds of a try to reach the first rank
FAREWELL = 10.0  # seconds that the first rank, which may hold the store, waits for the others to leave


class ToldElsewhere(Exception):
    """The first rank tells of this error; here there is nothing to add."""

    def __init__(self, exit_code: int):
        super().__init__()
        self.exit_code = exit_code


@dataclass(frozen=True)
class _Failure:
    """What another rank can make an error of again."""

    kind: type[SurgeonError]
    diagnostics: tuple[Diagnostic, ...]


@dataclass
class Ranks:
    """This process's place among those of its job. A process alone is rank 0 of 1."""

    rank: int = 0
    size: int = 1
    store: Any = field(default=None, repr=False)
    _steps: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def agree(self, work: Callable[[], T]) -> T:
        """Do `work` on every rank, and return what it gave here. What fails on one fails on all: the first
        rank raises the error, the others ToldElsewhere."""
        held: list[T] = []
        self._outcomes(lambda: held.append(work()))
        return held[0]

    def from_first(self, work: Callable[[], T]) -> T:
        """Do `work` on the first rank, and return what it gave on all. What fails there fails everywhere."""
        outcome: T = self._outcomes(lambda: work() if self.first else None)[0]
        return outcome

    def _outcomes(self, work: Callable[[], Any]) -> list[Any]:
        """What `work` gave, by rank."""
        if self.size == 1:
            return [work()]
        self._steps += 1
        try:
            outcome: Any = (work(),)
        except SurgeonError as error:
            outcome = _Failure(type(error), error.diagnostics)
        except BaseException as error:
            said = f"rank {self.rank} failed: {type(error).__name__}: {error}"
            self._post(_Failure(CheckpointError, (Diagnostic("S417", said),)))
            raise
        self._post(outcome)
        outcomes = [pickle.loads(self._await(self._key(rank))) for rank in range(self.size)]
        failure = next((o for o in outcomes if isinstance(o, _Failure)), None)
        if failure is None:
            return [given for (given,) in outcomes]
        if self.first:
            raise failure.kind(*failure.diagnostics)
        raise ToldElsewhere(failure.kind.exit_code)

    def _key(self, rank: int) -> str:
        return f"surgeon/{self._steps}/{rank}"

    def _post(self, outcome: Any) -> None:
        self.store.set(self._key(self.rank), pickle.dumps(outcome))

    def _await(self, key: str) -> bytes:
        while not self.store.check([key]):
            time.sleep(POLL)
        return bytes(self.store.get(key))

    def leave(self) -> None:
        self.store.set(f"surgeon/left/{self.rank}", b"")
        end = time.monotonic() + FAREWELL
        keys = [f"surgeon/left/{rank}" for rank in range(self.size)]
        while self.first and not self.store.check(keys) and time.monotonic() < end:
            time.sleep(POLL)


def local_rank() -> int:
    """This process's number among those of its job on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_alone() -> bool:
    """Whether this process was not started as one of several."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def is_first() -> bool:
    """Whether this process speaks for its job."""
    return is_alone() or os.environ.get("RANK", "0") == "0"


def _met() -> Ranks:
    """The store that the ranks share: torchrun's, or one that the first of them holds.

    Torch waits for others in code that heeds no signal. So the first rank does not wait, and those that
    cannot reach it try for a moment at a time. Raises CheckpointError S417 where the first rank is not named.
    """
    from torch.distributed import DistNetworkError, TCPStore, rendezvous
    from torch.distributed.constants import default_pg_timeout

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store, rank, size = next(iter(rendezvous("env://")))
        return Ranks(rank, size, store)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ["WORLD_SIZE"])
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdigit():
        raise fail(
            CheckpointError,
            "S417",
            f"rank {rank} of {size} does not know where the first one is",
            help="start the ranks with torchrun, or set MASTER_ADDR and MASTER_PORT",
        )
    end = time.monotonic() + default_pg_timeout.total_seconds()
    timeout = default_pg_timeout if rank == 0 else timedelta(seconds=ATTEMPT)
    while True:
        try:
            shared = TCPStore(host, int(port), size, rank == 0, timeout=timeout, wait_for_workers=False)
            return Ranks(rank, size, shared)
        except DistNetworkError:
            if rank == 0 or time.monotonic() > end:
                raise


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this process's job."""
    if is_alone():
        yield Ranks()
        return
    ranks = _met()
    try:
        yield ranks
    finally:
        ranks.leave()
