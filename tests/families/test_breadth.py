"""A broad sample of what transformers can build, grown by one generic recipe: see benchmarks/coverage.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from coverage import TOGETHER, attempt, make
from safetensors.torch import load_file, save_file
from versions import CLASSES_OF_5_24, TRACER_OF_2_13

import surgeon
from surgeon.errors import PlanError

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
    "LongT5ForConditionalGeneration": "padding, of which float64 makes something else, beside the logits",
    "ViTForImageClassification": "a token before those of the picture",
    "ResNetForImageClassification": "running statistics, stages in a list",
    "Swinv2ForImageClassification": "rolled windows",
    "SegformerForImageClassification": "a list of heads, pictures made smaller on the way",
    "PoolFormerForImageClassification": "a norm of groups",
    "EfficientNetForImageClassification": "one factor of all widths, windows larger than the picture",
    "MobileNetV2ForImageClassification": "a factor and rounding: some widths grow by half, others double",
    "MobileViTV2ForImageClassification": "patches taken apart and put back",
    "CHMv2ForDepthEstimation": "a backbone's config in the model's, layers read at several depths",
    "Siglip2ForImageClassification": "patches laid in rows, not all of them filled",
    "LlavaForConditionalGeneration": "pictures among words",
    "Qwen2VLForConditionalGeneration": "pictures cut to patches that the inputs count",
    "AriaForConditionalGeneration": "what a tower saw on the way given beside the logits, by a trace alone",
    "PixtralVisionModel": "all pictures of a batch in one row",
    "GlmAsrEncoder": "several queries to a key, by torch's own grouping",
    "CLIPModel": "two towers, every example held against every other",
    "Wav2Vec2ForCTC": "sounds, a convolution whose weight is normed",
    "Wav2Vec2BertForCTC": "spectrograms, one half of an axis gated by the other",
    "MimiModel": "sounds as codes that are searched for, given before the sound that is made of them",
    "EncodecModel": "a table that is searched, held as a buffer: its width is a field of its own",
}


UNTRACED_BEFORE = ("LongT5ForConditionalGeneration",)
OTHERWISE_BEFORE = (
    "FunnelForMaskedLM",
    "AriaForConditionalGeneration",
    "EncoderDecoderModel",
    "Qwen2VLForConditionalGeneration",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[
                *([CLASSES_OF_5_24] if name in OTHERWISE_BEFORE else []),
                *([TRACER_OF_2_13] if name in UNTRACED_BEFORE else []),
            ],
        )
        for name in SAMPLE
    ],
)
def test_hidden_ffn_and_heads_grow(name: str, tmp_path: Path) -> None:
    make("", name, tmp_path / "source")
    found = attempt(tmp_path / "source", TOGETHER, tmp_path / "grown")
    assert "exact" in found, found
    assert found["exact"] < 1e-13
    assert found["native"] <= found["tolerance"]
    silent = ("MaskedLM", "Classification", "Estimation", "CTC", "VisionModel", "Encoder")
    tokens = not name.endswith((*silent, "CLIPModel", "MimiModel", "EncodecModel"))
    assert found["greedy"] is (True if tokens else None)


def test_a_field_that_follows_from_others_follows_them(tmp_path: Path) -> None:
    """Its file says how wide a head is, and the class takes that for the width divided by the heads."""
    make("", "PixtralVisionModel", tmp_path / "source")
    recipe = tmp_path / "wide.surgery"
    recipe.write_text("recipe wide() {\n    grow hidden by 3\n    spread linear with uneven(1, 2)\n}\n")
    result = surgeon.apply(recipe, tmp_path / "source", tmp_path / "grown", device="cpu")
    assert result.report.preserved
    assert result.plan.config_changes == {"hidden_size": (64, 192), "head_dim": (16, 48)}
    assert "config.head_dim follows from other fields, and follows them" in result.plan.notes
    recipe.write_text("recipe wide() {\n    grow heads by 2\n}\n")
    with pytest.raises(PlanError, match="a dim of 8 that would shrink to 4"):
        surgeon.plan(recipe, tmp_path / "source")
    # Of its frequencies every second is that of the other axis: twice as many have those elsewhere.
    recipe.write_text("recipe wide() {\n    grow hidden by 2\n}\n")
    with pytest.raises(PlanError, match="computes other values for its buffer") as caught:
        surgeon.plan(recipe, tmp_path / "source")
    assert caught.value.code == "S323"


def test_the_path_that_a_saved_buffer_tells_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    """Whether masks are made of what is seen so far, layer by layer: the class begins with that, and a
    trained model does without."""
    source, recipe = tmp_path / "source", tmp_path / "wide.surgery"
    make("", "EomtForUniversalSegmentation", source)
    recipe.write_text(
        "recipe wide() {\n    grow hidden, heads by 2\n    spread linear with uneven(1, 2)\n}\n"
    )
    begun = surgeon.dims(source)
    weights = load_file(source / "model.safetensors")
    assert weights["attn_mask_probs"].eq(1).all()
    save_file({**weights, "attn_mask_probs": torch.zeros(1)}, source / "model.safetensors", {"format": "pt"})
    result = surgeon.apply(recipe, source, tmp_path / "grown", device="cpu")
    assert result.report.preserved
    (note,) = (n for n in result.plan.notes if n.startswith("proved for inputs on which the model finds"))
    assert "models/eomt/modeling_eomt.py" in note
    assert len(surgeon.dims(source).captured.nodes) < len(begun.captured.nodes)


@CLASSES_OF_5_24
def test_fields_that_a_class_takes_together_alone_grow_together(tmp_path: Path) -> None:
    """Its config refuses a table of codes that is as wide as what is searched for in it was."""
    make("", "WavTokenizerModel", tmp_path / "source")
    found = attempt(tmp_path / "source", ("hidden",), tmp_path / "grown")
    assert found["fields"] == {"hidden_size": [64, 128], "codebook_dim": [64, 128]}
    assert "config.codebook_dim speaks of the same dim and grows along" in found["notes"]
    assert found["native"] <= found["tolerance"] < 1e-5


def test_heads_that_would_halve_are_refused(tmp_path: Path) -> None:
    make("", "BloomForCausalLM", tmp_path / "source")
    refused = attempt(tmp_path / "source", ("heads",), tmp_path / "grown")
    assert refused["code"] == "S316"
    assert "is 4·(1 ++ 1 ++ 1)·16 in the source and 8·(1 ++ 1 ++ 1)·8 in the grown class" in refused["text"]
    assert not (tmp_path / "grown").exists()


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("CTRLLMHeadModel", "transformer.pos_encoding"),
        (
            "VideoMAEForVideoClassification",
            "videomae.embeddings.position_embeddings",
        ),  # no buffer, but a tensor
    ],
)
def test_positions_that_depend_on_the_width_are_refused(name: str, table: str, tmp_path: Path) -> None:
    """Sinusoids of twice the width have others between the source's, and a norm reads them all."""
    make("", name, tmp_path / "source")
    refused = attempt(tmp_path / "source", ("hidden",), tmp_path / "grown")
    assert refused["code"] == "S331"
    assert "statistics are taken over them" in refused["text"]
    assert f"its buffer {table} holds the source's values at 64 of 128 channels" in refused["text"]


