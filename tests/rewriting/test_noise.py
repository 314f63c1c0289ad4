"""Noise: drawn and levelled so that no machine, thread or device changes a bit of it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from surgeon.axes.maps import clone_map
from surgeon.language.syntax import Spread
from surgeon.planning.transforms import AxisGrowth, Noise, Transform
from surgeon.rewriting.noise import _power
from surgeon.rewriting.weights import expand

HALVES = Spread("symmetric")


def grown(size: int, copies: int, uneven: int, device: str = "cpu") -> torch.Tensor:
    """What 40 rows of `size` columns grow into, some of the columns once more than the others."""
    columns = AxisGrowth(size, copies * size + uneven, clone_map(size, copies * size + uneven), HALVES)
    source = torch.from_numpy(np.random.default_rng(0).standard_normal((40, size), dtype=np.float32))
    transform = Transform("w", (AxisGrowth(40, 40, None), columns), None, 0.0, Noise(10.0, 3))
    return expand(source, transform, device=torch.device(device))


OTHERWISE = """
import hashlib, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from rewriting.test_noise import grown
made = [grown(5000, 3, 700), grown(64, 2, 0), grown(300, 1, 299)]
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in made)).hexdigest())
"""


def test_the_same_bits_whatever_the_threads_and_the_instructions_at_hand() -> None:
    """torch's own normal numbers and means differ in their last bits."""
    seen = set()
    for threads, capability in (("1", "default"), ("1", ""), ("3", "")):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, "tests"])}
        env.pop("ATEN_CPU_CAPABILITY", None)
        if capability:
            env["ATEN_CPU_CAPABILITY"] = capability
        command = [sys.executable, "-c", OTHERWISE, threads]
        seen.add(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert len(seen) == 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("size", "copies", "uneven"), [(5000, 3, 700), (64, 2, 0), (300, 1, 299)])
def test_the_same_bits_on_cuda(size: int, copies: int, uneven: int) -> None:
    assert torch.equal(grown(size, copies, uneven, "cuda").cpu(), grown(size, copies, uneven))


def test_noise_is_bell_shaped_and_of_the_asked_power() -> None:
    columns = AxisGrowth(4000, 8000, clone_map(4000, 8000), HALVES)
    transform = Transform("w", (AxisGrowth(40, 40, None), columns), None, 0.0, Noise(20.0, 3))
    source = torch.ones(40, 4000)
    noise = (expand(source, transform, torch.float64) - 0.5) * 20  # a tenth of shares of one half
    values = noise.flatten().numpy()
    assert abs(values.mean()) < 1e-9
    assert abs(values.std() - 1) < 1e-3
    assert abs((values**3).mean()) < 0.01
    assert 2.7 < (values**4).mean() < 3.0  # of a normal number: 3; of one drawn from 4 uniform ones: 2.7
    rows = noise.double()
    apart = torch.corrcoef(rows) - torch.eye(40, dtype=torch.float64)
    assert float(apart.abs().max()) < 0.1


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_power_is_the_mean_square(size: float, dtype: torch.dtype) -> None:
    values = torch.randn(7, 300, generator=torch.Generator().manual_seed(0)).to(dtype) * size
    values[2] = 0
    wanted = values.double().square().mean(1, keepdim=True)
    torch.testing.assert_close(_power(values, [1]), wanted, rtol=1e-3, atol=0.0)
