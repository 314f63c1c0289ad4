"""The inferred anatomy held against transformers' own plans for tensor parallelism: they name the modules
whose outputs are cut (colwise) and those whose inputs are (rowwise), which a person wrote down by hand.

What is cut between two modules is a dim: the outermost of the one's output must be that of the other's input.
`benchmarks/parallel_plans.py` does so for every config that has a plan.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from parallel_plans import cut_dims
from tiny_configs import TWEAKS, tiny_config

import surgeon

SAMPLE = {
    "LlamaForCausalLM": "grouped queries",
    "Qwen3ForCausalLM": "norms per head",
    "GPTNeoXForCausalLM": "a fused projection",
    "NemotronForCausalLM": "no gate",
    "MixtralForCausalLM": "experts, gate and up packed",
    "DeepseekV3ForCausalLM": "shared and routed experts",
}


@pytest.mark.parametrize("name", SAMPLE)
def test_what_a_parallel_plan_cuts_is_one_dim(name: str, tmp_path: Path) -> None:
    model_class: Any = getattr(transformers, name)
    config = tiny_config(model_class.config_class, TWEAKS.get(model_class.config_class.model_type))
    config.architectures = [name]
    plan = config.base_model_tp_plan
    if plan is None:
        pytest.skip("this version of transformers gives it none")
    config.save_pretrained(tmp_path)
    anatomy = surgeon.dims(tmp_path / "config.json")
    prefix = model_class.base_model_prefix
    cut = cut_dims(anatomy, {f"{prefix}.{pattern}": style for pattern, style in plan.items()})
    assert len(cut) >= 2 * config.num_hidden_layers - 1  # DeepSeek's attention is not cut
    for block, sides in cut.items():
        assert sides["colwise"] == sides["rowwise"], block
        assert not any(anatomy.store.pins_of(dim) for dim in sides["colwise"]), block