def test_what_the_trace_leaves_out_is_told_and_grows_as_its_layers_read_it(tmp_path: Path) -> None:
    """Longformer asks its inputs whether any token attends to all; the proof's do not. The weights of the
    other path are held against stock transformers here, on inputs that take it."""
    make("", "LongformerForMaskedLM", tmp_path / "source")
    found = attempt(tmp_path / "source", TOGETHER, tmp_path / "grown")
    assert "exact" in found, found
    taken, unread = found["notes"]
    assert taken.startswith("proved for inputs on which the model finds")
    assert "models/longformer/modeling_longformer.py" in taken
    assert "query_global" in unread
    ids = torch.randint(4, 97, (2, 8), generator=torch.Generator().manual_seed(0))
    everywhere = torch.zeros_like(ids).index_fill(1, torch.tensor([0, 5]), 1)
    seen = {}
    for folder in ("source", "grown"):
        model = transformers.LongformerForMaskedLM.from_pretrained(tmp_path / folder, dtype=torch.float64)
        with torch.no_grad():
            seen[folder] = model(ids, global_attention_mask=everywhere).logits
            assert (model(ids).logits - seen[folder]).abs().max() > 0.1
    # Both compute in float64; the shares of the grown weights were rounded to float32 when written.
    torch.testing.assert_close(seen["grown"], seen["source"], rtol=0, atol=2e-6)


def test_a_factor_of_widths_grows_by_and_not_to(tmp_path: Path) -> None:
    make("", "MobileNetV1ForImageClassification", tmp_path / "source")
    recipe = tmp_path / "to.surgery"
    recipe.write_text("recipe r() { grow hidden to 64 }")
    with pytest.raises(PlanError) as refused:
        surgeon.plan(recipe, tmp_path / "source")
    assert refused.value.code == "S310"
    text = str(refused.value)
    assert "hidden (depth_multiplier) is a factor of all widths, now 0.25" in text
    assert "expected: by and a number of at least 1" in text


def test_a_class_that_does_not_run_when_grown_says_so_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make("", "HGNetV2ForImageClassification", tmp_path / "source")
    capfd.readouterr()
    refused = attempt(tmp_path / "source", ("config.hidden_sizes",), tmp_path / "grown")
    assert refused["code"] == "S220"
    assert "HGNetV2Config refuses hidden_sizes = [48, 80]: a and b must have same red" in refused["text"]
    assert "logits = self.fc(last_hidden_state)" in refused["text"]
    assert capfd.readouterr().err == ""  # torch logs what its tracer meets


def test_a_fourier_transform_over_a_dim_refuses_it(tmp_path: Path) -> None:
    make("", "FNetForMaskedLM", tmp_path / "source")
    refused = attempt(tmp_path / "source", ("hidden",), tmp_path / "grown")
    assert refused["code"] == "S306"
    assert "aten.fft" in refused["text"]
