"""Expansion and proof on a CUDA device give what they give on the CPU: weights to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from coverage import make
from torch import nn

import surgeon

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
RECIPE = """recipe wide() {
    grow hidden, ffn, heads by 2
    spread linear with uneven(1, 2)
    noise linear at 10 dB
    preserve logits
}
"""


def test_a_module_grows_on_cuda_as_on_the_cpu(tmp_path: Path) -> None:
    recipe = tmp_path / "wide.surgery"
    recipe.write_text('recipe wide() {\n    grow axis("0.weight", 0) by 5/2\n    noise linear at 10 dB\n}\n')
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3))
    inputs = (torch.randn(4, 5),)
    on_cpu = surgeon.apply(recipe, module, example_inputs=inputs, device="cpu")
    on_cuda = surgeon.apply(recipe, module, example_inputs=inputs, device=DEVICE)
    assert on_cuda.report.preserved
    assert on_cuda.report.exact is not None and on_cuda.report.exact.outputs < 1e-14
    assert on_cpu.model is not None and on_cuda.model is not None
    for name, value in on_cpu.model.state_dict().items():
        assert torch.equal(on_cuda.model.state_dict()[name].cpu(), value), name


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "LlamaForCausalLM"),
        ("mixtral", "MixtralForCausalLM"),
        ("gpt2", "GPT2LMHeadModel"),
        ("mamba2", "Mamba2ForCausalLM"),
        ("vit", "ViTForImageClassification"),
        ("t5", "T5ForConditionalGeneration"),
    ],
)
def test_a_folder_grown_on_cuda_has_the_bytes_of_one_grown_on_the_cpu(
    model_type: str, name: str, tmp_path: Path
) -> None:
    recipe, source = tmp_path / "wide.surgery", tmp_path / "source"
    recipe.write_text(RECIPE)
    make(model_type, name, source)
    for device, folder in (("cpu", "slow"), (DEVICE, "fast")):
        result = surgeon.apply(recipe, source, tmp_path / folder, device=device)
        assert result.report.preserved, device
    slow, fast = sorted((tmp_path / "slow").iterdir()), sorted((tmp_path / "fast").iterdir())
    assert [file.name for file in slow] == [file.name for file in fast]
    for one, other in zip(slow, fast, strict=True):
        if one.suffix == ".safetensors":
            assert one.read_bytes() == other.read_bytes(), one.name
    assert surgeon.verify(source, tmp_path / "slow", device=DEVICE).preserved
