"""Where models come from: transformers folders and configs, Python factories."""
