# A clean clone needs nothing but `make demo` or `make test`; each sets up what it needs first.
PYTHON ?= python3
# Installed before all else: a looser requirement may bring a build for another device, of several GB.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
DATA ?= digits
OUT ?= runs/demo
JOBS ?= $(shell nproc 2>/dev/null || echo 1)

.PHONY: help setup demo test test-all lint format clean

help:
	@echo "make demo      set up (about 2 minutes) and compare all layers on digits (about 4 minutes on 2 cores); DATA=... for other data"
	@echo "make test      set up (about 2 minutes) and run the tests (about 2 minutes)"
	@echo "make test-all  the slow tests too"
	@echo "make lint      check style and types;  make format  apply the style"

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml
	@echo "Setting up $(VENV): about 2 minutes, most of it downloads."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

demo: setup
	@echo "Comparing the layers on $(DATA): about 4 minutes on 2 cores with digits. Interrupted, it goes on where it stopped."
	$(BIN)/fastff compare quick --data "$(DATA)" --out "$(OUT)" --jobs $(JOBS)

test: setup
	@echo "Running the tests: about 2 minutes."
	$(BIN)/python -m pytest -q -m "not slow"

test-all: setup
	@echo "Running all tests: about 6 minutes."
	$(BIN)/python -m pytest -q

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
