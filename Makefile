# Each verb does its own set-up: a virtual environment in .venv, pinned packages, the default model (once).
PYTHON ?= python3
BIN := .venv/bin
SPEC_BENCH = $(BIN)/specdec bench --prompts tests/data/questions.jsonl $(BENCH_FLAGS)
METHODS := plain,transformers,transformers-lookup,lookup,redrafter,kangaroo,mixed,suffix+recycling
DATA := bench/training/self_text.db
# What both trainings share lies in one folder: delete it to train on other data.
TRAINING := --features .training/features
SHIPPED := specdec/drafters/shipped
EXIT_LAYER := 5

.PHONY: help demo test test-all check docs pins bench bench-report bench-decoding training-free bytes launches aot compat gpu data train second-model

define HELP
Use it
  demo            write a text, and the same by the plain loop and by transformers
Know that it is right
  test            the suite; test-all runs every case of it
  check           linter, formatter, types, links of the docs
  docs            the site of the docs, in site/
  compat          with the newest, an older and unpinned libraries; 45 minutes
  aot             compile every kernel for every GPU it is meant for; no GPU needed
Measure (bench/README.md says what is where)
  bench           ops; 8 minutes          bench-decoding  methods and models; 45 minutes
  bytes launches  counted without a GPU   gpu             on a GPU; DRY=1 without
  training-free   methods that need no training; 40 minutes
  bench-report    tables and pictures from what was measured
Train
  data            text that the default model writes
  train           the shipped drafters; hours        second-model    drafters of Gemma 3 270M
Keep
  pins            resolve all packages into constraints.txt
endef
export HELP
help:
	@echo "$$HELP"

demo: .venv/installed
	$(BIN)/specdec generate --compare

test test-all: .venv/installed-tilelens
	$(BIN)/python -m pytest -n auto --dist worksteal $(if $(filter test-all,$@),--all)

check: .venv/installed-docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zensical build --clean --strict

# The site from docs/ and docstrings, without a network; a broken link or anchor is an error.
docs: .venv/installed-docs
	$(BIN)/zensical build --clean --strict

# The newest of everything beside what constraints.txt and specdec/sources/releases.py fix; then `make test`.
pins: .compat/uv/installed
	PYTHONPATH=$(CURDIR)/.compat/uv $(BIN)/python -m bench.releases.pins

