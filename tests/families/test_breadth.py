"""A broad sample of what transformers can build, grown by one generic recipe: see benchmarks/coverage.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from coverage import TOGETHER, attempt, make

SAMPLE = {
    "GPT2LMHeadModel": "fused projection, weights transposed, tied",
    "Phi3ForCausalLM": "unequal fused projections",
    "FalconForCausalLM": "multi-query heads picked by position",
    "GPTJForCausalLM": "interleaved rotary",
    "MixtralForCausalLM": "experts stored one by one and held as one tensor",
    "Qwen3MoeForCausalLM": "experts, norms per head",
    "DeepseekV3ForCausalLM": "latent attention, grouped routing, shared experts",
    "GptOssForCausalLM": "experts with biases, attention sinks",
    "MambaForCausalLM": "state space",
    "CohereForCausalLM": "a logit scale, a norm without bias",
    "GraniteForCausalLM": "multipliers",
    "ApertusForCausalLM": "an activation with parameters",
    "BloomForCausalLM": "slopes made of numbers, one for each head",
    "XLNetLMHeadModel": "positions shifted by views, made of numbers",
    "RwkvForCausalLM": "weights that the first pass rewrites",
    "XmodForCausalLM": "rows picked by a mask",
    "DebertaV2ForMaskedLM": "positions relative to each other, by content",
    "ConvBertForMaskedLM": "patches, kernels made of what they read",
    "FunnelForMaskedLM": "pooled queries, shifted by views",
    "SqueezeBertForMaskedLM": "convolutions in groups of heads",
    "T5ForConditionalGeneration": "buckets of relative positions, a bias for each head",
    "EncoderDecoderModel": "two models in one",
}


@pytest.mark.parametrize("name", SAMPLE)
def test_hidden_ffn_and_heads_grow(name: str, tmp_path: Path) -> None:
    make("", name, tmp_path / "source")
    found = attempt(tmp_path / "source", TOGETHER, tmp_path / "grown")
    assert "exact" in found, found
    assert found["exact"] < 1e-13
    assert found["native"] <= found["tolerance"]
    assert found["greedy"] is (None if "Masked" in name else True)


def test_heads_that_would_halve_are_refused(tmp_path: Path) -> None:
    make("", "BloomForCausalLM", tmp_path / "source")
    refused = attempt(tmp_path / "source", ("heads",), tmp_path / "grown")
    assert refused["code"] == "S330"
    assert not (tmp_path / "grown").exists()


def test_positions_that_depend_on_the_width_are_refused(tmp_path: Path) -> None:
    """Sinusoids of twice the width hold the source's at every second place; between them would be new
    channels, which the norms over the same dim cannot have."""
    make("", "CTRLLMHeadModel", tmp_path / "source")
    refused = attempt(tmp_path / "source", ("hidden",), tmp_path / "grown")
    assert refused["code"] == "S330"
    assert "not all copied equally often" in refused["text"]
