"""A grown plain module is called as its source is and returns what the source does, in memory and read back
from its folder. The source itself is the oracle."""

from __future__ import annotations

import copy
import dataclasses
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import BaseModelOutput

import surgeon
from surgeon.errors import ModelError


@dataclasses.dataclass
class Said:
    first: Tensor
    missing: Tensor | None = None
    second: Tensor | None = None


class Pair(NamedTuple):
    value: Tensor
    rest: tuple[Any, ...]


class Unnamed(NamedTuple):
    value: Tensor
    other: Tensor


class Unregistered:
    def __init__(self, value: Tensor) -> None:
        self.value = value


torch.export.register_dataclass(Said, serialized_type_name="test_calling.Said")
pytree._register_namedtuple(Pair, serialized_type_name="test_calling.Pair")

GIVES: Mapping[str, Callable[[Tensor, Tensor], Any]] = {
    "one": lambda y, h: y,
    "row of one": lambda y, h: (y,),
    "list": lambda y, h: [y, h.mean(-1)],
    "nested": lambda y, h: (y, (h.mean(-1), [y + 1, (y,)]), {"twice": y}),
    "dict": lambda y, h: {"logits": y, "none": None, "width": 5, "ratio": 0.5, "flag": True, "rows": [y, y]},
    "dataclass": lambda y, h: Said(y, second=h.mean(-1)),
    "named tuple": lambda y, h: Pair(y, (None, {"deep": h.mean(-1)}, 3)),
    "model output": lambda y, h: BaseModelOutput(last_hidden_state=y, hidden_states=(h.mean(-1), y)),
    "sizes": lambda y, h: {"y": y, "batch": y.shape[0], "made": y.shape[-1]},
}


