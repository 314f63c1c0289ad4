"""The examples of the language reference are sound."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from surgeon.language import loads

TEXT = (Path(__file__).parents[2] / "docs" / "language.md").read_text()
EXAMPLES = [e for e in re.findall(r"```surgery\n(.*?)```", TEXT, re.DOTALL) if not e.startswith("use")]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_reference(example: str) -> None:
    if not example.startswith(("recipe", "op", "family")):
        grow = "" if "grow" in example else "grow ffn by 2\n"
        example = f"recipe example() {{\n{grow}{example}}}\n"
    assert loads(example)
