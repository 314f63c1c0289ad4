"""Mergekit's passthrough to about the bytes of a model twice as wide: every layer four times, one after the
other. Not a growth, as the function changes; a figure for how fast weights can be passed through.

Usage: python benchmarks/passthrough.py MERGEKIT_YAML SOURCE OUT   (the first is mergekit's program)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TIMES = 4


def main() -> None:
    program, source, out = sys.argv[1:]
    layers = json.loads((Path(source) / "config.json").read_text())["num_hidden_layers"]
    piece = {"sources": [{"model": source, "layer_range": [0, layers]}]}
    recipe = {"merge_method": "passthrough", "dtype": "bfloat16", "slices": [piece] * TIMES}
    path = Path(out).with_suffix(".yaml")
    path.write_text(json.dumps(recipe))  # which YAML reads
    subprocess.run([program, str(path), out, "--no-copy-tokenizer"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
