"""Inputs of the user's own: a model is traced on them, and proved on them in both graphs and by stock."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from torch import Tensor

import surgeon
from surgeon import cli
from surgeon.errors import ModelError, PlanError
from surgeon.models.supply import Supply, nested
from surgeon.verification.native import observe

RECIPE = "recipe wider() {\n    grow hidden by 2\n    noise linear at 10 dB\n}\n"


@pytest.fixture
def decider(tmp_path: Path) -> Path:
    """A class that reads states, actions and returns: nothing that surgeon could make up."""
    torch.manual_seed(0)
    config = hf.DecisionTransformerConfig(
        state_dim=5, act_dim=3, hidden_size=16, n_layer=2, n_head=2, max_ep_len=12, n_positions=64
    )
    model = hf.DecisionTransformerModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "wider.surgery").write_text(RECIPE)
    save_file(trajectory(), tmp_path / "inputs.safetensors")
    return tmp_path


def trajectory() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "states": torch.randn(2, 4, 5, generator=generator),
        "actions": torch.randn(2, 4, 3, generator=generator),
        "rewards": torch.randn(2, 4, 1, generator=generator),
        "returns_to_go": torch.randn(2, 4, 1, generator=generator),
        "timesteps": torch.arange(8).reshape(2, 4) % 5,
        "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]),
    }


def test_a_class_grows_on_inputs_that_are_given(
    decider: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def main(words: list[str]) -> int:
        monkeypatch.setattr(sys, "argv", ["surgeon", *words])
        return cli.run()

    arguments = [str(decider / "wider.surgery"), str(decider / "source"), "--out", str(decider / "out")]
    inputs = ["--inputs", str(decider / "inputs.safetensors")]
    assert main(["apply", *arguments, "--device", "cpu"]) == 2
    said = capfd.readouterr().err
    assert "error[S211]: DecisionTransformerModel reads states, which surgeon cannot make up" in said
    assert "help: give inputs of your own: --inputs FILE, a safetensors file with tensors by name" in said
    assert main(["apply", *arguments, *inputs, "--device", "cpu"]) == 0
    assert main(["verify", str(decider / "source"), str(decider / "out"), *inputs, "--device", "cpu"]) == 0
    seen = {}
    for place in ("source", "out"):
        model = hf.DecisionTransformerModel.from_pretrained(decider / place, dtype=torch.float64).eval()
        given = {n: t.double() if t.is_floating_point() else t for n, t in trajectory().items()}
        given["states"] = given["states"] + 1  # no states of the proof
        with torch.no_grad():
            seen[place] = model(**given)
    assert seen["out"].last_hidden_state.shape[-1] == 32
    for name in ("state_preds", "action_preds", "return_preds"):
        torch.testing.assert_close(seen["out"][name], seen["source"][name], rtol=0, atol=1e-5)


def test_the_trace_and_stock_run_on_what_is_given(decider: Path) -> None:
    config = hf.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = hf.LlamaForCausalLM(config).eval()
    model.save_pretrained(decider / "llama")
    given = {"input_ids": torch.tensor([[3, 7, 11, 5]])}
    anatomy = surgeon.plan(decider / "wider.surgery", decider / "llama", example_inputs=given).anatomy
    (ids,) = (node for node in anatomy.captured.nodes if node.name == "input_ids")
    assert ids.meta["val"].shape == (1, 4)
    seen = observe(model, torch.float32, ("logits",), Supply(given))
    with torch.no_grad():
        assert torch.equal(seen.outputs["logits"], model(**given).logits)


def test_what_is_as_wide_as_an_input_of_ones_own_does_not_grow(decider: Path) -> None:
    """The larger class no longer takes the input, and the message says which it is and where it is read."""
    config = hf.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    hf.LlamaForCausalLM(config).save_pretrained(decider / "embedded")
    given = {"inputs_embeds": torch.randn(1, 4, 16)}
    with pytest.raises(PlanError, match=r"an input of the model is as wide, inputs_embeds\[2\]") as caught:
        surgeon.plan(decider / "wider.surgery", decider / "embedded", example_inputs=given)
    assert caught.value.code == "S301"
    assert "config.hidden_size cannot grow to 32" in str(caught.value)
    assert "it is one dim with model.layers.0." in str(caught.value)


def test_inputs_within_inputs_are_named_by_their_way() -> None:
    a, b, c = (torch.full((2,), n) for n in range(3))
    laid = nested({"x": a, "states.full.1": b, "states.full.0": c, "states.near": a})
    assert laid["x"] is a and laid["states"]["near"] is a
    assert laid["states"]["full"][0] is c and laid["states"]["full"][1] is b
    for wrong, said in (
        ({"x": a, "x.0": b}, "x is given whole, and in parts too"),
        ({"x.0": a, "x": b}, "x is given whole, and in parts too"),
        ({"x.0": a, "x.2": b}, "x is given in the parts 0, 2, which are no places of a tuple"),
        ({"x.y.1": a, "x.z": b}, r"x\.y is given in the parts 1, which"),
    ):
        with pytest.raises(ModelError, match=said) as caught:
            nested(wrong)
        assert caught.value.code == "S224"


def shared() -> dict[str, Tensor]:
    """The next word as a larger model has it, and what that model's attention keeps: pairs in a mapping."""
    generator = torch.Generator().manual_seed(1)
    kinds = [(kind, n) for kind in ("full_attention", "sliding_attention") for n in range(2)]
    states = {
        f"shared_kv_states.{kind}.{n}": torch.randn(2, 2, 6, 4, generator=generator) for kind, n in kinds
    }
    return {"inputs_embeds": torch.randn(2, 1, 24, generator=generator), **states}


