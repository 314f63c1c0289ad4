"""Plain modules grown without a framework behind them, held against the module itself in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.errors import ModelError, NotPreserved, PlanError
from surgeon.graph.captured import describe

OPS = torch.library.Library("mylib", "DEF")
OPS.define("foo(Tensor x) -> Tensor")
OPS.define("bar(Tensor x) -> Tensor")
for _name in ("foo", "bar"):
    OPS.impl(_name, lambda x: x * torch.sin(x), "CompositeExplicitAutograd")
    torch.library.register_fake(f"mylib::{_name}", torch.empty_like, lib=OPS)


def _gradient(context: Any, gradient: Tensor) -> Tensor:
    (x,) = context.saved_tensors
    return gradient * (torch.sin(x) + x * torch.cos(x))


torch.library.register_autograd(
    "mylib::foo",
    _gradient,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    lib=OPS,
)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(self.norm(F.gelu(self.first(x))))))


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.pointwise, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = x + self.pointwise(F.silu(self.norm(self.depthwise(x))))
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


class Running(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(self.inward(x).cumsum(-1))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 20), nn.Linear(20, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.ln1(x)).split(width, dim=2)
        q, k, v = (t.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(31, 12), nn.Embedding(10, 12)
        self.blocks = nn.ModuleList([Block(12, 3), Block(12, 3)])
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 31, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Parameter(torch.zeros(5, 3, 4)), nn.Parameter(torch.zeros(3, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(torch.einsum("bi,ihd->bhd", x, self.inward))
        return torch.einsum("bhd,hdo->bo", hidden, self.outward)


class Shifted(nn.Module):
    """Scores of relative positions, shifted into place by views that mix two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Parameter(torch.zeros(5, 3, 4)), nn.Parameter(torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.einsum("bsi,ihd->bhsd", x, self.inward)
        batch, heads, rows, places = scores.shape
        scores = scores.reshape(batch, heads, places, rows)[:, :, 1:, :]
        return torch.einsum(
            "bhst,ht->bst", scores.reshape(batch, heads, rows, places - 1), self.outward[:, 1:]
        )


class Custom(nn.Module):
    def __init__(self, op: str) -> None:
        super().__init__()
        self.inward, self.outward, self.op = nn.Linear(5, 8), nn.Linear(8, 3), op

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(getattr(torch.ops.mylib, self.op)(self.inward(x)))


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.abs_().add_(0.5)
    return module


def recipe(
    folder: Path, grows: list[str], extra: str = "", spread: str = "symmetric", snr: str = "none"
) -> Path:
    lines = "\n".join(f"    grow {grow}" for grow in grows)
    file = folder / "mine.surgery"
    file.write_text(
        f"{extra}\nrecipe mine() {{\n{lines}\n    spread linear with {spread}\n    noise linear at {snr}\n"
        "    preserve logits\n}\n"
    )
    return file


GPT = ['axis("tokens.weight", 1) by 2', 'axis("blocks.*.up.weight", 0) by 3']
CASES: list[Any] = [
    pytest.param(Mlp, (4, 5), ['axis("first.weight", 0) by 2', 'axis("second.weight", 0) by 3'], id="mlp"),
    pytest.param(Cnn, (4, 3, 6, 6), ['axis("stem.weight", 0) by 2'], id="cnn"),
    pytest.param(Gpt, (4, 7), GPT[1:], id="gpt-ffn"),
    pytest.param(Shifted, (4, 6, 5), ['axis("inward", 1) by 2'], id="shifted"),
    pytest.param(Einsum, (4, 5), ['axis("inward", 1) by 2', 'axis("inward", 2) by 3'], id="einsum"),
]


def held(module: nn.Module, file: Path, x: Tensor) -> nn.Module:
    """Grow, and hold the grown module against the source; returns it."""
    other = (x[:3] * 0.7) if x.is_floating_point() else (x[:3] + 1) % 31
    before = {n: p.detach().clone() for n, p in module.named_parameters(remove_duplicate=False)}
    result = surgeon.apply(file, module, example_inputs=(x,), device="cpu")
    assert result.report.preserved
    assert result.report.exact.outputs < 1e-12
    grown = result.model
    assert grown is not None
    names = {n: p for n, p in grown.named_parameters(remove_duplicate=False)}
    assert names.keys() == before.keys()
    assert any(names[n].shape != before[n].shape for n in names)
    assert {n for n, _ in grown.named_buffers()} == {n for n, _ in module.named_buffers()}
    for inputs in (x, other):  # another batch size than the one traced with
        with torch.no_grad():
            ours, theirs = grown(inputs), module(inputs)
        assert ours.dtype == torch.float64
        assert (ours - theirs).abs().max() < 1e-12 * max(1.0, float(theirs.abs().max()))
    for name, value in module.named_parameters(remove_duplicate=False):
        assert torch.equal(value, before[name]), "the source changed"
    grown(x).square().sum().backward()
    for name, parameter in grown.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in grown.parameters())
    return grown


