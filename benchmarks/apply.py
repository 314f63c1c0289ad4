"""`surgeon apply` on a GPT-NeoX of 160M parameters in bfloat16, twice as wide, in one run against:

* plainly writing the same bytes with safetensors (the floor), and
* with ``--against 'COMMAND {source} {out}'``, any other tool doing the same growth.

Prints wall times, peak memory and ratios. Usage: python benchmarks/apply.py [--against COMMAND]
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GIB = 2**30


def make_source(folder: Path) -> None:
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50304, max_position_embeddings=2048, **sizes))
    model.to(torch.bfloat16).save_pretrained(folder)


def run(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak GiB of a whole process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{shlex.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / GIB


def plain_write(grown: Path) -> float:
    from safetensors.torch import load_file, save_file

    tensors = {n: t.clone() for n, t in load_file(grown / "model.safetensors").items()}
    start = time.perf_counter()
    save_file(tensors, grown.parent / "floor.safetensors")
    return time.perf_counter() - start


def stages(source: Path, out: Path) -> dict[str, float]:
    """Seconds of each stage of an apply within this process."""
    import surgeon

    marks: list[tuple[str, float]] = []
    surgeon.apply("hyperclone", source, out, stage=lambda text: marks.append((text, time.perf_counter())))
    marks.append(("end", time.perf_counter()))
    return {marks[i][0]: marks[i + 1][1] - marks[i][1] for i in range(len(marks) - 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--against", help="a command with {source} and {out}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source"
        make_source(source)
        timed = stages(source, folder / "staged")
        floor = plain_write(folder / "staged")
        for text, seconds in timed.items():
            print(f"{text:32} {seconds:7.1f} s")
        write = timed["expanding and writing"]
        print(f"{'plainly writing the same bytes':32} {floor:7.1f} s")
        print(f"expanding and writing / plain writing = {write / floor:.2f}")
        cli = [sys.executable, "-m", "surgeon.cli", "apply", "hyperclone", str(source), "--out"]
        wall, peak = run([*cli, str(folder / "grown")])
        print(f"{'whole process, with proof':32} {wall:7.1f} s  {peak:.2f} GiB")
        if options.against:
            command = options.against.format(source=source, out=folder / "other")
            other, other_peak = run(shlex.split(command))
            print(f"{'the other tool':32} {other:7.1f} s  {other_peak:.2f} GiB")
            print(f"expanding and writing / other = {write / other:.2f}")
            print(f"whole process / other = {wall / other:.2f}, peak {peak / other_peak:.2f}")


if __name__ == "__main__":
    main()