def test_a_class_grows_on_tensors_within_its_inputs(decider: Path) -> None:
    text = hf.Gemma4UnifiedTextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        global_head_dim=4,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = hf.Gemma4UnifiedAssistantConfig(text_config=text, backbone_hidden_size=12)
    model = hf.Gemma4UnifiedAssistantForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(decider / "assistant")
    recipe, out = decider / "wider.surgery", decider / "wide"
    result = surgeon.apply(recipe, decider / "assistant", out, example_inputs=shared(), device="cpu")
    assert result.report.native is not None and result.report.native.passed
    states = shared()
    pairs = {
        kind: tuple(states[f"shared_kv_states.{kind}.{n}"].double() + 1 for n in range(2))  # not the proof's
        for kind in ("full_attention", "sliding_attention")
    }
    seen = []
    for place in (decider / "assistant", out):
        stock = hf.Gemma4UnifiedAssistantForCausalLM.from_pretrained(place, dtype=torch.float64).eval()
        with torch.no_grad():
            seen.append(stock(inputs_embeds=states["inputs_embeds"].double(), shared_kv_states=pairs))
    assert stock.config.text_config.hidden_size == 32
    torch.testing.assert_close(seen[1].logits, seen[0].logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[1].last_hidden_state, seen[0].last_hidden_state, rtol=0, atol=1e-5)
    heads = decider / "heads.surgery"
    heads.write_text("recipe more() {\n    grow heads by 2\n}\n")
    with pytest.raises(PlanError, match="an input of the model is as wide, shared_kv_states_") as caught:
        surgeon.plan(heads, decider / "assistant", example_inputs=shared())
    assert caught.value.code == "S301"


def test_wrong_inputs_are_told(decider: Path) -> None:
    source, recipe = decider / "source", decider / "wider.surgery"
    nonsense = decider / "inputs.txt"
    nonsense.write_text("states")
    empty = decider / "empty.safetensors"
    save_file({}, empty)
    renamed = {name.replace("returns", "return"): tensor for name, tensor in trajectory().items()}
    for given, text in (
        (
            renamed,
            "DecisionTransformerModel takes no input return_to_go\n  help: did you mean `returns_to_go`?",
        ),
        (nonsense, "inputs.txt cannot be read as inputs"),
        (decider / "nowhere.safetensors", "nowhere.safetensors cannot be read as inputs"),
        (empty, "holds no tensors\n  expected: one for each input, by name"),
        ((torch.zeros(1),), "takes inputs by name\n  expected: a mapping, or a file"),
    ):
        with pytest.raises(ModelError) as caught:
            surgeon.plan(recipe, source, example_inputs=given)
        assert caught.value.code == "S224" and text in str(caught.value)


def test_inputs_that_the_class_cannot_take_are_doubted(decider: Path) -> None:
    given = {**trajectory(), "states": trajectory()["states"][..., :4]}
    with pytest.raises(ModelError) as caught:
        surgeon.plan(decider / "wider.surgery", decider / "source", example_inputs=given)
    assert caught.value.code == "S210"
    assert "DecisionTransformerModel fails when it is called, traced or not: " in str(caught.value)
    assert "note: its inputs are your own: are their dtypes, shapes and numbers" in str(caught.value)
