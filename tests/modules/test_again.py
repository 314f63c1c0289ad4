"""A module that has grown is a module like any other: it is copied, saved, grown again, and proved against
its source after the fact. The source is the oracle, and a weight that is changed by hand."""

from __future__ import annotations

import copy
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon import cli
from surgeon.errors import ModelError, PlanError
from surgeon.models.source import open_source

RECIPE = """recipe wider() {
    grow axis("inward.weight", 0) by 2
    spread linear with uneven(1, 2)
    noise linear at 20 dB
}
"""


class Net(nn.Module):
    """Names its outputs, and has running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.norm, self.outward = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.outward(torch.relu(self.norm(self.inward(x))))}


class Without(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.outward(torch.relu(self.inward(x)))}


def made(kind: type[nn.Module] = Net) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    module = kind().double()
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    return module.eval()


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "wider.surgery"
    file.write_text(RECIPE)
    return file


def grown(recipe: Path, module: nn.Module, out: Path | None = None) -> nn.Module:
    result = surgeon.apply(recipe, module, out, example_inputs=(X,), device="cpu").model
    assert result is not None
    return result


def test_the_returned_module_grows_again(recipe: Path) -> None:
    source = made()
    twice = grown(recipe, grown(recipe, source))
    assert twice.get_parameter("inward.weight").shape == (32, 6)
    other = torch.flip(X, (0,)) + 1
    assert torch.allclose(twice(other)["logits"], source(other)["logits"], rtol=1e-12, atol=1e-12)


def test_it_is_copied_and_saved_whole(recipe: Path) -> None:
    module = grown(recipe, made())
    wanted = module(X)["logits"]
    wanted.sum().backward()  # as a training loop that keeps an average of it would
    copied = copy.deepcopy(module)
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    read = torch.load(stream, weights_only=False)
    with torch.no_grad():
        module.get_parameter("inward.weight").zero_()
    for each in (copied, read):
        assert torch.equal(each(X)["logits"], wanted)


def test_one_that_was_exported_grows_again_and_is_proved(recipe: Path, tmp_path: Path) -> None:
    source = made()
    grown(recipe, source, tmp_path / "out")
    loaded = torch.export.load(tmp_path / "out" / "model.pt2").module()
    report = surgeon.verify(source, loaded, example_inputs=(X,), device="cpu")
    assert report.preserved and report.exact is not None and report.exact.outputs < 1e-14
    twice = grown(recipe, loaded)
    assert torch.allclose(twice(X)["logits"], source(X)["logits"], rtol=1e-12, atol=1e-12)


FACTORIES = """
import sys
import torch

sys.path.insert(0, {tests!r})
from test_again import X, made


def trained():
    return made(), (X,)


def wider():
    return torch.export.load({file!r}).module(), (X,)
"""


def test_it_is_proved_by_the_names_of_two_functions(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grown(recipe, made(), tmp_path / "out")
    text = FACTORIES.format(tests=str(Path(__file__).parent), file=str(tmp_path / "out" / "model.pt2"))
    (tmp_path / "pair_of_nets.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for words, code in ((["trained", "wider"], 0), (["wider", "trained"], 2)):
        names = [f"pair_of_nets:{word}" for word in words]
        monkeypatch.setattr(sys, "argv", ["surgeon", "verify", *names, "--device", "cpu"])
        assert cli.run() == code
    shown = capsys.readouterr()
    assert "Preserved." in shown.out and "the source is named first" in shown.err


def test_a_changed_weight_is_located(recipe: Path) -> None:
    source = made()
    module = grown(recipe, source)
    with torch.no_grad():
        module.get_parameter("outward.weight")[1, 3] += 1e-6
    report = surgeon.verify(source, module, example_inputs=(X,), device="cpu")
    assert not report.preserved and report.exact is not None and report.exact.divergence is not None
    assert "outward" in report.exact.divergence.where


@pytest.mark.parametrize("off", [1e-7, 1e-3, 1.0])
def test_running_statistics_of_another_model_are_seen(off: float, recipe: Path) -> None:
    source = made()
    module = grown(recipe, source)
    module.get_buffer("norm.running_mean")[3] += off
    assert not surgeon.verify(source, module, example_inputs=(X,), device="cpu").preserved


def test_what_has_not_grown_from_it_is_refused(recipe: Path) -> None:
    source = made()
    with pytest.raises(PlanError, match="Without has not grown from Net") as caught:
        surgeon.verify(source, made(Without), example_inputs=(X,), device="cpu")
    assert caught.value.code == "S320"
    with pytest.raises(PlanError, match="the source is named first") as caught:
        surgeon.verify(grown(recipe, source), source, example_inputs=(X,), device="cpu")
    assert caught.value.code == "S316"


class Answering(Net):
    """Returns two things and a number, in some order under some names, and holds a constant."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.kind, self.constant = kind, torch.tensor(3.0 if kind == "constant" else 2.0, dtype=torch.float64)

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)["logits"] * self.constant
        given = {"logits": y, "other": y.exp(), "many": 6 if self.kind == "number" else 5}
        if self.kind == "swapped":
            given |= {"logits": given["other"], "other": y}
        if self.kind == "named":
            given["others"] = given.pop("other")
        return tuple(given.values()) if self.kind == "bare" else given


@pytest.mark.parametrize("kind", ["", "constant", "number", "swapped", "named", "bare"])
def test_one_that_answers_otherwise_is_no_growth(kind: str) -> None:
    def answering(kind: str) -> nn.Module:
        module = Answering(kind).double()
        module.load_state_dict(made().state_dict())
        return module.eval()

    if not kind:
        assert surgeon.verify(answering(""), answering(""), example_inputs=(X,), device="cpu").preserved
        return
    with pytest.raises(PlanError, match="has not grown from Answering") as caught:
        surgeon.verify(answering(""), answering(kind), example_inputs=(X,), device="cpu")
    assert caught.value.code == "S320"
    said = "another constant of shape ()" if kind == "constant" else "other values, or under other names"
    assert said in str(caught.value)


def test_one_narrow_buffer_allows_the_weights_no_more(recipe: Path) -> None:
    source = made()
    source.register_buffer("unread", torch.zeros(1, dtype=torch.bfloat16))
    module = grown(recipe, source)
    with torch.no_grad():
        module.get_parameter("outward.weight").mul_(1 + 1e-6)
    assert not surgeon.verify(source, module, example_inputs=(X,), device="cpu").preserved


def test_what_it_does_without_gradients_is_said(recipe: Path) -> None:
    class Other(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = super().forward(x)["logits"]
            exporting = torch.compiler.is_exporting()
            return {"logits": y if exporting or torch.is_grad_enabled() else y * 2}

    report = surgeon.verify(made(), made(Other), example_inputs=(X,), device="cpu")
    assert any("while no gradients are recorded" in note for note in report.notes)


@pytest.mark.parametrize("name", ["out", "out/model.pt2"])
def test_an_exported_module_is_loaded_by_a_function_of_ones_own(
    name: str, recipe: Path, tmp_path: Path
) -> None:
    grown(recipe, made(), tmp_path / "out")
    with pytest.raises(ModelError, match=r"def grown\(\): return torch.export.load") as caught:
        open_source(str(tmp_path / name))
    assert caught.value.code == "S201"
