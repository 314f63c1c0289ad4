"""Checkpoints are written whole or not at all, as transformers and safetensors read them."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from transformers import LlamaConfig, LlamaForCausalLM

import surgeon
from surgeon.checkpoints.reading import DTYPES, INDEX, SINGLE, open_checkpoint
from surgeon.checkpoints.writing import BLOCKS_UNDER_WAY, Spec, write_checkpoint
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
            # One more may be written and not yet let go of by the thread that wrote it.
            assert sum(ref() is not None for ref in alive) <= BLOCKS_UNDER_WAY + 1
            tensor = torch.full((10, 3), len(alive))
            alive.append(weakref.ref(tensor))
            yield tensor
            del tensor

    write_checkpoint(tmp_path, [Spec(f"t{i}", (100, 3), torch.int64) for i in range(4)], produce)
    assert len(alive) == 40
    written = load_file(tmp_path / SINGLE)
    assert torch.equal(torch.cat([written[f"t{i}"] for i in range(4)])[::10, 0], torch.arange(40))


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