class Told(nn.Module):
    """Takes nested inputs by position and by name."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.inward, self.outward, self.give = nn.Linear(5, 8), nn.Linear(8, 3), give

    def forward(
        self, x: Tensor, *more: Tensor, scale: float = 1.0, aside: Any = None, mask: Tensor | None = None
    ) -> Any:
        h = torch.tanh(self.inward(x * scale))
        for each in more:
            h = h + self.inward(each)
        if aside is not None:
            h = h * aside["gate"][0] + aside["shift"]
        if mask is not None:
            h = h * mask
        return self.give(self.outward(h), h)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _made(give: Callable[[Tensor, Tensor], Any]) -> nn.Module:
    torch.manual_seed(0)
    return Told(give).double().eval()


def _recipe(folder: Path) -> Path:
    file = folder / "wide.surgery"
    file.write_text(
        'recipe wide() {\n grow axis("inward.weight", 0) by 2\n spread linear with uneven(1, 2)\n}\n'
    )
    return file


def _same(ours: Any, theirs: Any) -> None:
    flat, shape = pytree.tree_flatten(ours)
    other, wanted = pytree.tree_flatten(theirs)
    assert type(ours) is type(theirs)
    assert shape == wanted
    for a, b in zip(flat, other, strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
        else:
            assert type(a) is type(b) and a == b


@pytest.mark.parametrize("name", GIVES)
def test_it_returns_what_the_source_returns(name: str, tmp_path: Path) -> None:
    module = _made(GIVES[name])
    result = surgeon.apply(_recipe(tmp_path), module, tmp_path / "out", example_inputs=(_drawn(4, 5),))
    loaded = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for grown in (result.model, loaded):
        for given in (_drawn(4, 5), _drawn(6, 5)):  # another batch than the traced one
            _same(grown(given), module(given))


def _inputs(batch: int) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    aside = {"gate": (_drawn(batch, 1), 7), "shift": _drawn(batch, 1)}
    return (_drawn(batch, 5), _drawn(batch, 5)), {"scale": 0.5, "aside": aside}


def _factory() -> Any:
    return _made(GIVES["dict"]), *_inputs(4)


def _scaled() -> Any:
    return _made(GIVES["one"]), (_drawn(4, 5), _drawn(4, 5)), {"scale": 0.5}


def test_it_takes_what_the_source_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    result = surgeon.apply(_recipe(tmp_path), "test_calling:_factory", tmp_path / "out")
    loaded = torch.export.load(tmp_path / "out" / "model.pt2").module()
    module = _made(GIVES["dict"])
    for grown in (result.model, loaded):
        for batch in (4, 6):
            args, kwargs = _inputs(batch)
            _same(grown(*args, **kwargs), module(*args, **kwargs))


def test_inputs_by_name_go_by_name(tmp_path: Path) -> None:
    module = _made(GIVES["one"])
    given = {"x": _drawn(4, 5), "mask": _drawn(4, 1)}
    result = surgeon.apply(_recipe(tmp_path), module, tmp_path / "out", example_inputs=given)
    loaded = torch.export.load(tmp_path / "out" / "model.pt2").module()
    other = {"mask": _drawn(3, 1), "x": _drawn(3, 5)}
    for grown in (result.model, loaded):
        _same(grown(**other), module(**other))
    _same(result.model(other["x"], mask=other["mask"]), module(**other))  # by position as well


def test_an_argument_given_by_position_may_be_named(tmp_path: Path) -> None:
    module, x = _made(GIVES["one"]), _drawn(4, 5)
    grown = surgeon.apply(_recipe(tmp_path), module, example_inputs=(x,)).model
    _same(grown(x=x), module(x))
    _same(grown(x, scale=1.0, mask=None), module(x))  # what stands for itself


@pytest.mark.parametrize(
    ("args", "kwargs", "kind", "word"),
    [
        ((_drawn(4, 5), _drawn(4, 5)), {"scale": 0.25}, ValueError, "scale"),  # a constant of the trace
        ((_drawn(4, 5), _drawn(4, 5)), {"scale": 0.5, "mask": _drawn(4, 1)}, ValueError, "mask"),
        ((_drawn(4, 5), _drawn(4, 5)), {}, ValueError, "scale"),
        ((_drawn(4, 5),), {"scale": 0.5}, ValueError, ""),
        ((_drawn(4, 5), _drawn(1, 4, 5)), {"scale": 0.5}, ValueError, "[1, 4, 5]"),
        ((_drawn(4, 5), None), {"scale": 0.5}, ValueError, "tensor"),
        ((_drawn(4, 5), _drawn(4, 5)), {"scale": 0.5, "other": 1}, TypeError, "other"),
        ((), {"scale": 0.5}, TypeError, "x"),
    ],
)
def test_what_the_graph_does_not_hold_for_is_refused(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    kind: type[Exception],
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    grown = surgeon.apply(_recipe(tmp_path), "test_calling:_scaled").model
    with pytest.raises(kind) as caught:
        grown(*args, **kwargs)
    assert word in str(caught.value)


class Counting(nn.Module):
    """Counts its calls, remembers what it saw, and marks its input as seen."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(5, 8), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor, marked: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.inward(x)) + self.seen
        self.calls += 1
        self.seen.mul_(0.5).add_(h.mean(0))
        marked.add_(1)
        return {"y": self.outward(h), "calls": self.calls + 1}


def test_what_a_pass_rewrites_is_rewritten(tmp_path: Path) -> None:
    module = Counting().double().eval()
    example = (_drawn(4, 5), _drawn(4, 2))
    result = surgeon.apply(_recipe(tmp_path), module, tmp_path / "out", example_inputs=example)
    loaded = torch.export.load(tmp_path / "out" / "model.pt2").module()
    x = _drawn(4, 5)
    marks = [_drawn(4, 2).zero_() for _ in range(3)]
    for calls in (1, 2, 3):
        wanted = module(x, marks[0])
        for grown, mark in zip((result.model, loaded), marks[1:], strict=True):
            _same(grown(x, mark), wanted)
            assert int(grown.get_buffer("calls")) == calls
            torch.testing.assert_close(mark, marks[0])
    assert result.model.get_buffer("seen").shape == (16,)


def test_a_type_without_a_name_is_returned_but_not_written(tmp_path: Path) -> None:
    module = _made(lambda y, h: {"deep": [Unnamed(y, h.mean(-1))]})
    x = _drawn(4, 5)
    with pytest.raises(ModelError) as caught:
        surgeon.apply(_recipe(tmp_path), module, tmp_path / "out", example_inputs=(x,))
    assert caught.value.code == "S214"
    assert "Unnamed" in str(caught.value)
    assert not (tmp_path / "out").exists()
    _same(surgeon.apply(_recipe(tmp_path), module, example_inputs=(x,)).model(x), module(x))


