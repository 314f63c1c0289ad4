"""Inputs made up for classes that read more than one thing: the stock class itself, which checks its
inputs, is the judge."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
import transformers
from tiny_configs import TWEAKS, tiny_config
from torch import nn
from versions import CLASSES_OF_5_24

from surgeon.errors import ModelError
from surgeon.language import builtin_rules
from surgeon.models.inputs import BATCH, blind_to, pictured, real_inputs
from surgeon.models.native import build_meta
from surgeon.models.stated import SEQUENCE
from surgeon.surgery.tracing import first_captured, taken_for_granted

KNOWN = frozenset(name for rule in builtin_rules() for name in rule.names)


def tiny(name: str) -> tuple[Any, Any]:
    model_class = getattr(transformers, name)
    own = model_class.config_class.model_type
    return model_class, tiny_config(model_class.config_class, TWEAKS.get(name) or TWEAKS.get(own))


def run(model: nn.Module, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model.eval()(**inputs)


SEEING = (
    "Llava",
    "Qwen2VL",
    pytest.param("Idefics3", marks=CLASSES_OF_5_24),  # an axis of several pictures
    "LlavaNext",  # pieces of one
    "Mistral3",  # sizes that the inputs name
    "Kimi_K25",  # patches are small pictures
    "VideoLlama3",  # each picture says how many patches become one row
    "MuseGlimmer",  # names of its own for what a patch is
    "Chameleon",  # pictures become codes
    "Lfm2Vl",  # patches apart, with which of them hold any
    pytest.param("MiniCPMOcr", marks=CLASSES_OF_5_24),  # patches in one strip
)


@pytest.mark.parametrize("name", SEEING)
def test_pictures_stand_where_the_class_puts_what_it_makes_of_them(name: str) -> None:
    """The class refuses another number of ids than it has rows; each picture tells on its own example."""
    model_class, config = tiny(f"{name}ForConditionalGeneration")
    torch.manual_seed(0)
    model = model_class(config)
    inputs = real_inputs(model, 0)
    places = inputs["input_ids"] == config.image_token_id
    assert int(places.sum(1).min()) == int(places.sum(1).max()) > 0
    assert inputs["attention_mask"][places].all() and inputs["attention_mask"].min() == 0
    seen = run(model, inputs).logits
    assert seen.isfinite().all() and seen.shape[:2] == inputs["input_ids"].shape
    other = inputs["pixel_values"].clone()
    axis = 0 if len(other) >= BATCH else 3  # in a strip they stand side by side
    other.narrow(axis, 0, other.shape[axis] // BATCH).add_(1)
    far = (run(model, {**inputs, "pixel_values": other}).logits - seen).abs().amax((1, 2))
    assert far[0] > 1e-4 and far[1:].max() < 1e-6
    plain = real_inputs(model, 0, pictures=False)
    assert "pixel_values" not in plain and plain["input_ids"].shape == (BATCH, SEQUENCE)
    without, _ = build_meta(config, model_class)
    for key, value in real_inputs(without, 0).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(inputs[key]))


def moved(model: nn.Module, inputs: dict[str, Any], name: str, other: torch.Tensor) -> torch.Tensor:
    """How far each example's first output goes when one input is another."""
    seen, after = (run(model, given)[0] for given in (inputs, {**inputs, name: other}))
    return (after - seen).abs().flatten(1).amax(1)


@CLASSES_OF_5_24
@pytest.mark.parametrize(("name", "dims"), [("ColPali", 4), ("ColQwen2", 3)])
def test_pictures_for_a_class_that_wraps_one_which_reads_them(name: str, dims: int) -> None:
    """The ids in whose place they stand are named in the config within, and of ColQwen 2 each picture's
    patches stand in a table of their own, which no other class of that kind takes."""
    model_class, config = tiny(f"{name}ForRetrieval")
    torch.manual_seed(0)
    model = model_class(config)
    inputs = real_inputs(model, 0)
    places = (inputs["input_ids"] == config.vlm_config.image_token_id).sum(1)
    assert int(places.min()) == int(places.max()) > 0
    assert inputs["pixel_values"].ndim == dims
    with torch.no_grad():
        before = model(**inputs).embeddings
        after = model(**{**inputs, "pixel_values": -inputs["pixel_values"]}).embeddings
    assert (before != after).flatten(1).any(1).all()


