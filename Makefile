# Each verb does its own set-up: a virtual environment in .venv, pinned packages, the default model (once).
PYTHON ?= python3
BIN := .venv/bin
SPEC_BENCH = $(BIN)/specdec bench --prompts tests/data/questions.jsonl $(BENCH_FLAGS)
METHODS := plain,transformers,transformers-lookup,lookup,redrafter,kangaroo,mixed
DATA := bench/training/self_text.jsonl.gz
# What both trainings share lies in one folder: delete it to train on other data.
TRAINING := --features .training/features
SHIPPED := specdec/drafters/shipped
EXIT_LAYER := 5

.PHONY: demo test check bench aot compat gpu data train

demo: .venv/installed
	$(BIN)/specdec generate --compare

test: .venv/installed-dev
	$(BIN)/python -m pytest

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# About three quarters of an hour on two cores, less with BENCH_FLAGS='--per-category 2'; run nothing else meanwhile.
bench: .venv/installed-dev
	for dtype in float32 bfloat16; do \
	  $(BIN)/python bench/step_time.py --dtype $$dtype --json bench/results/step_cpu_$$dtype.json && \
	  $(SPEC_BENCH) --methods $(METHODS) --dtype $$dtype --json bench/results/spec_bench_cpu_$$dtype.json || exit; \
	done
	$(SPEC_BENCH) --methods plain,lookup --dtype bfloat16 --exact \
	  --json bench/results/spec_bench_cpu_bfloat16_exact.json
	$(BIN)/python bench/dedup.py --json bench/results/dedup.json
	$(BIN)/python bench/rounding.py --json bench/results/rounding_cpu_bfloat16.json
	$(BIN)/python bench/report.py

# Every kernel for every GPU it is meant for, without one; the tables of docs/kernels.md.
aot: .venv/installed-dev
	$(BIN)/python bench/aot.py

# The core tests and the compiler's checks again, with the oldest and the newest versions that are meant to work. Only
# packages that differ are installed beside the others, so torch stays.
compat: .compat/oldest .compat/newest
	for set in $^; do \
	  PYTHONPATH=$$set $(BIN)/python -m pytest -m 'not model' tests/kernels tests/specdec || exit; \
	done

# The interpreter of Triton 3.6 does not know NumPy 2.4.
.compat/oldest: VERSIONS := triton==3.6.0 transformers==5.17.0 numpy==2.3.5
.compat/newest: VERSIONS := triton==3.9.0 transformers
.compat/%: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --upgrade --target $@ $(VERSIONS)

# What takes a GPU to know, within ten minutes, with what `$(PYTHON)` has: no environment is made, nothing is fetched.
# MODEL is a folder, a GGUF file or its parts; GGUF_WHEEL the reader's wheel if it is not installed. DRY=1 tries it all out on small
# shapes without a GPU.
GPU_FLAGS = $(if $(MODEL),--model $(MODEL)) $(if $(GGUF_WHEEL),--gguf-wheel $(GGUF_WHEEL))
gpu: $(if $(DRY),.venv/installed-dev)
	PYTHONPATH=.:kernels $(if $(DRY),$(BIN)/python,$(PYTHON)) bench/gpu.py $(if $(DRY),--dry) $(GPU_FLAGS)

# Text like the shipped drafters', anew; `make train DATA=.training/self_text.jsonl` learns from it.
data: .venv/installed
	mkdir -p .training
	$(BIN)/specdec data .training/self_text.jsonl --tokens 800000 --exclude tests/data/questions.jsonl

# The shipped drafters, from the text they learned from; hours on two cores, and goes on after a kill.
train: .venv/installed-dev
	$(BIN)/specdec train redrafter $(DATA) --out $(SHIPPED)/redrafter --run .training/redrafter $(TRAINING) \
	  --exit-layers $(EXIT_LAYER) --length 4 --epochs 4 --beam-width 4 --least 0.1 --least-step 0.4
	$(BIN)/specdec train kangaroo $(DATA) --out $(SHIPPED)/kangaroo --run .training/kangaroo $(TRAINING) \
	  --exit-layer $(EXIT_LAYER) --eta 0.7 --epochs 6
	$(BIN)/python bench/report.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,dev]'
	touch $@