def test_a_text_is_returned_but_not_written(tmp_path: Path) -> None:
    module = _made(lambda y, h: {"y": y, "said": "word"})
    x = _drawn(4, 5)
    with pytest.raises(ModelError) as caught:
        surgeon.apply(_recipe(tmp_path), module, tmp_path / "out", example_inputs=(x,))
    assert caught.value.code == "S214"
    _same(surgeon.apply(_recipe(tmp_path), module, example_inputs=(x,)).model(x), module(x))


def test_a_type_that_torch_cannot_look_into_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        surgeon.apply(_recipe(tmp_path), _made(lambda y, h: Unregistered(y)), example_inputs=(_drawn(4, 5),))
    assert "Unregistered" in str(caught.value) and "register" in str(caught.value)


def test_the_fields_of_a_dataclass_are_outputs_by_name(tmp_path: Path) -> None:
    module = _made(GIVES["dataclass"])
    paths = [path for path, _ in surgeon.dims(module, (_drawn(4, 5),)).captured.outputs]
    assert paths == ["first", "second"]


def test_the_source_does_not_train_along(tmp_path: Path) -> None:
    module, x = _made(GIVES["one"]), _drawn(4, 5)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    grown = surgeon.apply(_recipe(tmp_path), module, example_inputs=(x,)).model
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.add_(1)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


class Padded(nn.Module):
    """torch's own encoder, which leaves padded places out while no gradients are recorded."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 14, 0.0, batch_first=True)
        self.inward, self.encoder = nn.Linear(5, 8), nn.TransformerEncoder(layer, 1)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(self.inward(x), src_key_padding_mask=padding)


def test_what_a_module_does_without_gradients_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Padded().double().eval()
    given = (_drawn(2, 4, 5), torch.tensor([[False, False, False, True]] * 2))
    file = _recipe(tmp_path)
    file.write_text(file.read_text().replace("inward.weight", "encoder.layers.0.linear1.weight"))
    result = surgeon.apply(file, module, example_inputs=given)
    _same(result.model(*given), module(*given))
    with torch.no_grad():
        apart = (result.model(*given) - module(*given)).abs().amax((0, 2))
    assert (apart[:3] < 1e-13).all() and apart[3] > 0.1
    assert any("no gradients" in note for note in result.notes)


class Parted(nn.Module):
    """Not itself when it is traced, or not the same twice."""

    def __init__(self, random: bool) -> None:
        super().__init__()
        self.inward, self.outward, self.random = nn.Linear(5, 8), nn.Linear(8, 3), random

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inward(x))
        if self.random:
            h = h * random.uniform(1, 2)
        return self.outward(h if torch.compiler.is_exporting() else 2 * h)


@pytest.mark.parametrize(("random", "word"), [(True, "random"), (False, "path")])
def test_a_graph_that_is_not_the_module_is_refused(random: bool, word: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        surgeon.apply(_recipe(tmp_path), Parted(random).double(), example_inputs=(_drawn(4, 5),))
    assert caught.value.code == "S213"
    assert word in str(caught.value)


class Drawing(nn.Module):
    """Leaves numbers out at random, in eval mode too."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.inward, self.outward, self.always = nn.Linear(5, 8), nn.Linear(8, 3), always
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(torch.tanh(self.inward(x)))
        torch.bernoulli(torch.full((3,), 0.5)).bool()  # which nothing reads
        return self.outward(nn.functional.dropout(h, 0.5) if self.always else h)


def test_a_module_that_draws_random_numbers_is_refused_but_for_those_of_training(tmp_path: Path) -> None:
    given = (_drawn(4, 5),)
    assert surgeon.apply(
        _recipe(tmp_path), Drawing(False).double().eval(), example_inputs=given
    ).report.preserved
    with pytest.raises(ModelError, match="Drawing draws random numbers as it runs") as caught:
        surgeon.apply(_recipe(tmp_path), Drawing(True).double().eval(), example_inputs=given)
    assert caught.value.code == "S216"
    assert re.search(r"aten\.dropout \(.*test_calling\.py:\d+\)", str(caught.value))


