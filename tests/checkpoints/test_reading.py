"""Checkpoints that are broken, lying or unsafe are refused, each with its code and its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from surgeon.checkpoints.reading import INDEX, SINGLE, open_checkpoint, resolve_names
from surgeon.errors import CheckpointError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def write_raw(file: Path, header: bytes, body: bytes = b"", length: int | None = None) -> None:
    file.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + body)


def about(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def headed(header: object, body: bytes = b"\0" * 8) -> Callable[[Path], None]:
    return lambda folder: write_raw(folder / SINGLE, json.dumps(header).encode(), body)


def sharded(weight_map: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_file(TENSORS, folder / "one.safetensors")
        save_file(TENSORS, folder.parent / "outside.safetensors")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return make


def truncated(folder: Path) -> None:
    save_file(TENSORS, folder / SINGLE)
    whole = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(whole[:-3])


def doubled(folder: Path) -> None:
    one = json.dumps(about())
    write_raw(folder / SINGLE, f'{{"a": {one}, "a": {one}}}'.encode(), b"\0" * 8)


def pointed(folder: Path) -> None:
    sharded({"a": "one.safetensors"})(folder)
    (folder / "one.safetensors").write_bytes(POINTER)


BROKEN: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "empty": (lambda f: None, "S401", "holds no model.safetensors"),
    "pickle": (lambda f: (f / "pytorch_model.bin").write_bytes(b"\x80\x02"), "S401", "only as pickles"),
    "index no json": (lambda f: (f / INDEX).write_text("{"), "S402", "not a readable index"),
    "index a list": (lambda f: (f / INDEX).write_text("[]"), "S402", "not a readable index"),
    "index without map": (lambda f: (f / INDEX).write_text("{}"), "S402", "not a readable index"),
    "outside": (sharded({"a": "../outside.safetensors"}), "S402", "points outside the folder"),
    "absolute": (sharded({"a": "/etc/passwd"}), "S402", "points outside the folder"),
    "number": (sharded({"a": 3}), "S402", "points outside the folder"),
    "missing shard": (sharded({"a": "two.safetensors"}), "S402", "the shard two.safetensors is missing"),
    "not in shard": (sharded({"c": "one.safetensors"}), "S402", "holds c, but it does not"),
    "truncated": (truncated, "S403", "does not fit the file"),
    "empty file": (lambda f: (f / SINGLE).write_bytes(b""), "S403", "shorter than its header says"),
    "seven bytes": (lambda f: (f / SINGLE).write_bytes(b"\0" * 7), "S403", "shorter than its header says"),
    "huge header": (lambda f: write_raw(f / SINGLE, b"{}", length=2**63), "S403", "shorter than its header"),
    "no json": (lambda f: write_raw(f / SINGLE, b"\xff\xfe{}"), "S403", "not a sound safetensors file"),
    "gap": (headed({"a": about(data_offsets=[4, 12])}, b"\0" * 12), "S403", "a does not fit the file"),
    "lying shape": (headed({"a": about(shape=[3])}), "S403", "a does not fit the file"),
    "lying end": (headed({"a": about(shape=[4], data_offsets=[0, 16])}), "S403", "a does not fit the file"),
    "backwards": (headed({"a": about(shape=[-2], data_offsets=[0, -8])}), "S403", "not a sound"),
    "unknown dtype": (
        headed({"a": about(dtype="F8_E4M3", shape=[8])}),
        "S407",
        "use the model they were made of",
    ),
    "trailing bytes": (headed({"a": about()}, b"\0" * 9), "S403", "longer or shorter than its tensors"),
    "twice": (doubled, "S403", "stands twice"),
    "header a list": (headed([1, 2]), "S403", "the header is no JSON object"),
    "deep header": (lambda f: write_raw(f / SINGLE, b"[" * 100_000), "S403", "not a sound"),
    "negative extents": (headed({"a": about(shape=[-2, -1])}), "S403", "no whole number"),
    "fractional extent": (headed({"a": about(shape=[2.0])}), "S403", "no whole number"),
    "true for one": (headed({"a": about(shape=[True, 2])}), "S403", "no whole number"),
    "lfs weights": (
        lambda f: (f / SINGLE).write_bytes(POINTER),
        "S403",
        "model.safetensors is a git-lfs pointer",
    ),
    "lfs index": (lambda f: (f / INDEX).write_bytes(POINTER), "S403", "is a git-lfs pointer"),
    "lfs shard": (pointed, "S403", "one.safetensors is a git-lfs pointer"),
    "deep index": (lambda f: (f / INDEX).write_text("[" * 100_000), "S402", "not a readable index"),
    "index twice": (
        lambda f: (f / INDEX).write_text('{"weight_map": {"a": "one", "a": "two"}}'),
        "S402",
        "a stands twice",
    ),
    "zero byte": (sharded({"a": "one\0.safetensors"}), "S402", "points outside the folder"),
    "entry a number": (headed({"a": 3}), "S403", "not a sound"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused(case: str, tmp_path: Path) -> None:
    make, code, text = BROKEN[case]
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert caught.value.code == code
    assert text in str(caught.value)


def test_tensors_are_read_as_they_are(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE, metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.entries.keys() == TENSORS.keys()
    assert checkpoint.total_bytes == 32
    for name, tensor in TENSORS.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.entries[name].dtype == tensor.dtype


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_value_that_is_no_number_is_refused(bad: float, dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.ones(3, 5, dtype=dtype)
    tensor[1, 2] = bad
    save_file({"w": tensor}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match=r"w in model\.safetensors holds NaN or infinity") as caught:
        open_checkpoint(tmp_path).read("w")
    assert caught.value.code == "S404"


def test_large_values_whose_sum_overflows_are_fine(tmp_path: Path) -> None:
    tensors = {"w": torch.full((8,), 3e38), "h": torch.full((8,), 65504.0, dtype=torch.float16)}
    save_file(tensors, tmp_path / SINGLE)
    for name, tensor in tensors.items():
        assert torch.equal(open_checkpoint(tmp_path).read(name), tensor)


def test_names_are_found_as_the_disk_has_them_and_under_any_tied_name(tmp_path: Path) -> None:
    save_file({"body.w": torch.ones(2), "v": torch.ones(3), "tied": torch.ones(4)}, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    aliases = {"head": "head", "tied": "head"}
    on_disk = {"w": "body.w", "body.v": "v", "tied": "tied"}
    found = resolve_names({"w": (2,), "body.v": (3,), "head": (4,)}, aliases, checkpoint, on_disk)
    assert found == {"w": "body.w", "body.v": "v", "head": "tied"}


def test_a_missing_tensor_and_another_shape_are_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    on_disk = {"a": "a", "b": "b"}
    with pytest.raises(CheckpointError, match=r"1 tensor is missing from the checkpoint in .*: c") as caught:
        resolve_names({"a": (2, 3), "c": (1,)}, {}, checkpoint, on_disk)
    assert caught.value.code == "S405"
    wrong = r"a in model.safetensors has the shape \(2, 3\) where the config asks for \(3, 2\)"
    with pytest.raises(CheckpointError, match=wrong) as caught:
        resolve_names({"a": (3, 2)}, {}, checkpoint, on_disk)
    assert caught.value.code == "S406"


def test_where_there_are_both_the_one_file_counts_as_in_transformers(tmp_path: Path) -> None:
    sharded({"a": "one.safetensors"})(tmp_path)
    save_file({"only": torch.ones(2)}, tmp_path / SINGLE)
    assert list(open_checkpoint(tmp_path).entries) == ["only"]


def test_a_file_that_vanishes_after_opening_is_an_error_of_ours(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    (tmp_path / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read") as caught:
        checkpoint.read("a")
    assert caught.value.code == "S403"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_the_header_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    content = bytearray((tmp_path / SINGLE).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / SINGLE).write_bytes(bytes(content))
    try:
        entries = open_checkpoint(tmp_path).entries
    except CheckpointError as error:
        assert error.code == "S403"
        return
    assert sum(e.bytes for e in entries.values()) == 32