def test_a_part_that_looks_at_pictures_of_its_own_gets_some() -> None:
    """Sharper ones, of their own size; each tells on its own example, once the gate to them is open."""
    model_class, config = tiny("DeepseekVLHybridForConditionalGeneration")
    config.high_res_vision_config.image_size = 64
    torch.manual_seed(0)
    model = model_class(config)
    nn.init.ones_(model.model.high_res_vision_alpha)
    inputs = real_inputs(model, 0)
    assert inputs["pixel_values"].shape[-2:] == (32, 32)
    assert inputs["high_res_pixel_values"].shape == (BATCH, 3, 64, 64)
    for name in ("pixel_values", "high_res_pixel_values"):
        far = moved(model, inputs, name, torch.cat([-inputs[name][:1], inputs[name][1:]]))
        assert far[0] > 1e-4 and far[1:].max() < 1e-6


def test_each_tile_of_a_picture_tells_on_its_own_example() -> None:
    model_class, config = tiny("MllamaForConditionalGeneration")
    torch.manual_seed(0)
    model = model_class(config)
    for gate in (p for n, p in model.named_parameters() if "gate" in n.rsplit(".", 1)[-1]):
        nn.init.ones_(gate)  # closed at first: no picture is heard
    inputs = real_inputs(model, 0)
    pixels = inputs["pixel_values"]
    assert pixels.shape[:3] == (BATCH, 1, config.vision_config.max_num_tiles)
    for tile in range(pixels.shape[2]):
        other = pixels.clone()
        other[0, 0, tile] *= -1
        far = moved(model, inputs, "pixel_values", other)
        assert far[0] > 1e-5 and far[1:].max() < 1e-6
    away = {**inputs, "cross_attention_mask": inputs["cross_attention_mask"].clone()}
    away["cross_attention_mask"][0] = 0  # the pictures are there, and no word of the first example looks
    seen, after = (run(model, given).logits for given in (inputs, away))
    assert (after - seen)[0, 1:].abs().amax(-1).min() > 1e-5 and torch.equal(after[1:], seen[1:])


def test_flat_patches_stand_behind_their_places() -> None:
    """Rows and columns from one on: what is told of a patch is where it is, and what it shows."""
    model_class, config = tiny("Pix2StructForConditionalGeneration")
    torch.manual_seed(0)
    model = model_class(config)
    inputs = real_inputs(model, 0)
    patches = inputs["flattened_patches"]
    places = {tuple(place) for place in patches[0, :, :2].long().tolist()}
    assert places == {(row, column) for row in (1, 2) for column in (1, 2, 3)}
    assert patches.shape[2] - 2 == config.vision_config.patch_embed_hidden_size
    for columns in (slice(0, 2), slice(2, None)):
        other = patches.clone()
        other[0, :, columns] = other[0, :, columns].flip(0)
        far = moved(model, inputs, "flattened_patches", other)
        assert far[0] > 1e-5 and far[1:].max() < 1e-6


def test_boxes_in_fractions_where_the_class_counts_the_page_as_one() -> None:
    """Whole numbers would all stand beyond the page's edge, where one box is as another."""
    model_class, config = tiny("UdopForConditionalGeneration")
    torch.manual_seed(0)
    model = model_class(config)
    inputs = real_inputs(model, 0)
    left, top, right, bottom = (boxes := inputs["bbox"]).unbind(-1)
    assert boxes.shape == (BATCH, SEQUENCE, 4) and boxes.is_floating_point() and boxes.unique().numel() > 9
    assert (left <= right).all() and (top <= bottom).all() and boxes.min() >= 0 and boxes.max() <= 1
    far = moved(model, inputs, "bbox", torch.cat([boxes[:1] / 2, boxes[1:]]))
    assert far[0] > 1e-4 and far[1:].max() < 1e-6


def test_a_class_asked_without_data_keeps_none_of_it_for_the_next_call() -> None:
    """Its backbone keeps the places of pairs of patches, by the size of the window, for all models."""
    model_class, config = tiny("ZoeDepthForDepthEstimation")
    model = model_class(config)
    inputs = real_inputs(model, 0)
    seen = run(model, inputs).predicted_depth
    assert type(seen) is torch.Tensor and seen.isfinite().all()


def test_what_a_class_keeps_in_a_table_of_its_own_is_taken_out_again() -> None:
    """Where it is asked itself, as it has no data: the biases of pairs of patches."""
    model_class, config = tiny("LevitForImageClassification")
    module, _ = build_meta(config, model_class)
    real_inputs(module, 0)
    kept = [m.attention_bias_cache for m in module.modules() if hasattr(m, "attention_bias_cache")]
    assert kept and not any(kept)


