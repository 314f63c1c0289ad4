"""One surgery: a model made ready, planned, written and proved."""
