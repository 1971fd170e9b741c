# setup makes .venv and installs everything the other targets need; a second run does nothing.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test lint clean

setup: $(READY)

# torch first and with its exact version: a machine that has this CPU build at hand then takes it
# instead of several GB of CUDA libraries.
$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e ".[export,tensorrt,experiment,bag,ros,ray,video,dev]"
	@touch $(READY)

demo: setup
	$(BIN)/mgsd demo --out runs/demo

test: setup lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks examples

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
