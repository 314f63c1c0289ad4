"""Kill ``surgeon apply`` at random moments, and tell as JSON what it left: ``killing.py FOLDER COUNT SEED``.

torch and transformers are imported once; each run is a process forked from this one, which never
computes anything itself. A run is killed at any time, while it writes and proves, or at its very end.
Every fourth one is a run with ``--resume`` that went on from a killed one, and is gone on from in turn.
Every fifth of the others is a run of two ranks, of which one is killed, and the other told to end after it
as torchrun does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from surgeon import cli, shell
from surgeon.checkpoints.journal import DONE
from surgeon.checkpoints.staging import staging

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOMENTS = ("any", "writing", "end")
SHARD = "8KB"  # of the runs that resume and of those that share the work: five files
AFTER = 0.1  # seconds from a killed rank until the other is told
FORKED = 0.005  # seconds until the forked process is in ``main``


@dataclass
class Trial:
    """One killed run and what was found after it."""

    signal: str
    moment: str
    force: bool
    delay: float
    code: int = 0  # the exit code; negative: died of that signal
    error: str = ""  # stderr
    target: str = "absent"  # absent, old, finished, or what else is there
    left: int = 0  # hidden folders beside the target
    accepted_half: bool = False  # stock from_pretrained took a leftover without all its weights
    source_same: bool = True
    cleared: bool = True  # the next run left nothing of this one's
    rank: int = -1  # the one of two that was killed; -1: there was one process
    resumed: bool = False  # it went on from the shards of a killed run
    taken_up: int = 0  # shards that were finished when it began
    ended: str = ""  # resumed: what the next run with --resume made of it


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files by name."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def loads(folder: Path) -> dict[str, torch.Tensor] | None:
    """The state that stock from_pretrained makes of a folder; None when it refuses. Without a config it
    builds a model of its default size, 27 GB, before it refuses."""
    if not (folder / "config.json").exists():
        return None
    try:
        return dict(LlamaForCausalLM.from_pretrained(folder).state_dict())
    except Exception:
        return None


class Campaign:
    """A source model, an undisturbed growth of it, and runs that are killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, folder / "source"
        torch.manual_seed(0)
        sizes = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=1)
        LlamaForCausalLM(LlamaConfig(vocab_size=31, max_position_embeddings=16, **sizes)).save_pretrained(
            self.source
        )
        (self.source / "tokenizer.json").write_text("{}" * 50_000)
        self.before = contents(self.source)
        spans = [self.undisturbed(folder / f"whole{i}" / "out") for i in range(2)]
        self.whole = contents(folder / "whole0" / "out")
        assert contents(folder / "whole1" / "out") == self.whole, "two runs are not bit-equal"
        state = loads(folder / "whole0" / "out")
        assert state is not None
        self.state = state
        self.begins, self.ends = spans[-1]
        self.undisturbed(folder / "shards" / "out", True)
        self.sharded = contents(folder / "shards" / "out")

    def start(
        self, out: Path, force: bool, resume: bool = False, job: Mapping[str, str] | None = None
    ) -> int:
        """A forked process that runs ``surgeon apply``; with a `job` as one of its ranks."""
        out.parent.mkdir(exist_ok=True)
        ready, done = os.pipe()
        process = os.fork()
        if process:
            os.close(done)
            os.read(ready, 1)
            os.close(ready)
            return process
        code = 99
        try:
            number = (job or {}).get("RANK", "")
            for descriptor, name in ((1, f"stdout{number}"), (2, f"stderr{number}")):
                os.dup2(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            sys.argv = ["surgeon", "apply", "grow", str(self.source), "--out", str(out), "--device", "cpu"]
            sys.argv += ["--force"] * force + ["--resume"] * resume
            sys.argv += ["--shard-size", SHARD] * (resume or job is not None)
            os.environ.update(job or {})
            os.write(done, b"!")
            cli.main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def undisturbed(self, out: Path, resume: bool = False) -> tuple[float, float]:
        """When a run begins to write, and when it ends, in seconds."""
        start = time.perf_counter()
        process = self.start(out, False, resume)
        until(lambda: hidden(out) or ended(process))
        begins = time.perf_counter() - start
        code = wait(process)
        assert code == 0, (self.folder / "stderr").read_text()
        return begins, time.perf_counter() - start

    def trial(self, number: int, rng: random.Random) -> Trial:
        which, moment = SIGNALS[number % 3], MOMENTS[number // 3 % 3]
        force = rng.random() < 0.5
        out = self.folder / "trial" / "out"
        if force:
            out.mkdir(parents=True)
            (out / "old").write_text("old")
        resumed = number % 4 == 3
        if resumed:
            self.interrupt(out, force)
        taken_up = finished_shards(out)
        victim, several = -1, [0]
        if not resumed and number % 5 == 4:
            several, victim = self.start_ranks(out, force), rng.randrange(2)
            process = several[victim]
        else:
            process = self.start(out, force, resumed)
        if moment == "any":
            delay = rng.uniform(FORKED, 1.1 * self.ends)
        elif moment == "writing":
            until(lambda: hidden(out) or ended(process))
            delay = rng.uniform(0, self.ends - self.begins) + self.begins * resumed  # the folder is there
        else:
            until(lambda: any((p / "surgery.json").exists() for p in hidden(out)) or ended(process))
            delay = rng.uniform(0, 0.01)
        time.sleep(delay)
        os.kill(process, which)  # a process that has ended is there until it is waited for
        if victim >= 0:
            time.sleep(AFTER)
            os.kill(several[1 - victim], signal.SIGTERM)
            wait(several[1 - victim])
        trial = Trial(which.name, moment, force, delay, wait(process), rank=victim)
        trial.resumed, trial.taken_up = resumed, taken_up
        trial.error = (self.folder / ("stderr" if victim < 0 else f"stderr{victim}")).read_text()
        self.examine(trial, out)
        shutil.rmtree(out.parent)
        return trial

    def start_ranks(self, out: Path, force: bool) -> list[int]:
        """Two forked processes that share one surgery."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
        job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            self.start(out, force, job=job | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(2)
        ]

    def interrupt(self, out: Path, force: bool) -> None:
        """Kill a run with ``--resume`` once a shard of it is finished."""
        process = self.start(out, force, True)
        until(lambda: finished_shards(out) or ended(process))
        os.kill(process, signal.SIGKILL)
        wait(process)

    def examine(self, trial: Trial, out: Path) -> None:
        if out.exists():
            in_shards = trial.resumed or trial.rank >= 0
            found, whole = contents(out), self.sharded if in_shards else self.whole
            trial.target = "finished" if found == whole else "old" if list(found) == ["old"] else str(found)
        left = hidden(out)
        trial.left = len(left)
        for folder in left:
            state = loads(folder)
            trial.accepted_half |= state is not None and not (
                state.keys() == self.state.keys()
                and all(torch.equal(state[name], self.state[name]) for name in state)
            )
        trial.source_same = contents(self.source) == self.before
        if trial.resumed:
            code = wait(self.start(out, True, True))
            trial.ended = "finished" if code == 0 and contents(out) == self.sharded else f"exit code {code}"
        before = contents(out)
        with contextlib.suppress(InterruptedError), staging(out, True):
            raise InterruptedError
        trial.cleared = contents(out) == before and set(out.parent.iterdir()) <= {out}


def hidden(out: Path) -> list[Path]:
    return list(out.parent.glob(".*"))


def finished_shards(out: Path) -> int:
    """Shards of killed runs that were noted to be finished."""
    return sum(len(list(folder.glob(f".*{DONE}"))) for folder in hidden(out))


def ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def until(seen: Callable[[], Any]) -> None:
    while not seen():
        time.sleep(0.0005)


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(folder: str, count: str, seed: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    shell.quiet_libraries()
    rng = random.Random(int(seed))
    campaign = Campaign(Path(folder))
    for number in range(int(count)):
        print(json.dumps(asdict(campaign.trial(number, rng))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
