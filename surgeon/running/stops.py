"""Signals that stop a process: turned into an exception that unwinds the work at hand, and held back
where stopping halfway would leave something behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

STOPS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name)
]
AGAIN = 0.02  # seconds until an unwinding that got lost is tried again


class Deferral:
    """Inside it, signals that stop the process wait; what they would have done is done at its end.

    Python runs signal handlers in the main thread only, so in another one there is nothing to hold back.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._waiting: list[int] = []

    def __enter__(self) -> Deferral:
        self._hold()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._release()

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """A stretch inside in which the signals do what they always do."""
        try:
            self._release()
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOPS:
            handler = signal.getsignal(number)
            if handler not in (None, signal.SIG_IGN, self._wait):  # None: set from outside Python
                self._handlers[number] = handler
                signal.signal(number, self._wait)

    def _release(self) -> None:
        if self._handlers:
            number, handler = self._handlers.popitem()
            try:
                signal.signal(number, handler)
            finally:  # a handler that raises must not keep the others held back
                self._release()
            return
        waiting, self._waiting = self._waiting, []
        for number in waiting[:1]:
            os.kill(os.getpid(), number)

    def _wait(self, number: int, frame: FrameType | None) -> None:
        self._waiting.append(number)


class Unwinding:
    """From when it is made on, a signal to stop raises KeyboardInterrupt, as Ctrl-C does; `came` says
    whether one did.

    Raised inside a finaliser an exception is lost, with a complaint on stderr: it is raised again instead.
    """

    def __init__(self) -> None:
        self.came = self._over = False
        for number in STOPS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._unwind)
        self._complain, sys.unraisablehook = sys.unraisablehook, self._lost

    def over(self) -> None:
        """The work is done: from here on there is nothing to unwind, and the process is ending."""
        self._over = True

    def _unwind(self, number: int, frame: FrameType | None) -> None:
        if not self._over:
            self.came = True
            raise KeyboardInterrupt

    def _lost(self, about: Any) -> None:
        if about.exc_type is not KeyboardInterrupt:
            self._complain(about)
        elif not self._over:
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
