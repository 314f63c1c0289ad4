"""Tensors whose elements are those of others, moved: any box of them is what the conversion itself makes, and
a checkpoint converted a few rows at a time is bit for bit the one converted whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from surgeon.checkpoints import tensors
from surgeon.checkpoints.moves import record
from surgeon.checkpoints.reading import open_checkpoint
from surgeon.checkpoints.tensors import Box
from surgeon.errors import CheckpointError
from surgeon.language import load
from surgeon.models.source import open_source
from surgeon.models.stored import StoredModel, open_stored
from surgeon.rewriting.checkpoint import GrownCheckpoint
from surgeon.surgery.subject import Surgery, examine, plan_surgery

CPU = torch.device("cpu")
SIZES: dict[str, Any] = dict(
    vocab_size=31,
    hidden_size=16,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_hidden_layers=1,
    max_position_embeddings=16,
)
ROUTED: dict[str, Any] = dict(moe_intermediate_size=12, num_experts_per_tok=2)
LATENT: dict[str, Any] = dict(
    q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4, head_dim=4
)


def moved(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Much of what a conversion may do."""
    both = torch.cat([torch.stack([given["a"], given["b"]]), torch.stack([given["b"], given["a"]])], 1)
    turned = both.reshape(2, 3, 2, 4).transpose(1, 2).reshape(2, 6, 4).contiguous()
    one, other = turned.chunk(2, dim=1)
    return {
        "one": one.contiguous(),
        "other": other[1],
        "both": both,
        "permuted": both.permute(2, 0, 1).contiguous().unsqueeze(0).squeeze(0),
        "unbound": both.unbind(1)[-1],
        "flat": both.view(-1),
        "end": both[:, -2:],
        "scattered": torch.split(both, [1, 2, 3], 1)[2].flatten(1),
        "untouched": given["a"],
    }


GIVEN = {"a": torch.arange(12.0).reshape(3, 4), "b": 100 + torch.arange(12.0).reshape(3, 4)}


def on_meta(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("meta") for name, tensor in given.items()}


@settings(deadline=None)
@given(st.data())
def test_any_box_is_what_the_conversion_makes(data: st.DataObject) -> None:
    made, moves = record(moved, on_meta(GIVEN))
    assert moves is not None
    whole = moved(dict(GIVEN))
    name = data.draw(st.sampled_from(sorted(whole)))
    assert made[name].shape == moves[name].shape == whole[name].shape
    box = tuple(
        (min(side), max(side))
        for side in (data.draw(st.tuples(*[st.integers(0, size)] * 2)) for size in whole[name].shape)
    )

    def read(given: str, wanted: Box) -> Tensor:
        return GIVEN[given][tuple(slice(*side) for side in wanted)]

    assert torch.equal(moves[name].read(box, read), whole[name][tuple(slice(*side) for side in box)])


@pytest.mark.parametrize(
    "convert",
    [
        lambda given: {"x": given["a"] + 1},
        lambda given: {"x": given["a"].to(torch.bfloat16)},
        lambda given: {"x": torch.cat([given["a"], given["b"].to(torch.bfloat16)])},
        lambda given: {"x": given["a"].add_(1)},
        lambda given: {"x": torch.cat([given["a"], given["a"].new_zeros(1, 4)])},
        lambda given: {"x": given["a"][::2]},
        lambda given: {"x": given["a"].expand(2, 3, 4)},
        lambda given: {"x": given["a"], "y": given["a"][given["a"].new_zeros(2, dtype=torch.long)]},
        lambda given: (given["a"].view(-1)[:2].fill_(0), {"x": given["a"]})[1],
    ],
)
def test_what_does_more_than_move_is_not_taken_for_a_move(
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    assert record(convert, on_meta(GIVEN))[1] is None


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(intermediate_size=24, num_local_experts=4, **SIZES)
    return transformers.MixtralForCausalLM(config)


def qwen() -> nn.Module:
    config = transformers.Qwen3MoeConfig(num_experts=4, intermediate_size=24, **ROUTED, **SIZES)
    return transformers.Qwen3MoeForCausalLM(config)


def deepseek() -> nn.Module:
    routed = dict(n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=0)
    config = transformers.DeepseekV3Config(intermediate_size=24, **ROUTED, **routed, **LATENT, **SIZES)
    return transformers.DeepseekV3ForCausalLM(config)


def grown(folder: Path, recipe: str) -> tuple[Surgery, StoredModel, GrownCheckpoint]:
    program = load(recipe, {})
    subject = examine(open_source(str(folder)), program)
    surgery = plan_surgery(subject, program.recipes[-1], program)
    assert surgery.module is not None
    stored = open_stored(subject.module, subject.anatomy.captured.aliases, open_checkpoint(folder))
    layout = stored.layout.of(surgery.module)
    return surgery, stored, GrownCheckpoint(stored, surgery.plan.transforms, layout, None, CPU)


@pytest.mark.parametrize("recipe", ["hyperclone", "grow"])
@pytest.mark.parametrize("make", [mixtral, qwen, deepseek])
def test_experts_are_grown_row_by_row_as_they_are_whole(
    make: Callable[[], nn.Module], recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "BLOCK_ELEMENTS", 100)
    torch.manual_seed(0)
    make().to(torch.bfloat16).save_pretrained(tmp_path / "source")
    surgery, stored, by_rows = grown(tmp_path / "source", recipe)
    bundles = stored.layout.bundles
    assert bundles and all(bundle.moves is not None for bundle in bundles)
    assert not by_rows.converted
    unknown = replace(stored.layout, bundles=tuple(replace(bundle, moves=None) for bundle in bundles))
    whole_source = replace(stored, layout=unknown)
    assert surgery.module is not None
    whole = GrownCheckpoint(whole_source, by_rows.transforms, unknown.of(surgery.module), None, CPU)
    assert len(whole.converted) == len(bundles)
    assert [spec.name for spec in whole.specs()] == [spec.name for spec in by_rows.specs()]
    several = 0
    for bundle in bundles:
        for name in bundle.held:
            held, alone = stored.open(name), whole_source.read(name)
            assert not isinstance(held, Tensor)
            assert torch.equal(stored.read(name), alone)
            assert torch.equal(held.at(2).rows(3, 9), alone[2, 3:9])
        for name in bundle.stored:
            blocks = list(by_rows.produce(name))
            several += len(blocks) > 1
            (wanted,) = whole.produce(name)
            assert torch.equal(torch.cat([b.flatten() for b in blocks]), wanted.flatten()), name
    assert several


def fused() -> nn.Module:
    return transformers.HrmTextForCausalLM(transformers.HrmTextConfig(intermediate_size=24, **SIZES))


@pytest.mark.parametrize(
    ("make", "part", "why"),
    [
        (mixtral, "layers.0.block_sparse_moe.experts.1.w1.weight", "stack expects each tensor to be equal"),
        (fused, "layers.0.attn.gqkv_proj.weight", "v_proj.weight would be"),
    ],
)
def test_parts_that_do_not_fit_the_layout_are_named(
    make: Callable[[], nn.Module], part: str, why: str, tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    state = load_file(file)
    name = next(n for n in state if n.endswith(part))
    state[name] = state[name][:-1].clone()
    save_file(state, file)
    with pytest.raises(CheckpointError) as caught:
        grown(tmp_path / "source", "hyperclone")
    (said,) = caught.value.diagnostics
    assert said.code == "S406" and why in said.message
    assert said.message.startswith(f"{name} in {file.name} has the shape {tuple(state[name].shape)}")