def test_words_alone_where_pictures_cannot_be_traced_and_the_reason_is_kept() -> None:
    module, _ = build_meta(*tiny("LlavaForConditionalGeneration")[::-1])
    forward = module.forward

    @functools.wraps(forward)
    def blind(*args: Any, pixel_values: Any = None, **kwargs: Any) -> Any:
        if pixel_values is not None:
            raise ValueError("it is too dark")
        return forward(*args, **kwargs)

    module.forward = blind  # type: ignore[method-assign]
    captured, supply, unseen = first_captured(module, KNOWN)
    assert not any("pixel" in name for name in captured.inputs)
    assert "it is too dark" in unseen and not supply.pictures

    @functools.wraps(forward)
    def silent(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("with pictures" if "pixel_values" in kwargs else "without")

    module.forward = silent  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="with pictures"):
        first_captured(module, KNOWN)


@pytest.mark.parametrize(
    ("name", "shape", "unseen"),
    [
        ("BertForMultipleChoice", (BATCH, 2, SEQUENCE), ""),
        ("LlamaForSequenceClassification", (1, SEQUENCE), "several examples at once"),
    ],
)
def test_examples_laid_as_a_class_takes_them(name: str, shape: tuple[int, ...], unseen: str) -> None:
    model_class, config = tiny(name)
    module, buffers = build_meta(config, model_class)
    _, supply, said = first_captured(module, KNOWN, None, buffers)
    inputs = supply.batch(module)
    assert inputs["input_ids"].shape == shape and inputs["attention_mask"].shape == shape
    assert said.startswith(unseen)
    assert run(model_class(config), inputs).logits.isfinite().all()
    with pytest.raises((RuntimeError, ValueError)):
        run(model_class(config), real_inputs(module, 0))


def test_what_an_encoder_decoder_reads_ends_as_its_texts_do() -> None:
    model_class, config = tiny("BartForSequenceClassification")  # whose head looks for the end
    inputs = real_inputs(model := model_class(config), 0)
    assert ((inputs["input_ids"] == config.eos_token_id) & (inputs["attention_mask"] == 1)).sum(1).eq(1).all()
    assert run(model, inputs).logits.shape[0] == BATCH


def test_of_many_lines_that_ask_only_some_are_named() -> None:
    branches = tuple(f"{n} at model.py:{n}" for n in range(5))
    assert taken_for_granted(branches[:2]) == (
        "proved for inputs on which the model finds 0 at model.py:0",
        "proved for inputs on which the model finds 1 at model.py:1",
    )
    said = "the model finds the same in 5 lines that ask: model.py:0, model.py:1, model.py:2, …"
    assert taken_for_granted(branches) == (f"proved for inputs on which {said}",)
    long = f"{[0] * 99} at model.py:7"
    said = "the model finds the same in a line that asks: model.py:7"
    assert taken_for_granted((long,)) == (f"proved for inputs on which {said}",)


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


@CLASSES_OF_5_24
def test_what_a_class_reads_under_a_name_that_says_nothing() -> None:
    for name, key in (("PerceiverForMaskedLM", "input_ids"), ("SpeechEncoderDecoderModel", "input_values")):
        model_class, config = tiny(name)
        model = model_class(config)
        assert model.main_input_name == "inputs" and key in real_inputs(model, 0)
        assert run(model, real_inputs(model, 0)).logits.isfinite().all()


@CLASSES_OF_5_24
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
    said = f"pictures: {type(module).__name__} names no id in its config in whose place pictures stand "
    said += "(image_token_id)"
    assert blind_to(module) == said and not pictured(module)
    assert first_captured(module, KNOWN)[2] == said
    plain, _ = build_meta(*tiny("LlamaForCausalLM")[::-1])
    assert blind_to(plain) == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Kosmos2_5ForConditionalGeneration", "pictures: .* reads them as flattened_patches"),
        ("Qwen2AudioForConditionalGeneration", "sounds: .* reads them as input_features"),
        ("Qwen3OmniMoeThinkerForConditionalGeneration", "sounds: .* reads them as input_features"),
    ],
)
def test_what_is_read_beside_words_and_not_given_is_told_of(name: str, said: str) -> None:
    module, _ = build_meta(*tiny(name)[::-1])
    assert re.fullmatch(f"{said}, which surgeon makes up for no model of words", blind_to(module))
    assert not {"flattened_patches", "input_features"} & real_inputs(module, 0).keys()


TABLES = {  # by the class: what it calls the table, and the axis that holds a patch or a square of them
    "Glm4vVisionModel": ("hidden_states", 2),
    "Kimi_K25VisionModel": ("pixel_values", 4),  # patches are small pictures
    "Inkling2VisionModel": ("pixel_values", 4),  # squares of patches are, their channels last
}


