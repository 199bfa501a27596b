# Two commands do everything, from a fresh clone: `make demo` and `make test`.
# Each builds its own environment first; a second call starts at once.

PYTHON ?= python3
VENV ?= .venv
# Processes for the tests: `make test JOBS=0` runs them in one, where the order of the output matters.
JOBS ?= logical
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINNED := pyproject.toml constraints.txt
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev

# Tests start many processes: each would compile anew what the one before has compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test campaigns lint format docs release-check materials lock browser clean

help:  ## list what there is
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' $(MAKEFILE_LIST)

demo: $(DEMO)  ## generate pictures with and without magpolicy
	$(BIN)/magpolicy demo

test: $(DEV)  ## every check there is: style, types, import contracts, docs, tests
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory docs
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --maxprocesses=4 --dist=loadfile

campaigns: $(DEV)  ## everything that breaks things on purpose, at its large size: hours; see docs/explanation/promises.md
	$(PIP) install --quiet -c constraints.txt -e '.[campaigns]'
	MAGPOLICY_FUZZ=6000 $(BIN)/python -m pytest tests/core/test_strange_files.py
	MAGPOLICY_FAULTS=2000 $(BIN)/python -m pytest tests/faults
	MAGPOLICY_EVERY=1 $(BIN)/python -m pytest --numprocesses=$(JOBS) --maxprocesses=4 --dist=loadfile
	MAGPOLICY_SOAK=1000 $(BIN)/python -m pytest -s tests/soak
	PYTHONHASHSEED=7 $(BIN)/python -X dev -m pytest -p randomly tests/core tests/torch
	$(BIN)/python -m coverage run -m pytest tests/core tests/cli tests/torch tests/quality
	$(BIN)/python -m coverage report
	$(BIN)/python tools/mutants.py

lint: $(DEV)  ## style, types and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)  ## bring the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(DEV)  ## build the documentation into site/, warnings are errors
	$(BIN)/mkdocs build --strict

release-check: $(DEV)  ## everything before a release: workflows, notes, what wheel and sdist hold, both as installed; TAG=v0.1.0
	rm -rf dist
	$(BIN)/python tools/release_check.py $(if $(TAG),--tag $(TAG)) dist

materials: $(DEV)  ## bills of materials and licences of each extra, of what release-check built, into dist/materials
	$(BIN)/python tools/bill_of_materials.py dist/magpolicy-*.whl dist/materials

lock: $(DEV)  ## write the locks anew, from pyproject.toml and constraints.txt
	$(BIN)/python tools/lock.py

browser:  ## a browser for the tests of pages and of the ComfyUI panel, where it is missing and can be installed
	@.ci/browser

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache
	find src adapters examples tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(DEMO): $(PINNED) | $(BIN)/python
	@echo 'Installing into $(VENV); the first time takes a few minutes.'
	$(PIP) install --quiet -c constraints.txt -e '.[demo]'
	@touch $@

$(DEV): $(PINNED) | $(BIN)/python
	@echo 'Installing into $(VENV); the first time takes a few minutes.'
	$(PIP) install --quiet -c constraints.txt -e '.[all,dev]'
	@touch $@ $(DEMO)
