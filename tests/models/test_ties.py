"""Which of a class's ties a checkpoint keeps: ``from_pretrained`` itself is the judge."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.checkpoints.reading import open_checkpoint
from surgeon.models.native import build_meta
from surgeon.models.ties import apart_in

SHARED, ENCODER, DECODER, HEAD = NAMES = (
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
)


def saved(folder: Path) -> hf.T5Config:
    torch.manual_seed(0)
    config = hf.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    hf.T5ForConditionalGeneration(config).save_pretrained(folder)
    return config


def stored_as(folder: Path, kept: dict[str, int]) -> None:
    """The names that stand in the file; those of one number hold the same values."""
    tensors = load_file(folder / "model.safetensors")
    shape = next(tensors[name].shape for name in NAMES if name in tensors)
    for name in NAMES:
        tensors.pop(name, None)
    made = {number: torch.randn(shape) for number in sorted(set(kept.values()))}
    tensors |= {name: made[number].clone() for name, number in kept.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def groups(model: torch.nn.Module) -> list[list[str]]:
    """The names of each tensor, of the four."""
    of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in NAMES:
            of.setdefault(id(parameter), []).append(name)
    return list(of.values())


def test_a_class_is_tied_as_stock_ties_it_by_what_is_stored(tmp_path: Path) -> None:
    config = saved(tmp_path)
    for values in product((None, 0, 1), repeat=4):
        kept = {name: number for name, number in zip(NAMES, values, strict=True) if number is not None}
        if not kept:
            continue
        stored_as(tmp_path, kept)
        stock = hf.T5ForConditionalGeneration.from_pretrained(tmp_path)
        module, _ = build_meta(config, hf.T5ForConditionalGeneration)
        apart = apart_in(module, open_checkpoint(tmp_path))
        untied, _ = build_meta(config, hf.T5ForConditionalGeneration, apart=apart)
        assert groups(untied) == groups(stock), kept


@pytest.mark.parametrize(
    "kept", [{SHARED: 0, HEAD: 1}, {SHARED: 0, ENCODER: 0, DECODER: 1, HEAD: 2}], ids=str
)
def test_what_is_stored_twice_and_unlike_grows_apart(kept: dict[str, int], tmp_path: Path) -> None:
    saved(tmp_path / "source")
    stored_as(tmp_path / "source", kept)
    recipe = tmp_path / "wider.surgery"
    recipe.write_text("recipe wider() {\n    grow hidden, ffn by 2\n    noise linear at 10 dB\n}\n")
    result = surgeon.apply(recipe, tmp_path / "source", tmp_path / "out", device="cpu")
    assert result.report.preserved
    small, large = (
        hf.T5ForConditionalGeneration.from_pretrained(tmp_path / place) for place in ("source", "out")
    )
    assert groups(small) == groups(large) and len(groups(large)) == len(set(kept.values()))
    # Of two names of one tensor the one is written that the class fills the other from, as stock does.
    assert {*load_file(tmp_path / "out" / "model.safetensors")} & {*NAMES} == {*kept} - {ENCODER}
    ids = torch.arange(1, 13).reshape(2, 6)
    with torch.no_grad():
        a, b = (m.eval()(input_ids=ids, decoder_input_ids=ids.flip(1)).logits for m in (small, large))
    torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
