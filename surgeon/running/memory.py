"""Freed memory returned to the system, where the C library would keep it for itself."""

from __future__ import annotations

import contextlib
import ctypes


def give_back() -> None:
    """Do so with glibc; elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
