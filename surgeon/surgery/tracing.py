"""What a model is traced on, and what is said where it cannot be traced."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from surgeon.errors import ModelError, fail
from surgeon.graph.capture import capture, dynamic_batch, raised_at, silently
from surgeon.graph.captured import Captured
from surgeon.models.inputs import blind_to, pictured
from surgeon.models.native import reason
from surgeon.models.pictures import failure, runs_on
from surgeon.models.supply import Supply, alone, in_choices
from surgeon.verification.traced import Called

FEW = 3  # things named before a list is cut short
TELLING = 64  # numbers of a buffer that may tell a path; what is longer is a table
LONG = 120  # characters, of what the model finds
OWN_INPUTS = "its inputs were made up: --inputs FILE gives your own, a safetensors file with tensors by name"
GIVEN_INPUTS = "its inputs are your own: are their dtypes, shapes and numbers what its forward pass takes?"
FAULT = "do the sizes in its config go together, and with its inputs?"
ALONE = "several examples at once, which the class does not take"
SIZES = re.compile(r"\b(sizes?|shapes?|dims?|dimensions?)\b")


def capture_module(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], known: frozenset[str]
) -> Captured:
    """The graph of a plain module, its batch of any size. Raises ModelError S210."""
    try:
        return capture(module, args, kwargs, dynamic_batch(args, kwargs), known)
    except ModelError as error:
        raise _told_of_calls(error, module, _failure(module, args, kwargs)) from error


def first_captured(
    module: nn.Module,
    known: frozenset[str],
    given: Mapping[str, Tensor] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
) -> tuple[Captured, Supply, str]:
    """The graph of a transformers class, what it was traced on, and what it reads and is not given, with the
    reason: pictures among its words, if the class cannot be traced with them, or sounds. Raises ModelError
    S210, S211."""
    supply, words = Supply(given), Supply(given, pictures=False)
    try:
        captured = capture_class(module, module, known, supply, buffers)
        return captured, supply, blind_to(module) if given is None else ""
    except ModelError as error:
        if given is None and pictured(module):
            with contextlib.suppress(ModelError):  # the first says more
                captured = capture_class(module, module, known, words, buffers)
                return captured, words, f"pictures: {error.diagnostics[0].message}"
        if error.code != "S210":
            raise
        for laid, unseen in ((Supply(lay=in_choices), ""), (Supply(lay=alone), ALONE)):
            if given is None and runs_on(module, laid.batch(module)):
                return capture_class(module, module, known, laid, buffers), laid, unseen
        told = _told_of_calls(error, module, failure(module, supply.batch(module)))
        first, *others = told.diagnostics
        note = OWN_INPUTS if given is None else GIVEN_INPUTS
        raise ModelError(replace(first, notes=(*first.notes, note)), *others) from error


def _told_of_calls(error: ModelError, module: nn.Module, failed: Exception | None) -> ModelError:
    """What is said of a module that cannot be captured: where it cannot be called either, that. One without
    data fails at much for want of it: of that only sizes that do not go together count, met where the trace
    met them."""
    cause = error.__cause__
    if error.code != "S210" or failed is None or cause is None:
        return error
    dataless = any(parameter.is_meta for parameter in module.parameters())
    notes, said = error.diagnostics[0].notes, (str(failed), str(cause))
    if dataless and not (raised_at(failed) == notes and all(map(SIZES.search, said))):
        return error
    return fail(
        ModelError,
        "S210",
        f"{type(module).__name__} fails when it is called, traced or not: {reason(failed)}",
        notes=notes,
        help=FAULT if dataless else "does it run on these inputs, on this device and in this dtype?",
    )


def _failure(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Exception | None:
    """The error with which a plain module fails on its inputs; None where it runs."""
    try:
        with silently():
            Called(module, args, kwargs).answer(graded=False)
    except Exception as failed:  # of whatever kind: it is the module's own
        return failed
    return None


def capture_class(
    module: nn.Module,
    source: nn.Module,
    known: frozenset[str],
    supply: Supply,
    buffers: Mapping[str, Tensor] | None = None,
    led: bool = False,
) -> Captured:
    """The graph of a transformers class, on the inputs of the source; `led`, as they lead. The class itself
    goes on to check its inputs; its checks speak of sizes that grow."""
    values, inputs = supply.batch(source), supply.example(source)
    numbers = {k: b for k, b in (buffers or {}).items() if b.numel() <= TELLING}
    return capture(
        module,
        (),
        inputs,
        known=known,
        values=values,
        checks=False,
        buffers=numbers,
        led=led,
        unknown=frozenset(),
    )


def taken_for_granted(branches: tuple[str, ...]) -> tuple[str, ...]:
    """Notes on what the trace took for granted of the inputs; of many places, or of long lists of numbers,
    only where they are."""
    if len(branches) <= FEW and all(len(branch) <= LONG for branch in branches):
        return tuple(f"proved for inputs on which the model finds {branch}" for branch in branches)
    places = [branch.rpartition(" at ")[2] for branch in branches]
    said = ", ".join([*places[:FEW], *(["…"] if len(places) > FEW else [])])
    asking = "a line that asks" if len(places) == 1 else f"{len(places)} lines that ask"
    return (f"proved for inputs on which the model finds the same in {asking}: {said}",)
