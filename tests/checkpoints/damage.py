"""Ways in which a model folder may be damaged. Each takes the folder of a sound one."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from surgeon.checkpoints.reading import INDEX, SINGLE

Damage = Callable[[Path], object]
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"


def text(name: str, content: str | bytes) -> Damage:
    """Another content for a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def config(**changes: Any) -> Damage:
    """Fields of config.json changed; None removes one."""

    def make(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | changes
        content = {k: v for k, v in content.items() if v is not None or k not in changes}
        (folder / "config.json").write_text(json.dumps(content))

    return make


def config_text(change: Callable[[str], str]) -> Damage:
    return lambda folder: (folder / "config.json").write_text(change((folder / "config.json").read_text()))


def without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def as_folder(name: str) -> Damage:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return make


def as_link(name: str, target: str) -> Damage:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def as_pipe(name: str) -> Damage:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def unreadable(name: str) -> Damage:
    return lambda folder: (folder / name).chmod(0)


# ── weights ──────────────────────────────────────────────────────────────────────────────


def cut(part: float) -> Damage:
    """The weights' file truncated to a part of its size."""

    def make(folder: Path) -> None:
        size = (folder / SINGLE).stat().st_size
        os.truncate(folder / SINGLE, int(part * size))

    return make


def header(change: Callable[[dict[str, Any]], Any], body: Callable[[bytes], bytes] = bytes) -> Damage:
    """The weights' file with another header, and perhaps another body."""

    def make(folder: Path) -> None:
        data = (folder / SINGLE).read_bytes()
        length = int.from_bytes(data[:8], "little")
        about = json.loads(data[8 : 8 + length])
        changed = change(about)
        made = changed if isinstance(changed, bytes) else json.dumps(changed or about).encode()
        (folder / SINGLE).write_bytes(len(made).to_bytes(8, "little") + made + body(data[8 + length :]))

    return make


def length(change: Callable[[int, int], int]) -> Damage:
    """The weights' file with a lying header length, made of the true one and the file's size."""

    def make(folder: Path) -> None:
        data = (folder / SINGLE).read_bytes()
        lie = change(int.from_bytes(data[:8], "little"), len(data))
        (folder / SINGLE).write_bytes(lie.to_bytes(8, "little") + data[8:])

    return make


def entry(**changes: Any) -> Damage:
    """The header's entry of one tensor changed."""
    return header(lambda about: about[NORM].update(changes))


def twice(about: dict[str, Any]) -> bytes:
    one = json.dumps({NORM: about[NORM]})[1:-1]
    return (json.dumps(about)[:-1] + ", " + one + "}").encode()


def overlapping(about: dict[str, Any]) -> None:
    """Two tensors of the same size on the same bytes."""
    first, second = (n for n in about if n.endswith("layernorm.weight"))
    about[first]["data_offsets"] = about[second]["data_offsets"]


def shifted(about: dict[str, Any]) -> None:
    for name in about:
        if name != "__metadata__":
            about[name]["data_offsets"] = [at + 8 for at in about[name]["data_offsets"]]


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """The weights' file with other tensors, soundly written."""

    def make(folder: Path) -> None:
        state = load_file(folder / SINGLE)
        change(state)
        save_file({n: t.clone() for n, t in state.items()}, folder / SINGLE, metadata={"format": "pt"})

    return make


def value(name: str, number: float) -> Damage:
    return tensors(lambda state: state[name].view(-1).__setitem__(-1, number))


# ── shards ───────────────────────────────────────────────────────────────────────────────


def sharded(change: Callable[[Path, dict[str, Any]], object] = lambda folder, index: None) -> Damage:
    """The weights in two shards with an index, which `change` may spoil, or give as text."""

    def make(folder: Path) -> None:
        state = load_file(folder / SINGLE)
        (folder / SINGLE).unlink()
        names = sorted(state)
        index: dict[str, Any] = {"metadata": {"total_size": 0}, "weight_map": {}}
        for shard, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
            save_file({n: state[n] for n in part}, folder / shard, metadata={"format": "pt"})
            index["weight_map"].update(dict.fromkeys(part, shard))
        index["metadata"]["total_size"] = sum(t.nbytes for t in state.values())
        changed = change(folder, index)
        made = changed if isinstance(changed, str) else json.dumps(index)
        (folder / INDEX).write_text(made)

    return make


def indexed(shard: Any) -> Damage:
    """The index says that one tensor is in `shard`."""
    return sharded(lambda folder, index: index["weight_map"].update({EMBEDDING: shard}))


@contextlib.contextmanager
def no_privilege() -> Iterator[None]:
    """Permissions hold for root too, in this thread: Linux's capabilities to override them are laid down."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(ctypes.byref(header), data) == 0
    before = data[0]  # the effective ones below 32
    data[0] = before & ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(header), data) == 0
    try:
        yield
    finally:
        data[0] = before
        assert libc.capset(ctypes.byref(header), data) == 0


def all_of(*damages: Damage) -> Damage:
    def make(folder: Path) -> None:
        for damage in damages:
            damage(folder)

    return make


def snapshot(folder: Path) -> Mapping[str, object]:
    """Everything in a folder: names, kinds, contents."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            status = path.stat()
            path.chmod(0o644)
            found[name] = (status.st_mode, status.st_mtime_ns, path.read_bytes())
            path.chmod(status.st_mode & 0o777)
        else:
            found[name] = path.lstat().st_mode
    return found


def copied(source: Path, target: Path, *damages: Damage) -> Path:
    """A sound model copied and damaged."""
    shutil.copytree(source, target)
    for damage in damages:
        damage(target)
    return target
