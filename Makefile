# `make sweep` and `make test` set up what they need and then do their job; `make setup` is the set-up alone.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup setup-test setup-docs sweep test lint ui dashboard docs
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

setup: $(VENV)/.setup  ## a virtual environment with tested versions; quick when it is there already

setup-test: $(VENV)/.setup-test

setup-docs: $(VENV)/.setup-docs

sweep: setup  ## the main job on the embedded data set: custom and ResNet50, compared
	$(BIN)/python -m src.train -m model=custom,resnet50

# one more process than cores, for the pauses in which tests wait for processes, servers and a browser; files in their own order:
# by number of tests, those with few but slow ones (studies on engines) come last and one process ends alone
WORKERS ?= $(shell $(BIN)/python -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')

test: setup-test  ## the tests, a file a process, one process more than there are cores, four at most
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

lint: setup-test  ## linter, formatter, type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: setup  ## the MLflow UI on 127.0.0.1, on this project's store
	$(BIN)/python -m src.tracking.ui

dashboard: $(VENV)/.setup-dashboard  ## Optuna's dashboard on 127.0.0.1, on this project's studies
	$(BIN)/python -m src.sweep.dashboard

docs: setup-docs  ## the documentation, built strictly into site/
	$(BIN)/python docs/configuration.py
	$(BIN)/zensical build --strict --config-file mkdocs.yml

# torch before the rest: a CPU build that is there already satisfies the others, which would else draw a CUDA build
$(VENV)/.setup: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV): some minutes the first time"
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.setup-test: $(VENV)/.setup
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.setup-dashboard: $(VENV)/.setup
	$(PIP) --editable '.[dashboard]'
	@touch $@

$(VENV)/.setup-docs: $(VENV)/.setup
	$(PIP) --editable '.[docs]'
	@touch $@
