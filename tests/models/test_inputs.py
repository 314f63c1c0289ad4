"""Inputs made up for classes that read more than one thing: the stock class itself, which checks its
inputs, is the judge."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from tiny_configs import TWEAKS, tiny_config
from torch import nn

from surgeon.errors import ModelError
from surgeon.language import builtin_rules
from surgeon.models.inputs import BATCH, SEQUENCE, blind_to, pictured, real_inputs
from surgeon.models.native import build_meta
from surgeon.surgery.subject import _first_captured

KNOWN = frozenset(name for rule in builtin_rules() for name in rule.names)


def tiny(name: str) -> tuple[Any, Any]:
    model_class = getattr(transformers, name)
    own = model_class.config_class.model_type
    return model_class, tiny_config(model_class.config_class, TWEAKS.get(name) or TWEAKS.get(own))


def run(model: nn.Module, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model.eval()(**inputs)


@pytest.mark.parametrize(
    "name",
    [
        "LlavaForConditionalGeneration",
        "Qwen2VLForConditionalGeneration",
        "Kimi_K25ForConditionalGeneration",  # patches are small pictures
        "VideoLlama3ForConditionalGeneration",  # each picture says how many patches become one row
        "MuseGlimmerForConditionalGeneration",  # names of its own for what a patch is
    ],
)
def test_pictures_stand_where_the_class_puts_what_it_makes_of_them(name: str) -> None:
    """The class refuses another number of ids than it has rows; each picture tells on its own example."""
    model_class, config = tiny(name)
    model = model_class(config)
    inputs = real_inputs(model, 0)
    places = inputs["input_ids"] == config.image_token_id
    assert int(places.sum(1).min()) == int(places.sum(1).max()) > 0
    assert inputs["attention_mask"][places].all() and inputs["attention_mask"].min() == 0
    seen = run(model, inputs).logits
    assert seen.isfinite().all() and seen.shape[:2] == inputs["input_ids"].shape
    part = len(inputs["pixel_values"]) // BATCH
    other = inputs["pixel_values"].clone()
    other[:part] += 1
    moved = (run(model, {**inputs, "pixel_values": other}).logits - seen).abs().amax((1, 2))
    assert moved[0] > 1e-6 and moved[1:].max() == 0
    plain = real_inputs(model, 0, pictures=False)
    assert "pixel_values" not in plain and plain["input_ids"].shape == (BATCH, SEQUENCE)
    without, _ = build_meta(config, model_class)
    for key, value in real_inputs(without, 0).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(inputs[key]))


def test_words_alone_where_pictures_cannot_be_traced_and_the_reason_is_kept() -> None:
    module, _ = build_meta(*tiny("LlavaForConditionalGeneration")[::-1])
    forward = module.forward

    @functools.wraps(forward)
    def blind(*args: Any, pixel_values: Any = None, **kwargs: Any) -> Any:
        if pixel_values is not None:
            raise ValueError("it is too dark")
        return forward(*args, **kwargs)

    module.forward = blind  # type: ignore[method-assign]
    captured, unseen = _first_captured(module, KNOWN)
    assert not any("pixel" in name for name in captured.inputs)
    assert "it is too dark" in unseen

    @functools.wraps(forward)
    def silent(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("with pictures" if "pixel_values" in kwargs else "without")

    module.forward = silent  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="with pictures"):
        _first_captured(module, KNOWN)


def test_patches_laid_in_rows_that_not_all_pictures_fill() -> None:
    model_class, config = tiny("Siglip2ForImageClassification")
    model = model_class(config)
    inputs = real_inputs(model, 0)
    held = inputs["pixel_attention_mask"].sum(1)
    assert held.tolist() == inputs["spatial_shapes"].prod(1).tolist() and len(set(held.tolist())) > 1
    seen = run(model, inputs).logits
    empty = inputs["pixel_values"].clone()
    empty[inputs["pixel_attention_mask"] == 0] = 7.0
    torch.testing.assert_close(run(model, {**inputs, "pixel_values": empty}).logits, seen)


def test_ids_of_several_channels() -> None:
    for name, key, width in (
        ("DiaForConditionalGeneration", "decoder_input_ids", 9),
        ("KyutaiSpeechToTextForConditionalGeneration", "input_ids", 33),
    ):
        model_class, config = tiny(name)
        model = model_class(config)
        inputs = real_inputs(model, 0)
        assert inputs[key].shape == (BATCH, SEQUENCE, width)
        assert run(model, inputs).logits.isfinite().all()


def test_what_a_class_reads_under_a_name_that_says_nothing() -> None:
    for name, key in (("PerceiverForMaskedLM", "input_ids"), ("SpeechEncoderDecoderModel", "input_values")):
        model_class, config = tiny(name)
        model = model_class(config)
        assert model.main_input_name == "inputs" and key in real_inputs(model, 0)
        assert run(model, real_inputs(model, 0)).logits.isfinite().all()


def test_pictures_told_of_beside_the_ids() -> None:
    """By a mask of their places, or of the words that look at them: what is marked hears of the picture."""
    for name, key, first in (
        ("Kosmos2ForConditionalGeneration", "image_embeds_position_mask", 1),
        ("IdeficsForVisionText2Text", "image_attention_mask", 1),
    ):
        model_class, config = tiny(name)
        torch.manual_seed(0)
        model = model_class(config)
        for gate in (p for n, p in model.named_parameters() if "alpha_" in n):
            nn.init.ones_(gate)  # closed at first: no picture is heard
        inputs = real_inputs(model, 0)
        assert inputs[key].shape[:2] == inputs["input_ids"].shape
        assert not inputs[key][:, :first].any() and inputs[key][:, first].all()
        seen = run(model, inputs).logits
        other = run(model, {**inputs, "pixel_values": inputs["pixel_values"] + torch.randn(1)}).logits
        moved = (seen - other).abs().amax(-1)
        assert moved[:, :first].max() == 0
        assert moved[:, first].min() > 1e-7


def test_ids_of_a_part_that_reads_words_of_its_own() -> None:
    model_class, config = tiny("InstructBlipForConditionalGeneration")
    model = model_class(config)
    inputs = real_inputs(model, 0)
    assert inputs["qformer_input_ids"].shape == (BATCH, SEQUENCE)
    assert int(inputs["qformer_input_ids"].max()) < config.qformer_config.vocab_size
    assert (inputs["input_ids"] == config.image_token_id).sum(1).tolist() == [config.num_query_tokens] * BATCH
    assert run(model, inputs).logits.isfinite().all()


def test_a_class_that_does_not_say_where_pictures_stand_is_told_of() -> None:
    module, _ = build_meta(*tiny("LlavaForConditionalGeneration")[::-1])
    assert blind_to(module) == "" and pictured(module)
    module.config.image_token_id = None
    said = "LlavaForConditionalGeneration does not say where pictures stand among its words"
    said += ", or how they are laid"
    assert blind_to(module) == said and not pictured(module)
    assert _first_captured(module, KNOWN)[1] == said
    plain, _ = build_meta(*tiny("LlamaForCausalLM")[::-1])
    assert blind_to(plain) == ""
