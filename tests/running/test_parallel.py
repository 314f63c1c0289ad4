"""Blocks worked on side by side, and the linear layer that the proof makes of them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from surgeon.axes.maps import Index
from surgeon.checkpoints.tensors import BLOCK_ELEMENTS
from surgeon.running.parallel import side_by_side
from surgeon.verification.execution import Weight, _linear

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param  # given back
    torch.set_num_threads(before)


def test_results_come_in_order(threads: int) -> None:
    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    assert list(side_by_side(slow, range(20), CPU)) == list(range(20))


def test_little_is_made_ahead(threads: int) -> None:
    begun = []
    results = side_by_side(lambda number: begun.append(number), range(100), CPU)
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 2 * threads + 1
    results.close()


def test_an_error_is_the_callers(threads: int) -> None:
    def fails(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    with pytest.raises(ValueError, match="five"):
        list(side_by_side(fails, range(10), CPU))


def test_no_gradients_are_kept_on_any_thread(threads: int) -> None:
    x = torch.ones(3, requires_grad=True)
    assert not any(y.requires_grad for y in side_by_side(lambda n: x * n, range(8), CPU))


def test_ops_run_on_the_thread_of_their_block() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = set(
        side_by_side(lambda _: (threading.current_thread().name, torch.get_num_threads()), range(9), CPU)
    )
    torch.set_num_threads(before)
    assert all(name.startswith("surgeon") and number == 1 for name, number in seen)


INTERRUPTED = """
import os, signal, threading, torch
from surgeon.running.parallel import side_by_side

start = threading.Thread.start
def interrupted(thread):
    start(thread)
    os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
threading.Thread.start = interrupted
torch.set_num_threads(2)
list(side_by_side(print, range(3), torch.device("cpu")))
"""


def test_a_signal_while_threads_begin_ends_the_process() -> None:
    """A thread that its pool does not know of would be waited for without end."""
    run = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert run.returncode != 0 and run.stderr.endswith("KeyboardInterrupt\n")
    assert run.stdout == ""


def test_a_linear_layer_in_blocks_is_one_and_so_is_its_gradient(threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 3 * BLOCK_ELEMENTS // 512 + 7  # three blocks and a piece
    weight = torch.randn(rows, 512, generator=generator, dtype=torch.float64)
    bias = torch.randn(rows, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 5, 512, generator=generator, dtype=torch.float64, requires_grad=True)
    asked: list[Index | None] = []

    def read(some: Index | None) -> Tensor:
        asked.append(some)
        return weight if some is None else weight[torch.from_numpy(some)]

    made = _linear(x, Weight((rows, 512), lambda: read, lambda row: pytest.fail("not by rows")), bias)
    assert made is not None
    assert len(asked) == 4
    wanted = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(made, wanted, rtol=1e-13, atol=1e-12)
    direction = torch.randn(made.shape, generator=generator, dtype=torch.float64)
    (ours,) = torch.autograd.grad(made, x, direction)
    (theirs,) = torch.autograd.grad(wanted, x, direction)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-10)  # a sum of 1,500 products
