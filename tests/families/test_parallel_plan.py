"""The inferred anatomy held against transformers' own plans for tensor parallelism: they name the modules
whose outputs are cut (colwise) and those whose inputs are (rowwise), which a person wrote down by hand.

What is cut between two modules is a dim: the outermost of the one's output must be that of the other's input.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_configs import TWEAKS, tiny_config

import surgeon
from surgeon.axes.store import Axis, Store

SAMPLE = {
    "LlamaForCausalLM": "grouped queries",
    "Qwen3ForCausalLM": "norms per head",
    "GPTNeoXForCausalLM": "a fused projection",
    "NemotronForCausalLM": "no gate",
    "MixtralForCausalLM": "experts, gate and up packed",
    "DeepseekV3ForCausalLM": "shared and routed experts",
}
CUT = {"colwise": -2, "packed_colwise": -2, "rowwise": -1}
"""The axis of a weight that is cut."""


@pytest.mark.parametrize("name", SAMPLE)
def test_what_a_parallel_plan_cuts_is_one_dim(name: str, tmp_path: Path) -> None:
    model_class: Any = getattr(transformers, name)
    config = tiny_config(model_class.config_class, TWEAKS.get(model_class.config_class.model_type))
    config.architectures = [name]
    if config.base_model_tp_plan is None:
        pytest.skip("this version of transformers gives it none")
    config.save_pretrained(tmp_path)
    anatomy = surgeon.dims(tmp_path / "config.json")
    cut: dict[str, dict[str, set[int]]] = {}
    for parameter in anatomy.captured.parameters.values():
        style = _style(parameter, config.base_model_tp_plan)
        axes = anatomy.parameter_axes(parameter)
        if style in CUT and len(axes) > 1:
            block = parameter.removesuffix(".weight").rpartition(".")[0]
            found = _outermost(anatomy.store, axes[CUT[style]])
            cut.setdefault(block, {}).setdefault(style.removeprefix("packed_"), set()).update(found)
    assert len(cut) >= 2 * config.num_hidden_layers - 1  # DeepSeek's attention is not cut
    for block, sides in cut.items():
        assert sides["colwise"] == sides["rowwise"], block
        assert not any(anatomy.store.pins_of(dim) for dim in sides["colwise"]), block


def _style(parameter: str, plan: dict[str, str]) -> str:
    module = parameter.partition(".")[2].removesuffix(".weight")
    return next((style for pattern, style in plan.items() if fnmatchcase(module, pattern)), "")


def _outermost(store: Store, axis: Axis) -> set[int]:
    return {word[0] for word in store.words(axis) if isinstance(word[0], int)}
