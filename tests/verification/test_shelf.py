"""A shelved model computes what stock transformers loaded, and holds none of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import tiny
from transformers import LlamaForCausalLM

from surgeon.checkpoints.reading import open_checkpoint
from surgeon.verification.shelf import shelve

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
