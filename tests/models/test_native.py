"""Configs changed by field, modules on meta with real buffers, inputs made up: against stock classes."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from versions import CLASSES_OF_5_24

from surgeon.errors import ModelError, fail
from surgeon.models.inputs import BATCH, real_inputs, words
from surgeon.models.layout import disk_names
from surgeon.models.native import (
    build_config,
    build_meta,
    field_value,
    following_fields,
    numeric_fields,
    own_name,
    reason,
)
from surgeon.models.stated import SEQUENCE
from surgeon.models.supply import Supply
from surgeon.surgery.folder import _write_config

SMALL: dict[str, Any] = dict(
    vocab_size=40, hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32
)
IDS: dict[str, Any] = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
HEADS: dict[str, Any] = dict(head_dim=8, num_key_value_heads=1)
MODELS: dict[str, tuple[type, Any]] = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**SMALL, **IDS)),
    "llama tied": (hf.LlamaForCausalLM, hf.LlamaConfig(**SMALL, **IDS, tie_word_embeddings=True)),
    "gpt-neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**SMALL, **IDS)),
    "opt": (
        hf.OPTForCausalLM,
        hf.OPTConfig(
            **{k: v for k, v in SMALL.items() if k != "intermediate_size"},
            **IDS,
            ffn_dim=32,
            word_embed_proj_dim=12,
        ),
    ),
    "gemma": (hf.GemmaForCausalLM, hf.GemmaConfig(**SMALL, **IDS, **HEADS)),
    "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config(**SMALL, **IDS, **HEADS)),
    "bert": (hf.BertModel, hf.BertConfig(**SMALL)),
    "olmo": (hf.OlmoForCausalLM, hf.OlmoConfig(**SMALL, **IDS)),
    "bloom": (hf.BloomForCausalLM, hf.BloomConfig(vocab_size=40, hidden_size=24, n_head=2, n_layer=1, **IDS)),
    "t5": (
        hf.T5ForConditionalGeneration,
        hf.T5Config(
            vocab_size=40, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
        ),
    ),
    "vit": (
        hf.ViTModel,
        hf.ViTConfig(**{k: v for k, v in SMALL.items() if k != "vocab_size"}, image_size=32, patch_size=8),
    ),
}


def groups(module: nn.Module) -> list[list[str]]:
    """The names that share a parameter."""
    found: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return sorted(names for names in found.values() if len(names) > 1)


class Placing(hf.BertModel):
    """A class with buffers of every sort: drawn and saved, drawn and made anew, made of numbers, empty."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.register_buffer("drawn", torch.randn(2, 3))
        self.register_buffer("again", self.drawn)
        self.register_buffer("fleeting", torch.randn(2, 3), persistent=False)
        self.register_buffer("made", torch.arange(6.0))
        self.register_buffer("empty", torch.zeros(2, 3))
        self.register_buffer("order", torch.randperm(1000))
        self.register_buffer("like", torch.zeros_like(self.embeddings.word_embeddings.weight))  # without data


def test_a_buffer_that_is_drawn_and_saved_is_a_weight() -> None:
    config = MODELS["bert"][1]
    module, buffers = build_meta(config, Placing)
    assert (
        not {"drawn", "again"} & buffers.keys() and {"fleeting", "made", "empty", "order"} <= buffers.keys()
    )
    parameters = dict(module.named_parameters())
    assert parameters["drawn"].shape == (2, 3) and not parameters["drawn"].requires_grad
    assert module.again is module.drawn
    assert parameters.keys() - {"drawn"} == dict(hf.BertModel(config).named_parameters()).keys()
    assert module.state_dict().keys() == Placing(config).state_dict().keys()