class Broken(nn.Module):
    """Can be traced, and fails when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            raise RuntimeError("not in this dtype")
        return self.outward(torch.tanh(self.inward(x)))


def test_a_module_that_fails_when_it_is_called_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not in this dtype") as caught:
        surgeon.apply(_recipe(tmp_path), Broken().double(), example_inputs=(_drawn(4, 5),))
    assert caught.value.code == "S213"


def test_a_module_that_fails_traced_or_not_is_not_blamed_on_the_trace(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        surgeon.dims(nn.Linear(8, 4), (torch.randn(3, 16),))
    assert caught.value.code == "S210"
    assert "Linear fails when it is called, traced or not: mat1 and mat2" in str(caught.value)


def test_what_cannot_be_traced_is_called_on_copies_alone() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            x.mul_(2)
            return self.linear(x) if x.sum() > 1 else x

    module, x = Counting(), torch.ones(3, 4)
    with pytest.raises(ModelError, match="cannot be captured as a graph"):
        surgeon.dims(module, (x,))
    assert module.count == 0 and torch.equal(x, torch.ones(3, 4))


def test_an_output_that_grows_itself_is_said(tmp_path: Path) -> None:
    module, x = _made(lambda y, h: {"said": y, "hidden": h}), _drawn(4, 5)
    result = surgeon.apply(_recipe(tmp_path), module, example_inputs=(x,))
    assert result.model(x)["hidden"].shape == (4, 16)
    noted = [note for note in result.plan.notes if "grows itself" in note]
    assert len(noted) == 1 and noted[0].startswith("hidden grows itself: axis 1 is 8 → 16")


class Bounded(nn.Module):
    """Takes another path for large batches, as torch's own distances do."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inward(x))
        return self.outward(h if x.shape[0] < 10 else h - h.mean(0))


def test_a_batch_is_free_as_far_as_the_graph_holds(tmp_path: Path) -> None:
    module = Bounded().double()
    grown = surgeon.apply(_recipe(tmp_path), module, tmp_path / "out", example_inputs=(_drawn(4, 5),)).model
    loaded = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for batch in (1, 2, 9):
        x = _drawn(batch, 5)
        _same(grown(x), module(x))
        _same(loaded(x), module(x))
    with pytest.raises(ValueError, match="0 to 9"):
        grown(_drawn(10, 5))
    with pytest.raises(AssertionError, match="<= 9"):
        loaded(_drawn(10, 5))
    free = surgeon.apply(_recipe(tmp_path), _made(GIVES["one"]), example_inputs=(_drawn(4, 5),)).model
    assert free(_drawn(5000, 5)).shape == (5000, 3)


class Remembering(nn.Module):
    """Looks its bias up once, and keeps what it found."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.table = nn.Parameter(torch.randn(5))
        self.found: dict[str, Tensor] = {}
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        if "bias" not in self.found and not torch.compiler.is_exporting():
            self.found["bias"] = self.table[[1, 3]]
            self.last = x
        bias = self.found["bias"] if "bias" in self.found else self.table[[1, 3]]
        return self.head(torch.tanh(self.inward(x))) + bias


def test_what_a_module_keeps_of_a_call_it_has_not_afterwards(tmp_path: Path) -> None:
    module = Remembering().eval()
    grown = surgeon.apply(_recipe(tmp_path), module, example_inputs=(torch.randn(3, 4),))
    assert not module.found and not module.calls and not hasattr(module, "last")
    x = torch.randn(5, 4)
    assert grown.model is not None
    torch.testing.assert_close(grown.model(x), copy.deepcopy(module)(x))


class Narrowed(nn.Module):
    """Of float64, but for one step: what is rounded there, its graph rounds as well, in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.head = nn.Linear(4, 64), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inward(x)).float()
        if torch.compiler.is_exporting():
            return self.head((x + 1 / 3 - 1 / 3).double())
        return self.head((x - 1 / 3 + 1 / 3).double())


def test_rounding_in_a_narrower_type_is_no_other_function(tmp_path: Path) -> None:
    module = Narrowed().double()
    assert surgeon.apply(_recipe(tmp_path), module, example_inputs=(_drawn(3, 4),)).report.preserved
