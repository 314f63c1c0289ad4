"""Safetensors checkpoints: read with suspicion, written all or nothing."""
