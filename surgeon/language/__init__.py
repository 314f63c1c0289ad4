"""The surgery language: text to checked recipes, op rules and families. Loads no torch."""

from surgeon.language.loading import builtin_families, builtin_rules, choose, library, load, loads

__all__ = ["builtin_families", "builtin_rules", "choose", "library", "load", "loads"]