def inputs(shape: tuple[int, ...], tokens: bool) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if tokens:
        return torch.randint(31, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("make", "shape", "grows"), CASES)
@pytest.mark.parametrize(
    ("spread", "snr"), [("symmetric", "none"), ("uneven(1, 2)", "10 dB"), ("diagonal", "none")]
)
def test_the_grown_module_computes_the_same(
    make: type[nn.Module], shape: tuple[int, ...], grows: list[str], spread: str, snr: str, tmp_path: Path
) -> None:
    file = recipe(tmp_path, grows, spread=spread, snr=snr)
    held(randomised(make()), file, inputs(shape, make is Gpt))


def test_gpt_grows_its_width_and_stays_tied(tmp_path: Path) -> None:
    grown = held(randomised(Gpt()), recipe(tmp_path, GPT), inputs((4, 7), True))
    assert grown.get_parameter("head.weight") is grown.get_parameter("tokens.weight")
    assert grown.get_parameter("head.weight").shape == (31, 24)
    assert grown.get_parameter("blocks.0.up.weight").shape == (60, 24)


def test_an_op_of_ones_own_with_its_rule(tmp_path: Path) -> None:
    extra = "op mylib.foo : pointwise nonlinear\n"
    file = recipe(tmp_path, ['axis("inward.weight", 0) by 3'], extra, "uneven(1, 2)", "10 dB")
    held(randomised(Custom("foo")), file, inputs((4, 5), False))


def test_an_op_without_a_rule_is_refused(tmp_path: Path) -> None:
    file = recipe(tmp_path, ['axis("inward.weight", 0) by 2'])
    with pytest.raises(PlanError) as caught:
        surgeon.apply(file, randomised(Custom("bar")), example_inputs=(inputs((4, 5), False),), device="cpu")
    text = str(caught.value)
    assert "mylib.bar" in text
    assert "test_modules.py:" in text
    assert "op mylib.bar" in text
    assert caught.value.code == "S308"


def test_the_dims_of_an_input_are_refused(tmp_path: Path) -> None:
    file = recipe(tmp_path, ['axis("first.weight", 1) by 2'])
    with pytest.raises(PlanError) as caught:
        surgeon.apply(file, randomised(Mlp()), example_inputs=(inputs((4, 5), False),), device="cpu")
    assert caught.value.code == "S301"


def test_an_op_without_a_backward_is_proved_but_not_trained(tmp_path: Path) -> None:
    file = recipe(tmp_path, ['axis("inward.weight", 0) by 2'], "op mylib.bar : pointwise nonlinear\n")
    result = surgeon.apply(
        file, randomised(Custom("bar")), example_inputs=(inputs((4, 5), False),), device="cpu"
    )
    assert result.report.preserved
    assert result.report.trainability is None
    assert result.report.untrained is not None and "backward" in result.report.untrained


def test_a_wrong_rule_fails_the_exact_check_and_names_the_op(tmp_path: Path) -> None:
    file = recipe(tmp_path, ['axis("inward.weight", 0) by 2'], "op aten.cumsum : pointwise nonlinear\n")
    module = randomised(Running())
    with pytest.raises(NotPreserved) as caught:
        surgeon.apply(file, module, example_inputs=(inputs((4, 5), False),), device="cpu")
    assert caught.value.code == "S501"
    assert "aten.cumsum" in str(caught.value)


def test_the_exported_module_takes_another_batch(tmp_path: Path) -> None:
    module = randomised(Mlp())
    file = recipe(tmp_path, ['axis("first.weight", 0) by 2'])
    x = inputs((4, 5), False)
    surgeon.apply(file, module, tmp_path / "out", example_inputs=(x,), device="cpu")
    loaded = torch.export.load(tmp_path / "out" / "model.pt2").module()
    other = inputs((7, 5), False)
    assert (loaded(other) - module(other)).abs().max() < 1e-12