@pytest.mark.parametrize("name", MODELS)
def test_a_module_on_meta_is_the_stock_one_with_its_buffers(name: str) -> None:
    model_class, config = MODELS[name]
    before = config.to_dict()
    module, buffers = build_meta(config, model_class)
    stock = model_class(config)
    assert config.to_dict() == before
    assert all(t.is_meta for t in (*module.parameters(), *module.buffers()))
    assert not any(m.training for m in module.modules())
    assert {n: (p.shape, p.dtype) for n, p in module.named_parameters(remove_duplicate=False)} == {
        n: (p.shape, p.dtype) for n, p in stock.named_parameters(remove_duplicate=False)
    }
    assert groups(module) == groups(stock)
    expected = dict(stock.named_buffers())
    assert buffers.keys() == expected.keys()
    for key, value in expected.items():
        assert buffers[key].dtype == value.dtype
        assert torch.equal(buffers[key], value), key


def test_buffers_are_those_of_from_pretrained_in_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    model_class, config = MODELS["gemma"]
    model_class(config).to(torch.bfloat16).save_pretrained(tmp_path)
    stock = model_class.from_pretrained(tmp_path)
    module, buffers = build_meta(hf.AutoConfig.from_pretrained(tmp_path), model_class)
    assert next(module.parameters()).dtype == torch.bfloat16
    for key, value in stock.named_buffers():
        assert torch.equal(buffers[key], value), key


def test_parameters_are_registered_as_ever_afterwards() -> None:
    register = nn.Module.register_parameter
    build_meta(MODELS["llama"][1], hf.LlamaForCausalLM)
    with pytest.raises(ModelError):
        build_meta(object(), hf.LlamaForCausalLM)
    assert nn.Module.register_parameter is register
    assert not nn.Linear(2, 2).weight.is_meta


def test_eight_billion_parameters_cost_nothing() -> None:
    config = hf.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    module, _ = build_meta(config, hf.LlamaForCausalLM)
    assert sum(p.numel() for p in module.parameters()) == 8_030_261_248
    assert time.perf_counter() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100 * 1024


@pytest.mark.parametrize("name", MODELS)
def test_made_up_inputs_run_and_keep_away_from_special_ids(name: str) -> None:
    model_class, config = MODELS[name]
    model = model_class(config).eval()
    inputs = real_inputs(model, seed=3)
    with torch.no_grad():
        output = model(**inputs)
    assert all(v.isfinite().all() for v in output.values() if isinstance(v, torch.Tensor))
    for key in ("input_ids", "decoder_input_ids"):
        if key in inputs:
            special = {v for k, v in config.to_dict().items() if k.endswith("_token_id")}
            plain = inputs[key].clone()
            if config.is_encoder_decoder and key == "input_ids":  # it ends as texts do
                ends = torch.arange(len(plain)), inputs["attention_mask"].sum(1) - 1
                assert (plain[ends] == config.eos_token_id).all()
                plain[ends] = int(plain[0, 0])
            assert not set(plain.flatten().tolist()) & special
            assert int(inputs[key].max()) < config.vocab_size
    if "attention_mask" in inputs:
        rows = inputs["attention_mask"]
        assert rows.min() == 0 and int(rows.sum(1).min()) >= 3
        assert (rows.diff(dim=1) <= 0).all()  # padded on the right only
        assert words(model, 3)["attention_mask"].min() == 1
    again, other = real_inputs(model, seed=3), real_inputs(model, seed=4)
    main = model.main_input_name
    assert torch.equal(again[main], inputs[main])
    assert not torch.equal(other[main], inputs[main])
    module, _ = build_meta(config, model_class)
    example = Supply().example(module)
    assert example.keys() == inputs.keys()
    for key, value in example.items():
        if isinstance(value, torch.Tensor):
            assert value.is_meta
            assert (value.shape, value.dtype) == (inputs[key].shape, inputs[key].dtype)


def test_special_ids_in_lists_are_kept_away_from() -> None:
    config = hf.LlamaConfig(**{**SMALL, "vocab_size": 6}, bos_token_id=0, eos_token_id=[1, 2], pad_token_id=5)
    ids = real_inputs(hf.LlamaForCausalLM(config), seed=0)["input_ids"]
    assert set(ids.flatten().tolist()) == {3, 4}


