"""What older versions that surgeon supports do otherwise: the classes themselves, or torch's tracer."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.version import parse

CLASSES_OF_5_24 = pytest.mark.skipif(
    parse(transformers.__version__) < parse("5.24"), reason="transformers has the class otherwise, or not yet"
)
TRACER_OF_2_13 = pytest.mark.skipif(
    parse(torch.__version__) < parse("2.13"), reason="torch's tracer does not follow this"
)
