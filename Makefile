# Relative paths only: the checkout may live under a path with spaces.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SHELLFLAGS := -eu -c
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
SGLANG := .venv-sglang
SGLANG_STAMP := $(SGLANG)/.installed
PLUGIN := deployments/sglang/plugin

export PYTHONNOUSERSITE := 1
export DO_NOT_TRACK := 1

.PHONY: help install demo test test-fast test-sglang sglang-cpu lint format build clean FORCE

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

# A virtual environment does not survive a move: it is made anew when the checkout has moved.
ifneq "$(shell cat $(VENV)/.where 2>/dev/null)" "$(CURDIR)"
$(STAMP): FORCE
endif

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.11 ..." % v)'
	@if [ "$$(cat $(VENV)/.where 2>/dev/null)" != "$(CURDIR)" ]; then "$(PYTHON)" -m venv --clear $(VENV); fi
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt hatchling
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	$(PY) -m pip check
	@printf '%s\n' "$(CURDIR)" > $(VENV)/.where
	@touch $@

ifneq "$(shell cat $(SGLANG)/.where 2>/dev/null)" "$(CURDIR)"
$(SGLANG_STAMP): FORCE
endif

$(SGLANG_STAMP): $(wildcard $(PLUGIN)/*.* $(PLUGIN)/redistill_sglang/*.py)
	@if [ "$$(cat $(SGLANG)/.where 2>/dev/null)" != "$(CURDIR)" ]; then "$(PYTHON)" -m venv --clear $(SGLANG); fi
	$(SGLANG)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r $(PLUGIN)/requirements-cpu.txt
	$(SGLANG)/bin/python -m pip install -q --disable-pip-version-check --no-deps --force-reinstall ./$(PLUGIN)
	@printf '%s\n' "$(CURDIR)" > $(SGLANG)/.where
	@touch $@

install: $(STAMP) ## create .venv and install everything
demo: $(STAMP) ## the embedded loop: a quiet window is held, a drifted one retrained and promoted
	$(PY) -m flows.retrain
test: $(STAMP) ## all tests, two files at a time
	$(PY) -m pytest -n 2 --dist loadfile -m 'not sglang'
test-fast: $(STAMP) ## the tests that start no service and train no model
	$(PY) -m pytest -m 'not slow and not integration and not sglang'
sglang-cpu: $(SGLANG_STAMP) ## an environment with SGLang for a machine without a GPU, 2.2 GB
test-sglang: $(STAMP) $(SGLANG_STAMP) ## the tests with real SGLang servers on the CPU, two files at a time
	$(PY) -m pytest -n 2 --dist loadfile -m sglang
lint: $(STAMP) ## ruff, mypy, import-linter, and that every test can be imported
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) -m pytest --collect-only -qq
format: $(STAMP) ## let ruff put the code in order
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
build: $(STAMP) ## sdist and wheel, without network
	rm -rf dist
	$(PY) -m hatchling build -t sdist -t wheel
clean: ## remove everything that was made here
	rm -rf $(VENV) $(SGLANG) dist redistill-demo notebooks/redistill-demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
