"""Checkpoints are written whole or not at all, as transformers and safetensors read them."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from transformers import LlamaConfig, LlamaForCausalLM

import surgeon
from surgeon.checkpoints.reading import DTYPES, INDEX, SINGLE, open_checkpoint
from surgeon.checkpoints.writing import BLOCKS_UNDER_WAY, Spec, set_aside, staging, write_checkpoint
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
    write_checkpoint(tmp_path, SPECS, lambda name: (TENSORS[name],), counts.append)
    loaded = load_file(tmp_path / SINGLE)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
    assert sum(counts) == sum(spec.bytes for spec in SPECS)
    assert open_checkpoint(tmp_path).entries.keys() == TENSORS.keys()


def test_a_tensor_that_is_not_laid_out_in_order_is_written_in_order(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(3, 4).t()
    write_checkpoint(tmp_path, [Spec("t", (4, 3), torch.float32)], lambda name: (tensor,))
    assert torch.equal(load_file(tmp_path / SINGLE)["t"], tensor)


def test_shards_load_with_transformers(tmp_path: Path) -> None:
    model = llama()
    state = {n: t for n, t in model.state_dict().items()}
    specs = [Spec(n, tuple(t.shape), t.dtype) for n, t in sorted(state.items())]
    write_checkpoint(tmp_path, specs, lambda name: (state[name],), shard_bytes=3000)
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
    out = tmp_path / "deep" / "out"
    with pytest.raises(CheckpointError, match="GB free") as caught, staging(out, False, needed=10**18):
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
    out = tmp_path / "file" / "out"
    with pytest.raises(CheckpointError, match="cannot write") as caught, staging(out, False):
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


def test_a_file_is_what_safetensors_itself_writes_byte_for_byte(tmp_path: Path) -> None:
    tensors = {f"{d}{i}": torch.ones(3 - i).to(d) for i in range(2) for d in DTYPES.values()}
    tensors |= {"é": torch.ones(1), **TENSORS}
    specs = [Spec(n, tuple(t.shape), t.dtype) for n, t in tensors.items()]
    write_checkpoint(tmp_path, specs, lambda name: (tensors[name],))
    assert (tmp_path / SINGLE).read_bytes() == save(tensors, metadata={"format": "pt"})


def test_few_blocks_at_a_time_are_in_memory(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def produce(name: str) -> Iterator[torch.Tensor]:
        for _ in range(10):
            assert sum(ref() is not None for ref in alive) <= BLOCKS_UNDER_WAY
            tensor = torch.full((10, 3), len(alive))
            alive.append(weakref.ref(tensor))
            yield tensor
            del tensor

    write_checkpoint(tmp_path, [Spec(f"t{i}", (100, 3), torch.int64) for i in range(4)], produce)
    assert len(alive) == 40
    written = load_file(tmp_path / SINGLE)
    assert torch.equal(torch.cat([written[f"t{i}"] for i in range(4)])[::10, 0], torch.arange(40))


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught, staging(tmp_path / "new" / "out", False) as folder:
        (folder / SINGLE).symlink_to("/dev/full")
        write_checkpoint(folder, SPECS, lambda name: (TENSORS[name],))
    assert str(caught.value) == "\n".join(
        [
            f"error[S411]: the disk of {tmp_path / 'new'} is full",
            "  help: nothing was left behind",
        ]
    )
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_another_process_leaves_nothing(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from surgeon.checkpoints.writing import staging
with staging(Path(sys.argv[1]), True) as folder:
    (folder / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with subprocess.Popen(
        [sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["out", "out/old"]


def test_what_stood_there_stands_again_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".surgeon-" in self.name:
            raise OSError(errno.EIO, "the disk says no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CheckpointError, match="the disk says no") as caught, staging(out, True):
        pass
    assert caught.value.code == "S412"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "old").read_text() == "old"


def test_force_replaces_a_file_and_a_link_but_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        with staging(tmp_path / name, True) as folder:
            (folder / "new").write_text("new")
        assert [p.name for p in (tmp_path / name).iterdir()] == ["new"]
    assert (tmp_path / "elsewhere" / "kept").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "file", "link"]


def test_an_error_of_reading_elsewhere_is_not_called_one_of_writing(tmp_path: Path) -> None:
    for error in (FileNotFoundError(errno.ENOENT, "no such file", "/elsewhere/x"), OSError("cannot load")):
        with pytest.raises(OSError) as caught, staging(tmp_path / "out", False):
            raise error
        assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_an_output_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with staging(Path("out"), False) as folder:
        (folder / "new").write_text("new")
    with (
        pytest.raises(CheckpointError, match=r"error\[S410\]: out exists already"),
        staging(Path("out"), False),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


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
    with pytest.raises(CheckpointError, match=r"lm_head\.weight") as caught:
        surgeon.apply("hyperclone", folder, tmp_path / "out", device="cpu")
    assert caught.value.code == "S404"
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]
