"""New channels, which are no copies, get gradients of stock transformers from the first step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import surgeon

sys.path.insert(0, str(Path(__file__).parent))
import tiny

RECIPE = """recipe wide() {{
    grow {} by 2
    spread linear with uneven(1, 2)
    noise linear at 10 dB
}}
"""


def grown(module: Any, dims: str, tmp_path: Path) -> tuple[surgeon.Result, Any]:
    """The result, and stock transformers' grown model after a backward pass."""
    recipe = tmp_path / "wide.surgery"
    recipe.write_text(RECIPE.format(dims))
    source = tiny.save(module, tmp_path / "source")
    result = surgeon.apply(recipe, source, tmp_path / "out", device="cpu")
    assert result.report.preserved
    model = type(module).from_pretrained(tmp_path / "out")
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    return result, model


def moves(rows: torch.Tensor) -> torch.Tensor:
    """Which rows are anywhere other than zero."""
    return (rows != 0).flatten(1).any(1)


@pytest.mark.parametrize("bias", [False, True])
def test_new_rotary_pairs_have_keys_but_no_queries(bias: bool, tmp_path: Path) -> None:
    """Each side's gradient is a multiple of the other side: one of them must carry something."""
    result, model = grown(tiny.llama(2, attention_bias=bias), "hidden, head_dim", tmp_path)
    assert result.report.trainability is not None
    assert result.report.trainability.dormant == ()
    for layer in model.model.layers:
        query, key = layer.self_attn.q_proj, layer.self_attn.k_proj
        assert moves(key.weight).all()
        silent = ~moves(query.weight)
        assert silent.float().mean() == 0.5
        assert moves(query.weight.grad)[silent].all()
        if bias:
            assert (key.bias != 0).all()
            assert (query.bias[silent] == 0).all()
            assert (query.bias.grad[silent] != 0).all()


def test_new_heads_between_slopes_carry_values(tmp_path: Path) -> None:
    """Slopes of n heads stand among those of 2n: the heads between are new, and nothing reads them yet."""
    config = transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
    result, model = grown(transformers.BloomForCausalLM(config), "hidden, heads", tmp_path)
    assert result.report.trainability is not None
    assert result.report.trainability.dormant == ()
    for layer in model.transformer.h:
        attention = layer.self_attention
        assert moves(attention.query_key_value.weight).all()
        unread = ~moves(attention.dense.weight.T)
        assert unread.float().mean() == 0.5
        assert moves(attention.dense.weight.grad.T)[unread].all()


def test_what_sleeps_is_said(tmp_path: Path) -> None:
    """A norm over the head takes statistics: its new channels must be zero on both sides."""
    config = transformers.Qwen3Config(
        vocab_size=97,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    module = transformers.Qwen3ForCausalLM(config)
    result, model = grown(module, "head_dim", tmp_path)
    assert result.report.trainability is not None
    assert result.report.trainability.dormant == ("model.layers.*.self_attn.q_proj.weight[0]",)
    for layer in model.model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            assert not moves(part.weight.grad)[~moves(part.weight)].any()
