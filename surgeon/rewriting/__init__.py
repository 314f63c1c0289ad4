"""The plan carried out: weights expanded, the fx graph rewritten."""
