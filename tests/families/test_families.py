"""Grown transformers models, held against what stock transformers computes from the written files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import surgeon
from surgeon.errors import PlanError

sys.path.insert(0, str(Path(__file__).parent))
import tiny

MIXES = {"symmetric": "symmetric", "diagonal": "diagonal", "uneven": "uneven(1, 2)"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {
    "float32": 2e-5,
    "bfloat16": 0.1,
    "float16": 0.02,
}  # of the largest logit; below float32 the noise


def keys(folder: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (safe_open is no mapping)
                found[name] = tuple(opened.get_slice(name).get_shape())
    return found


def check(
    module: nn.Module, tmp_path: Path, recipe: str | Path, settings: dict[str, str], dtype: str = "float32"
) -> tuple[surgeon.Result, dict[str, Any]]:
    """Grow and hold the output against the source; returns the result and the grown config."""
    source, out = tiny.save(module, tmp_path / "source", DTYPES[dtype]), tmp_path / "out"
    result = surgeon.apply(recipe, source, out, settings=settings, device="cpu")
    assert result.report.preserved
    assert result.report.exact.outputs < 1e-12

    kind, bare = type(module), type(module).__name__.endswith("Model")
    field = "last_hidden_state" if bare else "logits"
    wide = torch.float64 if dtype == "float32" else torch.float32
    before, after = (tiny.answer(folder, kind, field, wide) for folder in (source, out))
    if bare:
        before = before.repeat(1, after.shape[-1] // before.shape[-1])
    assert after.shape == before.shape
    assert before.abs().max() > 1e-2
    assert (after - before).abs().max() <= TOLERANCE[dtype] * before.abs().max()

    old, new = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    assert old.get("tie_word_embeddings") == new.get("tie_word_embeddings")
    assert set(keys(source)) == set(keys(out))
    assert old.get("dtype") == new.get("dtype")
    assert (out / "tokenizer.json").read_bytes() == tiny.SIDE_FILE
    assert (out / "surgery.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]
    return result, {"old": old, "new": new, "keys": keys(out)}


CASES: list[Any] = [
    pytest.param(
        make, n, mix, snr, dtype, id=f"{name}-{n}-{mix}-{'noise' if snr != 'none' else 'plain'}-{dtype}"
    )
    for name, make, n, mix, snr, dtype in [
        ("opt", lambda: tiny.opt(24), 2, "symmetric", "none", "float32"),
        ("opt-projected", lambda: tiny.opt(12), 3, "uneven", "10 dB", "float32"),
        ("opt-untied", lambda: tiny.opt(24, tie_word_embeddings=False), 2, "diagonal", "none", "bfloat16"),
        ("neox-parallel", lambda: tiny.neox(True), 2, "symmetric", "10 dB", "float32"),
        ("neox-serial", lambda: tiny.neox(False), 3, "diagonal", "none", "float32"),
        ("olmo", lambda: tiny.olmo(), 2, "uneven", "none", "float32"),
        ("olmo-clip", lambda: tiny.olmo(clip_qkv=0.5), 3, "symmetric", "none", "float32"),
        ("gemma", lambda: tiny.gemma(), 4, "symmetric", "none", "float32"),
        ("gemma", lambda: tiny.gemma(), 2, "uneven", "10 dB", "bfloat16"),
        ("gemma2", lambda: tiny.gemma2(), 2, "diagonal", "none", "float32"),
        ("gemma2", lambda: tiny.gemma2(), 3, "symmetric", "10 dB", "float32"),
        ("llama-mha", lambda: tiny.llama(4), 2, "uneven", "10 dB", "float32"),
        ("llama-gqa", lambda: tiny.llama(2), 3, "symmetric", "none", "float16"),
        ("llama-gqa-tied", lambda: tiny.llama(2, tie_word_embeddings=True), 2, "diagonal", "none", "float32"),
        ("llama-mqa", lambda: tiny.llama(1), 4, "symmetric", "10 dB", "float32"),
        (
            "llama-mqa-bias",
            lambda: tiny.llama(1, attention_bias=True, mlp_bias=True),
            2,
            "uneven",
            "none",
            "float32",
        ),
        ("bert", lambda: tiny.bert(), 2, "symmetric", "10 dB", "float32"),
        ("bert", lambda: tiny.bert(), 3, "uneven", "none", "float32"),
        ("bert-mlm", lambda: tiny.bert(True), 2, "diagonal", "none", "float32"),
        ("bert-mlm", lambda: tiny.bert(True), 2, "uneven", "10 dB", "float16"),
    ]
]


@pytest.mark.parametrize(("make", "n", "mix", "snr", "dtype"), CASES)
def test_hyperclone(
    make: Callable[[], nn.Module], n: int, mix: str, snr: str, dtype: str, tmp_path: Path
) -> None:
    settings = {"n": str(n), "mix": MIXES[mix], "snr": snr}
    _, seen = check(make(), tmp_path, "hyperclone", settings, dtype)
    assert seen["new"]["hidden_size"] == n * seen["old"]["hidden_size"]
    assert seen["new"]["num_attention_heads"] == n * seen["old"]["num_attention_heads"]
    tied = seen["new"].get("tie_word_embeddings")
    if tied and "lm_head.weight" in seen["keys"]:
        pytest.fail("both names of a tied tensor are on disk")


def test_a_tied_head_after_a_norm_without_weights_is_refused(tmp_path: Path) -> None:
    """Olmo's norm fixes the scale of what the head reads, and the head is the embedding."""
    source = tiny.save(tiny.olmo(tie_word_embeddings=True), tmp_path / "source")
    with pytest.raises(PlanError, match="off by a factor of 2") as caught:
        surgeon.apply("hyperclone", source, tmp_path / "out", device="cpu")
    assert caught.value.code == "S330"
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("grown", "same"),
    [
        ("hidden", ("intermediate_size",)),
        ("ffn", ("hidden_size", "num_attention_heads")),
        ("heads, hidden", ("intermediate_size", "head_dim")),
    ],
)
@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_some_dims_only(grown: str, same: tuple[str, ...], family: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.surgery"
    recipe.write_text(f"recipe mine(n: int = 2) {{\n    grow {grown} by n\n    preserve logits\n}}\n")
    (tmp_path / "models").mkdir()
    make = {"gemma": tiny.gemma, "gemma2": tiny.gemma2}[family]
    result, seen = check(make(), tmp_path / "models", recipe, {"n": "3"})
    for field in same:
        assert seen["new"][field] == seen["old"][field]
    assert result.plan.config_changes
    assert seen["new"] != seen["old"]


@pytest.mark.parametrize(
    ("make", "grow"),
    [
        pytest.param(lambda: tiny.neox(True), "hidden", id="neox-hidden"),
        pytest.param(lambda: tiny.opt(24), "hidden", id="opt-hidden"),
        pytest.param(lambda: tiny.bert(True), "hidden", id="bert-hidden"),
        pytest.param(lambda: tiny.llama(2), "config.head_dim", id="llama-head_dim"),
    ],
)
def test_larger_heads_keep_their_scores(make: Callable[[], nn.Module], grow: str, tmp_path: Path) -> None:
    """The attention scale, and rotary pairs where there are any, are made up for in the keys or queries."""
    recipe = tmp_path / "mine.surgery"
    recipe.write_text(f"recipe mine() {{\n    grow {grow} by 2\n    noise linear at 10 dB\n}}\n")
    (tmp_path / "models").mkdir()
    result, _ = check(make(), tmp_path / "models", recipe, {})
    assert any(0.7 < v < 0.71 or 1.41 < v < 1.42 for values in result.plan.scaled().values() for v in values)


def test_the_first_copy_may_carry_all(tmp_path: Path) -> None:
    check(tiny.llama(2), tmp_path, "hyperclone", {"mix": "first"})


def test_growing_by_one_changes_nothing(tmp_path: Path) -> None:
    result, _ = check(tiny.llama(2), tmp_path, "hyperclone", {"n": "1"})
    assert result.plan.grown_dims() == []


def test_not_a_number_is_no_agreement(tmp_path: Path) -> None:
    """A grown model that answers NaN is not preserved, in the stock check as in the exact one."""
    from surgeon.verification.native import compare_stock, observe

    source = tiny.llama(2)
    folder = tiny.save(source, tmp_path / "source", torch.float32)
    plan = surgeon.plan("hyperclone", folder, settings={"n": "1"})
    broken = tiny.llama(2)
    broken.load_state_dict(source.state_dict())
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    wide = observe(source.double(), torch.float64, ("logits",))
    seen = observe(source.float(), torch.float32, ("logits",))
    assert compare_stock(plan, seen, wide, {}, seen).passed
    assert not compare_stock(plan, seen, wide, {}, observe(broken.float(), torch.float32, ("logits",))).passed
