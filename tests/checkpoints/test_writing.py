"""Checkpoints are written whole or not at all, as transformers and safetensors read them."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import surgeon
from surgeon.checkpoints.carry import carry_files
from surgeon.checkpoints.reading import INDEX, SINGLE, open_checkpoint
from surgeon.checkpoints.writing import Spec, set_aside, staging, write_checkpoint
from surgeon.errors import CheckpointError

TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.tensor(7),
    "d": torch.zeros(0, 3),
    "e": torch.tensor([True, False]),
}
SPECS = [Spec(n, tuple(t.shape), t.dtype) for n, t in TENSORS.items()]


def llama() -> LlamaForCausalLM:
    sizes = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=31, max_position_embeddings=16, **sizes))


def test_one_file(tmp_path: Path) -> None:
    counts: list[int] = []
    write_checkpoint(tmp_path, SPECS, lambda name: TENSORS[name], counts.append)
    loaded = load_file(tmp_path / SINGLE)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
    assert sum(counts) == sum(spec.bytes for spec in SPECS)
    assert open_checkpoint(tmp_path).entries.keys() == TENSORS.keys()


def test_a_tensor_that_is_not_laid_out_in_order_is_written_in_order(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(3, 4).t()
    write_checkpoint(tmp_path, [Spec("t", (4, 3), torch.float32)], lambda name: tensor)
    assert torch.equal(load_file(tmp_path / SINGLE)["t"], tensor)


def test_shards_load_with_transformers(tmp_path: Path) -> None:
    model = llama()
    state = {n: t for n, t in model.state_dict().items()}
    specs = [Spec(n, tuple(t.shape), t.dtype) for n, t in sorted(state.items())]
    write_checkpoint(tmp_path, specs, lambda name: state[name], shard_bytes=3000)
    model.config.save_pretrained(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(spec.bytes for spec in specs)
    assert not (tmp_path / SINGLE).exists()
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    checkpoint = open_checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.read(name), state[name]) for name in state)


def test_staging_leaves_nothing_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staging(tmp_path / "out", False) as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_staging_leaves_the_old_output_after_an_exception(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(ValueError, match="no"), staging(out, True):
        raise ValueError("no")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "old").read_text() == "old"


def test_force_replaces_the_whole_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(CheckpointError, match="exists already") as caught, staging(out, False):
        pass
    assert caught.value.code == "S410"
    with staging(out, True) as folder:
        (folder / "new").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.iterdir()] == ["new"]


def test_too_little_room_is_known_beforehand(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="GB free") as caught:
        with staging(tmp_path / "out", False, needed=10**18):
            pass
    assert caught.value.code == "S411"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "S411"), (errno.EROFS, "S412")])
def test_a_failing_disk_is_told(number: int, code: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught, staging(tmp_path / "out", False):
        raise OSError(number, "the disk says no")
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write") as caught:
        with staging(tmp_path / "file" / "out", False):
            pass
    assert caught.value.code == "S412"


def test_an_output_that_failed_is_set_aside(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with pytest.raises(ValueError, match="failed"), staging(tmp_path / "out", False) as folder:
            (folder / "text").write_text(text)
            set_aside(folder, tmp_path / "out")
            raise ValueError("failed")
    assert [p.name for p in tmp_path.iterdir()] == ["out.not-preserved"]
    assert (tmp_path / "out.not-preserved" / "text").read_text() == "second"


def test_side_files_are_carried_and_weights_and_code_are_not(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    (source / "1_Pooling").mkdir(parents=True)
    folder.mkdir()
    names = [
        "tokenizer.json",
        "1_Pooling/config.json",
        "vocab.txt",
        "pytorch_model.bin",
        "code.py",
        ".hidden",
    ]
    for name in [*names, "model.safetensors", INDEX, "config.json", "README.md"]:
        (source / name).write_bytes(name.encode() + b"\r\n\x00\xff")
    carried = carry_files(source, folder)
    assert sorted(carried) == ["1_Pooling/config.json", "tokenizer.json", "vocab.txt"]
    for name in carried:
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == set(carried)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "source"
    llama().save_pretrained(folder)
    return folder


def test_an_unknown_dtype_and_an_existing_output_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown dtype int8") as caught:
        surgeon.apply("hyperclone", source, tmp_path / "out", device="cpu", dtype="int8")
    assert caught.value.code == "S407"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(CheckpointError) as caught:
        surgeon.apply("hyperclone", source, tmp_path / "full", device="cpu")
    assert caught.value.code == "S410"
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_nan_in_the_source_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(source, folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[3, 4] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="lm_head.weight") as caught:
        surgeon.apply("hyperclone", folder, tmp_path / "out", device="cpu")
    assert caught.value.code == "S404"
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]
