"""The surgery language: text in, checked values out.

``load`` and ``loads`` give a :class:`~surgeon.language.syntax.Program`, ``check`` the findings
alone, ``format_text`` the canonical layout; ``builtin_rules`` and ``builtin_families`` are what
``recipes/`` declares. Imports neither torch nor transformers, so that all of it takes milliseconds.
"""

from surgeon.language.layout import format_text
from surgeon.language.loading import builtin_families, builtin_rules, check, library, load, loads

__all__ = ["builtin_families", "builtin_rules", "check", "format_text", "library", "load", "loads"]
