# Each verb does its own set-up: a virtual environment in .venv, pinned packages, the default model (once).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench

demo: .venv/installed
	$(BIN)/specdec generate --compare

test: .venv/installed-dev
	$(BIN)/python -m pytest

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed-dev
	$(BIN)/python -m pytest bench --benchmark-json bench/results/ops.json

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,dev]'
	touch $@
