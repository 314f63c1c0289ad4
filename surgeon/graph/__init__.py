"""Capture of a model as a torch.fx graph, and the inference of its dims by the op rules."""