class Rescaled(nn.Module):
    """Halves a weight in place as it runs, and reads it at a third."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(5, 12), nn.Linear(12, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.outward.weight.div_(2)
        return F.linear(torch.tanh(self.inward(x)), self.outward.weight / 3)


def test_what_a_forward_pass_rewrites_is_no_result(tmp_path: Path) -> None:
    program = torch.export.export(randomised(Rescaled()), (inputs((4, 5), False),))
    captured = describe(program.run_decompositions({}), randomised(Rescaled()))
    assert [node.meta["val"].shape for node in captured.results] == [(4, 4)]
    assert [captured.parameters[p] for p in captured.rewritten.values()] == ["outward.weight"]
    file = recipe(tmp_path, ['axis("inward.weight", 0) by 2'])
    planned = surgeon.plan(file, randomised(Rescaled()), example_inputs=(inputs((4, 5), False),))
    assert planned.transforms["outward.weight"].describe() == "share(1) symmetric"
    module, x = randomised(Rescaled()), inputs((4, 5), False)
    before = module.outward.weight.detach().clone()
    grown = surgeon.apply(file, module, example_inputs=(x,)).model
    assert torch.equal(module.outward.weight, before)
    for _ in range(2):  # at the second call it is a quarter
        torch.testing.assert_close(grown(x), module(x), rtol=0, atol=1e-14)


class Picked(nn.Module):
    """Reads one position of two axes laid into one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.b(torch.relu(self.a(x)))
        return rows.reshape(x.shape[0], 16, 3)[:, 6]


def test_a_position_within_a_product_is_read(tmp_path: Path) -> None:
    file = tmp_path / "wide.surgery"
    file.write_text('recipe wide() {\n    grow axis("a.weight", 0) by 2\n    preserve logits\n}\n')
    module, x = randomised(Picked()), inputs((2, 4, 4, 6), False)
    result = surgeon.apply(file, module, example_inputs=(x,), device="cpu")
    assert result.report.preserved and result.model is not None
    torch.testing.assert_close(result.model(x), module(x), rtol=1e-6, atol=1e-6)


def test_a_parametrization_that_stands_in_the_way_is_to_be_taken_away(tmp_path: Path) -> None:
    """A matrix exponential keeps a weight orthogonal, which copies are not."""
    middle = torch.nn.utils.parametrizations.orthogonal(nn.Linear(8, 8))
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), middle, nn.Tanh(), nn.Linear(8, 3))
    file, x = recipe(tmp_path, ['axis("0.weight", 0), axis("4.weight", 1) by 2']), inputs((4, 5), False)
    with pytest.raises(PlanError) as caught:
        surgeon.apply(file, module.double(), example_inputs=(x,), device="cpu")
    assert caught.value.code == "S308"
    assert "remove_parametrizations" in str(caught.value)
    torch.nn.utils.parametrize.remove_parametrizations(middle, "weight")
    held(randomised(module), file, x)


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--verify", {"verify": "sample"}),
        ("--dtype", {"dtype": "bfloat16"}),
        ("--resume", {"resume": True}),
        ("--shard-size", {"shard_size": "10MB"}),
    ],
)
def test_what_holds_for_folders_alone_is_not_passed_over(
    option: str, given: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "wide.surgery"
    file.write_text('recipe wide() {\n    grow axis("0.weight", 0) by 2\n}\n')
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ModelError, match=f"{option} is for model folders") as caught:
        surgeon.apply(file, module, tmp_path / "out", example_inputs=(torch.ones(2, 3),), **given)
    assert caught.value.code == "S209"
    assert [p.name for p in tmp_path.iterdir()] == ["wide.surgery"]


def test_one_dim_asked_to_grow_to_two_sizes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wide.surgery"
    file.write_text(
        'recipe wide() {\n    grow axis("0.weight", 0) by 2\n    grow axis("1.weight", 1) by 3\n}\n'
    )
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(PlanError, match=r"1\.weight axis 1 .* grow to 8 and to 12") as caught:
        surgeon.plan(file, module, example_inputs=(torch.ones(2, 3),))
    assert caught.value.code == "S314"


@pytest.mark.parametrize(("shares", "apart"), [("1, 2", False), ("1, 2, 4", True)])
def test_of_three_copies_two_that_share_alike_are_not_passed_over(
    shares: str, apart: bool, tmp_path: Path
) -> None:
    file = tmp_path / "wide.surgery"
    file.write_text(
        f'recipe wide() {{\n    grow axis("0.weight", 0) by 3\n    spread linear with uneven({shares})\n}}\n'
    )
    module, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    result = surgeon.apply(file, module, example_inputs=(x,), device="cpu")
    found = result.report.trainability
    assert found is not None and (found.copies[0].asymmetry > 0.1) == apart
    assert any("never separate" in note for note in result.plan.notes) != apart
    assert result.model is not None
    result.model(x).square().sum().backward()
    gradients = [p.grad for p in result.model.parameters() if p.shape == (12, 3)]
    assert gradients[0] is not None
    first, _, last = gradients[0].unflatten(0, (3, 4))
    assert torch.allclose(first, last, rtol=1e-5) != apart
