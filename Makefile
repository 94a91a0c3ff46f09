PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test test-long check bench

run: $(STAMP)  ## raw text to a registered model, on this machine
	$(BIN)/trainyard run lifecycle --recipe tiny

test: $(STAMP)  ## everything that a clean machine can prove offline on CPU
	$(BIN)/pytest -m "not long" -n 2 --no-loadscope-reorder

test-long: $(STAMP)  ## the drills that take longer
	$(BIN)/pytest -m long

check: $(STAMP)  ## style, types, import rules
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/pytest tests/test_house.py

bench: $(STAMP)  ## measured ratios; one of them: make bench ONLY=R8; a part of one: make bench ONLY=R1 PART=B
	$(BIN)/python -m tests.benchmarks.run $(ONLY) $(if $(PART),"$(PART)")

$(STAMP): pyproject.toml infra/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c infra/constraints.txt torch
	$(BIN)/pip install --quiet -c infra/constraints.txt -e ".[test]"
	touch $(STAMP)
