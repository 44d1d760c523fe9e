# The targets are what CI runs. `make demo` and `make test` are all that a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROTOS := protos/outrider/v1

.PHONY: help setup demo test helm-test faults kills cluster-test check format lint types layers protos protos-check clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED)  ## the environment, in .venv

$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt
	@echo "── environment: $(VENV) (torch and ray are large; this takes two to three minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e client -e '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## a real model answers three prompts through the real path
	$(BIN)/outriderd demo

# In two processes, for CI's two cores. A file stays in one of them, so that what its tests share is made once.
test: $(INSTALLED)  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

FAULTS := 100000

faults: $(INSTALLED)  ## the scheduler's core in 100,000 schedules of faults, or FAULTS=N; half an hour on two cores
	$(BIN)/outriderd simulate --faults $(FAULTS)

helm-test: $(INSTALLED)  ## the chart: rendered by the real helm, and held to Kubernetes' and KubeRay's rules
	$(BIN)/python -m pytest -m helm tests/helm

KILL_SECONDS := 180

kills: $(INSTALLED)  ## every process of a cell killed in turn, for three minutes (KILL_SECONDS), under 32 streams
	$(BIN)/python -m pytest tests/cluster/test_kills.py -s --kill-seconds $(KILL_SECONDS)

cluster-test: $(INSTALLED)  ## nodes of Ray lost, announced to go, added and removed, under load; times to recover; four minutes or more
	$(BIN)/python -m pytest tests/cluster/nodes --nodes

check: $(INSTALLED) lint types layers protos-check  ## everything short of the tests

lint: $(INSTALLED)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy

layers: $(INSTALLED)  ## import-linter: the layers of docs/architecture.md
	$(BIN)/lint-imports

format: $(INSTALLED)  ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(INSTALLED)  ## generate client/outrider/v1 from protos/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos \
	    --python_out=client --pyi_out=client $(PROTOS)/*.proto
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos \
	    --grpc_python_out=client --mypy_grpc_out=client \
	    $(PROTOS)/inference.proto $(PROTOS)/target.proto $(PROTOS)/drafter.proto

protos-check: protos  ## the committed stubs are those of protos/
	@git diff --exit-code --stat -- client/outrider/v1 \
	    || { echo "client/outrider/v1 is not what protos/ gives: run 'make protos' and commit the result"; exit 1; }
	@test -z "$$(git status --porcelain -- client/outrider/v1)" \
	    || { git status --short -- client/outrider/v1; echo "commit the generated files"; exit 1; }

clean:  ## remove the environment and every cache in this folder
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