# Every op's tests, then its times; on two cores about eight minutes, less with BENCH_FLAGS='-k tree_attention'. Run nothing
# else meanwhile. JSON=file keeps a run beside the one of docs/results/ops.md.
DEVICE ?= $(shell $(BIN)/python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
JSON ?= bench/results/ops_$(DEVICE).json
bench: .venv/installed-dev
	$(BIN)/python -m pytest bench/ops/bench_ops.py --device $(DEVICE) --benchmark-columns median,iqr,min,rounds \
	  --benchmark-json $(JSON) $(BENCH_FLAGS)

# All tables and pictures of README.md and docs, from the data files that are there.
bench-report: .venv/installed-dev
	$(BIN)/python -m bench.report

# About three quarters of an hour on two cores, less with BENCH_FLAGS='--per-category 2'; run nothing else meanwhile.
bench-decoding: .venv/installed-dev
	for dtype in float32 bfloat16; do \
	  $(BIN)/python -m bench.decoding.step_time --dtype $$dtype --json bench/results/step_cpu_$$dtype.json && \
	  $(SPEC_BENCH) --methods $(METHODS) --dtype $$dtype --json bench/results/spec_bench_cpu_$$dtype.json || exit; \
	done
	$(SPEC_BENCH) --methods plain,lookup --dtype bfloat16 --exact \
	  --json bench/results/spec_bench_cpu_bfloat16_exact.json
	$(BIN)/python -m bench.decoding.dedup --json bench/results/dedup.json
	$(BIN)/python -m bench.decoding.rounding --json bench/results/rounding_cpu_bfloat16.json
	$(BIN)/python -m bench.decoding.sampling --json bench/results/sampling_cpu.json
	$(BIN)/python -m bench.decoding.sampling_equality --json bench/results/sampling_equality.json
	$(BIN)/python -m bench.decoding.architectures --json bench/results/architectures.json
	$(BIN)/python -m bench.report

# Methods that need no training, beside what they are compared with; forty minutes on two cores, while nothing else runs.
STORE := .training/store
FREE := lookup,suffix,rest:$(STORE),recycling,lookahead,lookahead:7/5/7,suffix+recycling,suffix+recycling+rest:$(STORE)
FREE_FLAGS ?= --per-category 2 --max-new-tokens 96
training-free: .venv/installed-dev
	rm -rf $(STORE) && mkdir -p $(dir $(STORE))
	$(BIN)/specdec datastore build $(DATA) $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')/*.py -o $(STORE)
	for dtype in float32 bfloat16; do \
	  $(SPEC_BENCH) --methods plain,transformers-lookup,$(FREE),mixed,redrafter+suffix+recycling $(FREE_FLAGS) \
	    --dtype $$dtype --json bench/results/training_free_cpu_$$dtype.json || exit; \
	done
	$(BIN)/python -m bench.decoding.equal_nodes --json bench/results/equal_nodes.json
	$(BIN)/python -m bench.report

# What each launch reads and writes, counted without a GPU, in minutes; the tables of docs/results/counted.md.
bytes: .venv/installed-tilelens
	$(BIN)/python -m bench.counted.bytes
	$(BIN)/python -m bench.report

# What a round launches and how often the host waits, counted without a GPU, in a minute; tables of docs/results/counted.md.
launches: .venv/installed-dev
	$(BIN)/python -m bench.counted.launches --json bench/results/launches.json
	$(BIN)/python -m bench.report

# Compiles every kernel for every supported GPU, without one; fills docs/kernels/registers.md.
aot: .venv/installed-dev
	$(BIN)/python -m bench.counted.aot

# The core tests, the commands of README.md and the compiler's checks again: with the newest of everything in an environment of its
# own, then with the oldest and the newest versions that are meant to work, where only packages that differ are installed beside the
# others, so torch stays; then the table of docs/results/counted.md. Three quarters of an hour on two cores, less with ENVIRONMENTS=unpinned.
ENVIRONMENTS ?= unpinned oldest newest
compat: $(ENVIRONMENTS:%=.compat/%/installed)
	status=0; for name in $(ENVIRONMENTS); do \
	  python=.compat/$$name/bin/python; test -e $$python || python=$(BIN)/python; \
	  PYTHONPATH=$(CURDIR)/.compat/$$name $$python -m bench.releases.compat $$name || status=1; \
	done; $$python -m bench.report && exit $$status

# The interpreter of Triton 3.6 does not know NumPy 2.4.
.compat/oldest/installed: PACKAGES := triton==3.6.0 transformers==5.17.0 numpy==2.3.5
.compat/newest/installed: PACKAGES := triton==3.9.0 transformers
.compat/uv/installed: PACKAGES := uv
.compat/%/installed: .venv/installed-dev
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --target $(@D) $(PACKAGES)
	touch $@

.compat/unpinned/installed: pyproject.toml constraints.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	grep -E '^(torch|triton)==' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --constraint $(@D)/constraints.txt --editable '.[bench,dev]'
	touch $@

# GPU checks and benchmarks, eight minutes, with the packages of `$(PYTHON)`; installs and downloads nothing. GPU_FLAGS: see
# docs/results/gpu.md. DRY=1 runs small shapes without a GPU.
gpu: $(if $(DRY),.venv/installed-dev)
	$(if $(DRY),$(BIN)/python,$(PYTHON)) -m bench.gpu --out bench/results/gpu $(if $(DRY),--dry) $(GPU_FLAGS)

# Text like the shipped drafters', anew; `make train DATA=.training/self_text.db` learns from it.
data: .venv/installed
	mkdir -p .training
	$(BIN)/specdec data --append .training/self_text.db --tokens 800000 --exclude tests/data/questions.jsonl

# The shipped drafters anew, from the text they learned from and what has been written since; hours on two cores, and goes on after a kill.
train: .venv/installed-dev
	$(BIN)/specdec train redrafter $(DATA) --out $(SHIPPED)/redrafter --run .training/redrafter $(TRAINING) \
	  --exit-layers $(EXIT_LAYER) --length 4 --epochs 4 --beam-width 4 --min-prob 0.1 --min-step-prob 0.4
	$(BIN)/specdec train kangaroo $(DATA) --out $(SHIPPED)/kangaroo --run .training/kangaroo $(TRAINING) \
	  --exit-layer $(EXIT_LAYER) --eta 0.7 --epochs 6
	$(BIN)/python -m bench.report

# Drafters for a second model, from nothing, then the comparison in docs/use/training.md, while nothing else should run. What
# was trained stays in its folder; each step goes on after a kill.
SECOND := gemma-3-270m
SECOND_FOLDER := .training/$(SECOND)
second-model: $(SECOND_FOLDER)/redrafter/training.json $(SECOND_FOLDER)/kangaroo/training.json .venv/installed-dev
	$(BIN)/python -m bench.decoding.second_model --drafters $(SECOND_FOLDER) --json bench/results/second_model.json
	$(BIN)/python -m bench.report

# Short answers: this model's greedy text soon repeats itself.
$(SECOND_FOLDER)/text.db: | .venv/installed
	mkdir -p $(@D)
	$(BIN)/specdec data --append $(@D)/unfinished.db --model $(SECOND) --tokens 20000 --answer-tokens 64 \
	  --exclude tests/data/questions.jsonl
	mv $(@D)/unfinished.db $@

$(SECOND_FOLDER)/redrafter/training.json: $(SECOND_FOLDER)/text.db
	$(BIN)/specdec train redrafter $< --model $(SECOND) --out $(@D) --run $(SECOND_FOLDER)/run-redrafter \
	  --features $(SECOND_FOLDER)/features --exit-layers 6 --length 4 --epochs 3 --batch 256 --held-out 8

$(SECOND_FOLDER)/kangaroo/training.json: $(SECOND_FOLDER)/text.db $(SECOND_FOLDER)/redrafter/training.json
	$(BIN)/specdec train kangaroo $< --model $(SECOND) --out $(@D) --run $(SECOND_FOLDER)/run-kangaroo \
	  --features $(SECOND_FOLDER)/features --exit-layer 6 --epochs 6 --held-out 8

# What builds the project is pinned as well: newer versions of pip read the second name for that.
.venv/%: export PIP_CONSTRAINT := constraints.txt
.venv/%: export PIP_BUILD_CONSTRAINT := constraints.txt

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench,dev]'
	touch $@

.venv/installed-docs: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# Counts bytes and proves bounds. What it declares for its web pages and for other compilers is not needed: 1.4 GB.
.venv/installed-tilelens: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --no-deps tilelens z3-solver anytree ml-dtypes
	touch $@