def test_an_input_that_cannot_be_made_up() -> None:
    sizes = {"state_dim": 5, "act_dim": 3, "hidden_size": 16, "n_layer": 1, "n_head": 2}
    module, _ = build_meta(hf.DecisionTransformerConfig(**sizes), hf.DecisionTransformerModel)
    with pytest.raises(ModelError, match="TransformerModel reads states, which surgeon cannot") as caught:
        real_inputs(module, 0)
    assert caught.value.code == "S211"


def test_a_main_input_that_is_only_inherited_is_not_asked_for() -> None:
    module, _ = build_meta(hf.LlamaConfig(**SMALL), hf.LlamaForCausalLM)
    module.main_input_name = "molecules"
    assert real_inputs(module, 0).keys() == {"input_ids", "attention_mask", "use_cache"}


def test_a_sound_makes_a_few_steps_of_its_convolutions() -> None:
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = hf.Wav2Vec2Config(
        **small, conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2), num_conv_pos_embeddings=4
    )
    model = hf.Wav2Vec2Model(config).eval()
    with torch.no_grad():
        assert model(**real_inputs(model, 0)).last_hidden_state.shape == (BATCH, SEQUENCE, 16)


def test_fields() -> None:
    config = hf.GPT2Config(n_embd=24, n_head=2, n_layer=3)
    assert field_value(config, "n_embd") == field_value(config, "hidden_size") == 24
    assert field_value(config, "nothing") is None
    assert field_value(config, "text_config.nothing") is None
    fields = numeric_fields(config)
    assert (fields["n_embd"], fields["n_head"], fields["n_layer"]) == (24, 2, 3)
    assert not any(name.endswith("_token_id") for name in fields)
    nested = hf.CLIPConfig(text_config=dict(hidden_size=24), vision_config=dict(hidden_size=36))
    assert numeric_fields(nested)["text_config.hidden_size"] == 24
    assert field_value(nested, "vision_config.hidden_size") == 36


def test_a_changed_config_differs_in_that_field_only() -> None:
    config = hf.LlamaConfig(**SMALL)
    saved = config.to_dict()
    grown = build_config(config, {"hidden_size": 48})
    assert type(grown) is type(config)
    assert config.to_dict() == saved
    assert {k for k, v in grown.to_dict().items() if saved[k] != v} == {"hidden_size"}
    assert grown.head_dim == 12  # as it was, and not 48 / 2


def test_a_field_by_its_common_name_and_a_nested_one() -> None:
    assert build_config(hf.GPT2Config(n_embd=24, n_head=2), {"hidden_size": 48}).n_embd == 48
    config = hf.CLIPConfig(text_config=dict(hidden_size=24), vision_config=dict(hidden_size=36))
    grown = build_config(config, {"text_config.hidden_size": 48})
    assert (grown.text_config.hidden_size, grown.vision_config.hidden_size) == (48, 36)


