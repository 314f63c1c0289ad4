"""Blocks worked on side by side: a thread for each core, and each op of torch on the thread that runs it.

Torch would share out every op of every block, and its threads wait for each other thousands of times a
second: with another program on the same cores that was seen to take ten times as long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

from surgeon.running.stops import Deferral

Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """A pool with all its threads begun: one that a signal interrupts while it begins is never told to end,
    and the process would wait for it."""
    pool, begun = ThreadPoolExecutor(workers, thread_name_prefix="surgeon"), Barrier(workers + 1)
    with Deferral():
        for _ in range(workers):
            pool.submit(begun.wait)
        begun.wait()
    return pool


def side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item], device: torch.device
) -> Iterator[Result]:
    """`function` of each item, in order and without gradients, on as many threads as torch may use; at
    most two results for each thread are waiting to be taken. On another device than the CPU, one after
    another."""
    workers, function = torch.get_num_threads(), torch.no_grad()(function)
    if device.type != "cpu" or workers == 1:
        yield from map(function, items)
        return
    pool, under_way = _pool(workers), deque[Future[Result]]()
    torch.set_num_threads(1)  # a thread of the pool takes this over when it starts
    try:
        for item in items:
            if len(under_way) == 2 * workers:
                yield under_way.popleft().result()
            under_way.append(pool.submit(function, item))
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()
        torch.set_num_threads(workers)
