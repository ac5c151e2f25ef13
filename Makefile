# `make sweep`, `make test`, `make check`: each sets up what it needs, then runs. Second calls reuse the environment.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(if $(shell command -v $(p) 2>/dev/null),$(p))))
BIN := $(abspath $(VENV))/bin
RUN := PATH="$(BIN):$$PATH" MLFLOW_DISABLE_TELEMETRY=true GIT_PYTHON_REFRESH=quiet
METHOD ?= bnb
LIMIT ?= 100
PORT ?= 5000
MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlflow.db
export MLFLOW_TRACKING_URI
PROJECT := $(RUN) mlflow run . --env-manager local --experiment-name llamaquant

.PHONY: sweep quick doctor train-demo ui test check lint env env-dev clean help

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/: /'

sweep: env ## sweep on the embedded demo: METHOD=bnb|gptq|awq|all LIMIT=stories
	@$(PROJECT) -e sweep -P method=$(METHOD) -P limit=$(LIMIT)

quick: env ## fp16, 8-bit and 4-bit NF4 on the demo
	@$(PROJECT) -e quick -P limit=$(LIMIT)

doctor: env ## what works on this machine
	@$(RUN) python -m entrypoints.doctor

train-demo: env ## train the embedded demo anew
	@$(PROJECT) -e train_demo

ui: env ## open the tracked runs on 127.0.0.1:PORT, in MLflow's light mode
	@echo "open http://127.0.0.1:$(PORT)"
	@$(RUN) MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --host 127.0.0.1 --port $(PORT) --workers 1 \
	  --backend-store-uri "$$MLFLOW_TRACKING_URI"

test: env-dev ## unit and smoke tests
	@$(RUN) python -m pytest

lint: env-dev
	@$(RUN) ruff check . && $(RUN) mypy

check: lint test ## all that CI checks: ruff, mypy, architecture test, tests

env: $(VENV)/.installed
env-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit(f"error: llamaquant needs Python 3.11 or 3.12, got {v[0]}.{v[1]}: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt tools/install.sh | $(VENV)/bin/python
	@bash tools/install.sh $(VENV) requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements.txt requirements-dev.txt tools/install.sh | $(VENV)/bin/python
	@bash tools/install.sh $(VENV) requirements-dev.txt
	@touch $@ $(VENV)/.installed

clean: ## remove the environment and everything that runs made
	rm -rf $(VENV) outputs mlruns mlartifacts mlflow.db
