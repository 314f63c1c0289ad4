"""The version of surgeon, said once."""

VERSION = "0.1.0"
