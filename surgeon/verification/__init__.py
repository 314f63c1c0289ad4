"""The proof that the grown model computes the same function."""
