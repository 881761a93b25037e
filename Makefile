# Each verb does its own set-up: a virtual environment in .venv, pinned packages, the default model (once).
PYTHON ?= python3
BIN := .venv/bin
SPEC_BENCH := $(BIN)/specdec bench --prompts tests/data/questions.jsonl

.PHONY: demo test check bench

demo: .venv/installed
	$(BIN)/specdec generate --compare

test: .venv/installed-dev
	$(BIN)/python -m pytest

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# About half an hour on two cores; run nothing else meanwhile.
bench: .venv/installed-dev
	for dtype in float32 bfloat16; do \
	  $(BIN)/python bench/step_time.py --dtype $$dtype --json bench/results/step_cpu_$$dtype.json && \
	  $(SPEC_BENCH) --dtype $$dtype --json bench/results/spec_bench_cpu_$$dtype.json || exit; \
	done
	$(SPEC_BENCH) --methods plain,lookup --dtype bfloat16 --exact \
	  --json bench/results/spec_bench_cpu_bfloat16_exact.json
	$(BIN)/python bench/rounding.py --json bench/results/rounding_cpu_bfloat16.json
	$(BIN)/python bench/report.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,dev]'
	touch $@
