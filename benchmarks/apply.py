"""`surgeon apply`, twice as wide in bfloat16, in one run against:

* plainly writing the same bytes with safetensors (the floor), and
* with ``--against 'COMMAND {source} {out}'``, any other tool doing the same growth.

Prints medians of the rounds: wall times, peak memory and ratios. With ``--memory``, the peak memory of
one apply for each of the Llama-shaped sources instead, beside their largest tensors.

Usage: python benchmarks/apply.py [--source NAME] [--rounds N] [--against COMMAND] [--memory]
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


SOURCES: dict[str, dict[str, int]] = {  # by name: sizes of a GPT-NeoX, or of a Llama
    "neox-160m": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, vocab_size=50304),
    "llama-0.1b": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12),
    "llama-0.4b": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16),
    "llama-1.1b": dict(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
    ),
    "llama-0.3b-150k": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, vocab_size=151936),
}


def make_source(name: str, folder: str) -> None:
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    sizes = {"intermediate_size": 4 * SOURCES[name]["hidden_size"], "vocab_size": 32000} | SOURCES[name]
    neox = name.startswith("neox")
    config = (GPTNeoXConfig if neox else LlamaConfig)(max_position_embeddings=2048, **sizes)
    model = (GPTNeoXForCausalLM if neox else LlamaForCausalLM)(config)
    model.save_pretrained(folder)


def run(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak GiB of a whole process. A child starts with its parent's peak to its name,
    so this process must stay small: whatever loads torch runs in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{shlex.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / GIB


def stages(source: str, target: str) -> dict[str, float]:
    """Seconds of each stage of an apply within this process, and of plainly writing its bytes."""
    from safetensors.torch import load_file, save_file

    import surgeon

    out = Path(target)
    marks: list[tuple[str, float]] = []
    surgeon.apply("hyperclone", source, out, stage=lambda text: marks.append((text, time.perf_counter())))
    marks.append(("end", time.perf_counter()))
    timed = {marks[i][0]: marks[i + 1][1] - marks[i][1] for i in range(len(marks) - 1)}
    plain = 0.0
    for file in sorted(out.glob("*.safetensors")):
        tensors = {n: t.clone() for n, t in load_file(file).items()}
        start = time.perf_counter()
        save_file(tensors, out / "floor.safetensors")
        plain += time.perf_counter() - start
    return timed | {PLAIN: plain}


def largest(source: Path) -> float:
    """GiB of the largest tensor of a folder."""
    from surgeon.checkpoints.reading import open_checkpoint

    return max(entry.bytes for entry in open_checkpoint(source).entries.values()) / GIB


PARTS = {"source": make_source, "stages": stages}
WRITE, PLAIN = "expanding and writing", "plainly writing the same bytes"
CLI = [sys.executable, "-m", "surgeon", "apply", "hyperclone"]


def part(name: str, source: str | Path, out: Path) -> dict[str, float]:
    """Run one part of this file in a process of its own."""
    command = [sys.executable, __file__, "--part", name, str(source), str(out)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # as the command line has it
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(text.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", choices=SOURCES, default="neox-160m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", help="a command with {source} and {out}")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.part:
            name, source, out = options.part
            print(json.dumps(PARTS[name](source, out) or {}))
        elif options.memory:
            memory(Path(temporary))
        else:
            rounds(options.source, options.rounds, options.against, Path(temporary))


def memory(folder: Path) -> None:
    """Print the peak of one apply for each source."""
    for name in [name for name in SOURCES if name.startswith("llama")]:
        source, out = folder / name, folder / "grown"
        part("source", name, source)
        seconds, peak = run([*CLI, str(source), "--force", "--out", str(out)])
        print(f"{name:16} {seconds:6.1f} s, peak {peak:.2f} GiB, largest tensor {largest(source):.2f} GiB")
        shutil.rmtree(source)


def rounds(name: str, number: int, against: str | None, folder: Path) -> None:
    """Print medians over `number` rounds of the growth of one source."""
    source = folder / "source"
    part("source", name, source)
    walls: list[tuple[float, float]] = []
    others: list[tuple[float, float]] = []
    timed: dict[str, list[float]] = {}
    for _ in range(number):
        for text, seconds in part("stages", source, folder / "staged").items():
            timed.setdefault(text, []).append(seconds)
        shutil.rmtree(folder / "staged")
        walls.append(run([*CLI, str(source), "--out", str(folder / "grown")]))
        shutil.rmtree(folder / "grown")
        if against:
            others.append(run(shlex.split(against.format(source=source, out=folder / "other"))))
            shutil.rmtree(folder / "other", ignore_errors=True)
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
