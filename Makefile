# `make demo` and `make test` set everything up in .venv on a fresh machine.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint setup clean

demo: $(READY)
	$(BIN)/surgeon demo

test: $(READY)
	$(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff check surgeon tests benchmarks
	$(BIN)/mypy

setup: $(READY)

# torch first: what depends on it then takes the build that is there.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[demo,dev]"
	touch $@

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info
