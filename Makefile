# Everything, set-up included, is `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A process a core, up to four: each holds the real model. A file's tests stay together, for their shared fixtures, and
# the files come in the order of tests/conftest.py.
PARALLEL := --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
MODEL := models/llama-smollm2-135m

.PHONY: demo test test-unit test-slow test-checkout matrix lint types check docs bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready $(MODEL)/config.json
	$(BIN)/python examples/demo.py

test: $(VENV)/.ready $(MODEL)/config.json
	$(BIN)/python -m pytest $(PARALLEL)

# Each module by itself, without the real model: under a minute.
test-unit: $(VENV)/.ready
	$(BIN)/python -m pytest $(PARALLEL) --dist=worksteal -m "not slow and not real_model and not integration and not easyedit_checkout"

test-slow: $(VENV)/.ready $(MODEL)/config.json
	$(BIN)/python -m pytest -m slow

test-checkout: $(VENV)/.ready $(MODEL)/config.json
	$(BIN)/python -m pytest -m easyedit_checkout

# The tests on the oldest, the pinned and the newest versions that setup.cfg admits; gigabytes of other torches.
matrix: $(VENV)/.ready
	$(BIN)/nox

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.ready
	$(BIN)/mypy

check: test lint types

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

bench: $(VENV)/.ready $(MODEL)/config.json
	$(BIN)/python benchmarks/publish.py quality

# torch first, by its pinned version: an unconstrained one pulls gigabytes of CUDA. EasyEdit pins 2023's torch,
# numpy and transformers, so it is installed without its dependencies; the `easyedit` extra names what it needs.
$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[easyedit,test,dev]'
	$(BIN)/python -m pip install --quiet --no-deps easyeditor==0.0.1.dev0
	touch $@

$(MODEL)/config.json: | $(VENV)/.ready
	$(BIN)/zerounlearn models fetch smollm2-135m

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
