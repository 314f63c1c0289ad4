"""The algebra of axes: dims, products and concatenations of dims, their unification, and the
channel maps by which they grow. Pure Python and NumPy: no torch, no transformers."""