def test_a_nested_field_is_written_under_the_name_that_its_own_class_has_for_it(tmp_path: Path) -> None:
    config = hf.Florence2Config(text_config=dict(d_model=24, encoder_attention_heads=2))
    assert own_name(config, "text_config.hidden_size") == "text_config.d_model"
    assert own_name(config, "vision_config.projection_dim") == "vision_config.projection_dim"
    source: Any = SimpleNamespace(brings_code=False, config=config, content={"text_config": {"d_model": 24}})
    changes = {"text_config.hidden_size": (24, 48), "text_config.num_attention_heads": (2, 4)}
    plan: Any = SimpleNamespace(config_changes=changes)
    _write_config(source, plan, tmp_path, None)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == {"text_config": {"d_model": 48, "encoder_attention_heads": 4}}


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"num_attention_heads": 5}, ("LlamaConfig refuses num_attention_heads = 5: ", "(24)", "(5)")),
        ({"hidden_size": "wide"}, ("LlamaConfig refuses hidden_size = wide: ", "expected int")),
        ({"hiden_size": 48}, ("LlamaConfig has no field hiden_size", "did you mean `hidden_size`?")),
        ({"text_config.hidden_size": 48}, ("LlamaConfig has no field text_config.hidden_size",)),
        ({"hidden_size.x": 48}, ("LlamaConfig has no field hidden_size.x",)),
    ],
)
def test_a_change_that_the_class_refuses(changes: dict[str, Any], texts: tuple[str, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        build_config(hf.LlamaConfig(**SMALL), changes)
    assert caught.value.code == "S220"
    for text in texts:
        assert text in str(caught.value)
    assert "\n" not in caught.value.diagnostics[0].message


def test_a_config_that_only_the_model_refuses() -> None:
    with pytest.raises(
        ModelError, match="OPTConfig refuses this config: embed_dim must be divisible"
    ) as caught:
        build_meta(hf.OPTConfig(hidden_size=24, num_attention_heads=5), hf.OPTForCausalLM)
    assert caught.value.code == "S220"


def test_names_on_disk_with_and_without_prefix_and_as_they_were_once() -> None:
    module, _ = build_meta(MODELS["bert"][1], hf.BertModel)
    for prefix in ("", "bert."):
        disk = [f"{prefix}{n}" for n in module.state_dict()]
        assert disk_names(module, disk) == dict(zip(module.state_dict(), disk, strict=True))
    once = "bert.embeddings.LayerNorm.gamma"
    assert disk_names(module, [once])["embeddings.LayerNorm.weight"] == once


def test_what_is_larger_than_any_buffer_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from surgeon.models import native

    monkeypatch.setattr(native, "HUGE", 100)
    with native.parameters_on_meta():
        assert torch.empty(11, 10).is_meta
        assert not torch.empty(10, 10).is_meta
        assert not torch.zeros(11, 10).is_meta  # a value, perhaps a buffer's


@CLASSES_OF_5_24
def test_a_field_that_differs_by_layer_is_none_of_all() -> None:
    """transformers raises another error than for a field that is not there."""
    config = hf.Dots3NoteTextConfig(
        num_hidden_layers=2, layer_types=["indexed_attention", "sliding_attention"]
    )
    with pytest.raises(RuntimeError, match="per-layer"):
        _ = config.qk_nope_head_dim
    assert field_value(config, "qk_nope_head_dim") is None and field_value(config, "hidden_size") == 5120


def test_what_only_says_what_follows_from_other_fields_is_none_to_grow() -> None:
    class Told(hf.LlamaConfig):
        @property
        def width(self) -> int:
            return int(self.hidden_size)

    assert Told(hidden_size=8).width == 8
    assert field_value(Told(hidden_size=8), "width") is None
    assert field_value(Told(hidden_size=8), "hidden_size") == 8


def test_lists_of_sizes_that_the_class_derives_follow_what_it_derives_them_of() -> None:
    config = hf.EfficientLoFTRConfig(
        out_features=[16, 24, 32, 64], hidden_size=64, stage_num_blocks=[1, 1, 2, 1]
    )
    wide = {"hidden_size": 128, "out_features": [16, 24, 32, 128]}
    assert following_fields(config, wide) == {
        "intermediate_size": 256,
        "stage_block_out_channels": [[16], [24], [32, 32], [128]],
        "fine_fusion_dims": [128, 32, 24],
    }
    assert not following_fields(config, {})


def test_a_refusal_of_our_own_says_what_was_refused() -> None:
    error = fail(ModelError, "S210", "Net makes a tensor of data", help="make it once, as a buffer")
    assert reason(error) == "Net makes a tensor of data"


def test_where_attention_is_not_one_op_everywhere_each_part_has_it_as_the_class_chooses() -> None:
    config = hf.GroundingDinoConfig(encoder_layers=1, decoder_layers=1)
    config.text_config.num_hidden_layers = 1
    module, _ = build_meta(config, hf.GroundingDinoModel)
    with torch.device("meta"):
        stock = hf.GroundingDinoModel(config)
    ways = {name: part.config._attn_implementation for name, part in parts_of(stock).items()}
    assert ways == {name: part.config._attn_implementation for name, part in parts_of(module).items()}
    assert {"sdpa", "eager"} <= set(ways.values())  # whose readings of the words' mask are not one


def parts_of(module: Any) -> dict[str, Any]:
    return {name: part for name, part in module.named_modules() if hasattr(part, "config")}