@CLASSES_OF_5_24
@pytest.mark.parametrize("name", TABLES)
def test_a_class_that_reads_a_table_of_patches_beside_a_grid(name: str) -> None:
    """Each picture tells on its own rows alone, as the grid says they lie."""
    model_class, config = tiny(name)
    model = model_class(config)
    inputs = real_inputs(model, 0)
    table, axes = TABLES[name]
    assert inputs[table].ndim == axes and "input_ids" not in inputs
    seen = run(model, inputs).pooler_output
    seen = torch.stack(seen) if isinstance(seen, (list, tuple)) else seen
    other = inputs[table].clone()
    other[: len(other) // BATCH] += 1
    moved = run(model, {**inputs, table: other}).pooler_output
    moved = torch.stack(moved) if isinstance(moved, (list, tuple)) else moved
    far = (moved - seen).abs().reshape(BATCH, -1).amax(1)
    assert far[0] > 1e-4 and far[1:].max() < 1e-6


@CLASSES_OF_5_24
@pytest.mark.parametrize("name", ["MiniCPMV4_7VisionModel", "VideoLlama3VisionModel"])
def test_patches_in_one_strip_and_tables_of_which_each_picture_merges_its_own(name: str) -> None:
    """Each picture tells on its own rows alone."""
    model_class, config = tiny(name)
    model = model_class(config)
    inputs = real_inputs(model, 0)
    pixels = inputs["pixel_values"]
    axis = 3 if name.startswith("MiniCPM") else 0
    seen = run(model, inputs).last_hidden_state
    other = pixels.clone()
    other.narrow(axis, 0, pixels.shape[axis] // BATCH).add_(1)
    moved = run(model, {**inputs, "pixel_values": other}).last_hidden_state
    far = (moved - seen).abs().reshape(BATCH, -1).amax(1)
    assert far[0] > 1e-4 and far[1:].max() < 1e-6


def test_boxes_of_words_are_whole_and_turned_the_right_way() -> None:
    model_class, config = tiny("LiltModel")
    model = model_class(config)
    inputs = real_inputs(model, 0)
    left, top, right, bottom = inputs["bbox"].unbind(-1)
    assert inputs["bbox"].shape == (BATCH, SEQUENCE, 4) and inputs["bbox"].dtype == torch.long
    assert (left <= right).all() and (top <= bottom).all() and left.min() >= 0 and right.max() <= 1000
    seen = run(model, inputs).last_hidden_state
    moved = run(model, {**inputs, "bbox": inputs["bbox"] // 2}).last_hidden_state
    assert (moved - seen).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("GlmAsrEncoder", (16, 48)),  # frequencies first
        ("Gemma4AudioModel", (48, 128)),  # its config states no frequencies
        ("AudioFlamingo3Encoder", (16, 128)),  # it asks which steps hold any, though its signature does not
        ("ClapModel", (1, 48, 16)),
        ("GraniteSpeech5ForCTC", (48, 4 * 16)),  # it stacks four frames, and its config does not say so
    ],
)
def test_spectrograms_are_laid_as_the_class_runs_on_them(name: str, shape: tuple[int, ...]) -> None:
    model_class, config = tiny(name)
    model = model_class(config)
    inputs = real_inputs(model, 0)
    assert inputs["input_features"].shape == (BATCH, *shape)
    run(model, inputs)
    assert ("input_features_mask" in inputs) == name.startswith("AudioFlamingo")


def test_the_main_input_is_one_that_the_class_takes() -> None:
    """Its name may be inherited from classes that read words."""
    model_class, config = tiny("Idefics3VisionTransformer")
    assert model_class.main_input_name == "input_ids"
    assert real_inputs(build_meta(config, model_class)[0], 0).keys() == {"pixel_values"}
    model_class, config = tiny("CanineModel")  # characters, and no vocabulary
    assert run(model_class(config), real_inputs(build_meta(config, model_class)[0], 0)) is not None


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("Blip2QFormerModel", "S211", "reads query_embeds"),
        ("BarkModel", "S210", r"has no forward pass\n.*grow its parts.*: semantic \(BarkSemanticModel\), "),
        ("GlmImageVQVAE", "S210", r"has no forward pass\n.*grow the model that it is a part of"),
        ("Sam2VideoModel", "S211", r"reads inference_session, a Sam2VideoInferenceSession: only .* tensors"),
    ],
)
def test_what_cannot_be_made_up_is_named(name: str, code: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        real_inputs(build_meta(*tiny(name)[::-1])[0], 0)
    assert caught.value.code == code
