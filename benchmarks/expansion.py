"""The expansion of one weight, twice as large along both axes, against copying as many bytes.

An expansion cannot be faster than its memory: it reads the source and writes the grown weight. Prints, for
each way to expand, the bytes read and written per second, and their ratio to what ``Tensor.copy_`` moves on
the same device in the same run. On CUDA the weights are on the device from the start: files and transfers
are not in the figures.

Usage: python benchmarks/expansion.py [--device cuda] [--size 4096] [--dtype bfloat16] [--rounds N]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from fractions import Fraction
from statistics import median

import torch

from surgeon.axes.maps import clone_map
from surgeon.language.syntax import Spread
from surgeon.planning.transforms import AxisGrowth, Noise, Transform
from surgeon.rewriting.weights import blocks

WAYS: dict[str, tuple[Spread, Noise | None]] = {
    "symmetric": (Spread("symmetric"), None),
    "diagonal": (Spread("diagonal"), None),
    "uneven": (Spread("uneven", (Fraction(1), Fraction(2))), None),
    "uneven, noise": (Spread("uneven", (Fraction(1), Fraction(2))), Noise(10.0, 7)),
}


def transform(size: int, spread: Spread, noise: Noise | None) -> Transform:
    """Of a linear layer's weight: rows copied, columns shared out."""
    index = clone_map(size, 2 * size)
    axes = AxisGrowth(size, 2 * size, index), AxisGrowth(size, 2 * size, index, spread)
    return Transform("weight", axes, None, noise=noise)


def seconds(job: Callable[[], None], device: torch.device, rounds: int) -> float:
    """The median time of a job, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device, size = torch.device(options.device), options.size
    source = torch.randn(size, size, device=device).to(getattr(torch, options.dtype))
    moved = 5 * source.numel() * source.element_size()  # one read, four written
    whole = torch.empty(5 * source.numel() // 2, dtype=source.dtype, device=device)
    twin = torch.empty_like(whole)
    floor = seconds(lambda: void(twin.copy_(whole)), device, options.rounds)
    print(f"{'copy_':16} {moved / floor / 1e9:8.1f} GB/s")
    for name, (spread, noise) in WAYS.items():
        given = transform(size, spread, noise)

        def job(given: Transform = given) -> None:
            for block in blocks(source, given, None, device):
                void(block)

        time_ = seconds(job, device, options.rounds)
        print(f"{name:16} {moved / time_ / 1e9:8.1f} GB/s, {floor / time_:5.2f} of copy_")


def void(_: object) -> None:
    """A result that is only made."""


if __name__ == "__main__":
    main()
