"""`surgeon apply` on a GPT-NeoX of 160M parameters in bfloat16, twice as wide, in one run against:

* plainly writing the same bytes with safetensors (the floor), and
* with ``--against 'COMMAND {source} {out}'``, any other tool doing the same growth.

Prints medians of three rounds: wall times, peak memory and ratios.

Usage: python benchmarks/apply.py [--against COMMAND]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

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
    """Wall seconds and peak GiB of a whole process. A child starts with its parent's peak to its name,
    so this process must stay small: whatever loads torch runs in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{shlex.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / GIB


def stages(source: Path, out: Path) -> dict[str, float]:
    """Seconds of each stage of an apply within this process, and of plainly writing its bytes."""
    from safetensors.torch import load_file, save_file

    import surgeon

    marks: list[tuple[str, float]] = []
    surgeon.apply("hyperclone", source, out, stage=lambda text: marks.append((text, time.perf_counter())))
    marks.append(("end", time.perf_counter()))
    timed = {marks[i][0]: marks[i + 1][1] - marks[i][1] for i in range(len(marks) - 1)}
    tensors = {n: t.clone() for n, t in load_file(out / "model.safetensors").items()}
    start = time.perf_counter()
    save_file(tensors, out / "floor.safetensors")
    return timed | {PLAIN: time.perf_counter() - start}


PARTS = {"source": lambda folder, out: make_source(folder), "stages": stages}
WRITE, PLAIN = "expanding and writing", "plainly writing the same bytes"
ROUNDS = 3  # medians are printed


def part(name: str, source: Path, out: Path) -> dict[str, float]:
    """Run one part of this file in a process of its own."""
    command = [sys.executable, __file__, "--part", name, str(source), str(out)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # as the command line has it
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(text.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--against", help="a command with {source} and {out}")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, source, out = options.part
        print(json.dumps(PARTS[name](Path(source), Path(out)) or {}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = folder / "source"
        part("source", source, folder)
        walls: list[tuple[float, float]] = []
        others: list[tuple[float, float]] = []
        timed: dict[str, list[float]] = {}
        for number in range(ROUNDS):
            for text, seconds in part("stages", source, folder / f"staged{number}").items():
                timed.setdefault(text, []).append(seconds)
            shutil.rmtree(folder / f"staged{number}")
            cli = [
                sys.executable,
                "-m",
                "surgeon.cli",
                "apply",
                "hyperclone",
                str(source),
                "--force",
                "--out",
            ]
            walls.append(run([*cli, str(folder / "grown")]))
            if options.against:
                command = options.against.format(source=source, out=folder / "other")
                others.append(run(shlex.split(command)))
    for text, several in timed.items():
        print(f"{text:32} {median(several):7.1f} s  ({min(several):.1f} to {max(several):.1f})")
    print(f"{WRITE} / {PLAIN} = {ratio(timed[WRITE], timed[PLAIN])}")
    show("whole process, with proof", walls)
    if others:
        show("the other tool", others)
        wall, other = [w for w, _ in walls], [w for w, _ in others]
        print(f"{WRITE} / other = {ratio(timed[WRITE], other)}")
        print(f"whole process / other = {ratio(wall, other)}")
        print(f"peak / other = {ratio([m for _, m in walls], [m for _, m in others])}")


def ratio(ours: list[float], theirs: list[float]) -> str:
    """The median of the ratios round by round, with their range."""
    several = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{median(several):.2f}  ({min(several):.2f} to {max(several):.2f})"


def show(text: str, several: list[tuple[float, float]]) -> None:
    walls, peaks = [w for w, _ in several], [m for _, m in several]
    print(
        f"{text:32} {median(walls):7.1f} s  ({min(walls):.1f} to {max(walls):.1f}), {median(peaks):.2f} GiB"
    )


if __name__ == "__main__":
    main()
