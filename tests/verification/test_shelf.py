"""A shelved model computes what stock transformers loaded, and holds none of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import tiny
from transformers import AutoConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import surgeon
from surgeon.checkpoints.moves import MovedTensor
from surgeon.checkpoints.reading import open_checkpoint
from surgeon.checkpoints.tensors import StoredTensor
from surgeon.models.native import build_meta
from surgeon.models.stored import open_stored
from surgeon.verification import native, shelf
from surgeon.verification.shelf import Picked, shelve, shelve_unloaded

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 11, 4, 7, 6], [9, 12, 6, 5, 8]])


@pytest.mark.parametrize("tied", [True, False])
def test_the_same_output_from_disk(tied: bool, tmp_path: Path) -> None:
    folder = tiny.save(tiny.llama(2, tie_word_embeddings=tied), tmp_path / "model", torch.bfloat16)
    stock = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    shelved = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    shelve(shelved, open_checkpoint(folder), None, CPU)
    with torch.no_grad():
        assert torch.equal(shelved(IDS).logits, stock(IDS).logits)
    held = sum(p.untyped_storage().nbytes() for p in shelved.parameters())
    assert held == 2 * len(list(shelved.parameters()))
    assert {n: p.shape for n, p in shelved.named_parameters()} == {
        n: p.shape for n, p in stock.named_parameters()
    }


def test_a_wider_dtype(tmp_path: Path) -> None:
    folder = tiny.save(tiny.llama(2), tmp_path / "model", torch.bfloat16)
    shelved = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    shelve(shelved, open_checkpoint(folder), torch.float32, CPU)
    wide = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(shelved(IDS).logits, wide(IDS).logits)


def test_what_the_folder_does_not_hold_stays_loaded(tmp_path: Path) -> None:
    folder = tiny.save(tiny.llama(2), tmp_path / "model", torch.float32)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        model.model.norm.weight[0] += 1
        wanted = model(IDS).logits
        shelve(model, open_checkpoint(folder), None, CPU)
        assert torch.equal(model(IDS).logits, wanted)


def mixtral(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=2)
    model = MixtralForCausalLM(
        MixtralConfig(vocab_size=97, num_hidden_layers=2, max_position_embeddings=16, **sizes)
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_experts_are_read_one_by_one(
    dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mixtral(tmp_path / "model")
    module, _ = build_meta(AutoConfig.from_pretrained(folder), MixtralForCausalLM)
    stored = open_stored(module, {}, open_checkpoint(folder))
    wanted = dtype or torch.bfloat16
    options = dict(dtype=wanted, experts_implementation="eager")
    stock = MixtralForCausalLM.from_pretrained(folder, **options).eval()
    shelved, buffers = build_meta(stock.config, MixtralForCausalLM, dtype=torch.bfloat16, experts="eager")
    for name, value in buffers.items():
        path, _, last = name.rpartition(".")
        shelved.get_submodule(path)._buffers[last] = value
    shelve_unloaded(shelved, stored, dtype, CPU)
    largest, rows = [0], MovedTensor.rows

    def counted(self: MovedTensor, start: int, stop: int) -> torch.Tensor:
        found = rows(self, start, stop)
        largest[0] = max(largest[0], found.numel())
        return found

    monkeypatch.setattr(MovedTensor, "rows", counted)
    with torch.no_grad():
        assert torch.equal(shelved(IDS).logits, stock(IDS).logits)
    assert largest[0] == 2 * 24 * 16  # gate and up of one expert of eight
    held = shelved.model.layers[0].mlp.experts.gate_up_proj
    assert torch.equal(held * 1, stock.model.layers[0].mlp.experts.gate_up_proj)


def test_stock_does_not_load_more_experts_than_memory_is_to_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "CONVERTED_BYTES", 1000)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("from_pretrained loads all experts")

    source = mixtral(tmp_path / "model")
    monkeypatch.setattr(MixtralForCausalLM, "from_pretrained", refused)
    report = surgeon.apply("grow", source, tmp_path / "out", device="cpu").report
    assert report.preserved and report.native is not None
    assert "experts one by one, not from_pretrained" in report.native.loaded_by


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_large_matrices_are_read_in_blocks(
    dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "LARGE", 3000)
    folder = tiny.save(tiny.llama(2), tmp_path / "model", torch.bfloat16)
    stock = LlamaForCausalLM.from_pretrained(folder, dtype=dtype or torch.bfloat16).eval()
    shelved = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    shelve(shelved, open_checkpoint(folder), dtype, CPU)
    counts: list[int] = []
    rows = StoredTensor.rows

    def counted(self: StoredTensor, start: int, stop: int) -> torch.Tensor:
        found = rows(self, start, stop)
        counts.append(found.numel())
        return found

    monkeypatch.setattr(StoredTensor, "rows", counted)
    with torch.no_grad():
        torch.testing.assert_close(shelved(IDS).logits, stock(IDS).logits)
    assert counts and max(counts) * (dtype or torch.bfloat16).itemsize <= 3000
    head = shelved.lm_head.weight
    assert isinstance(head, Picked)
    assert torch.equal(head.T, stock.lm_head.weight.T)
    ids = torch.tensor([[3, 3], [90, 0]])
    wanted = torch.nn.functional.embedding(ids, stock.lm_head.weight.clone(), max_norm=0.5)
    assert torch.equal(torch.nn.functional.embedding(ids, head, max_norm=0.5), wanted)
