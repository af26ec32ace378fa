# `make help` lists the targets. Everything is installed into .venv, nothing outside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is too old: \
	Python 3.11 or newer is needed; make PYTHON=python3.12 names another" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help install install-locked lock licenses audit run test test-operations test-server test-slurm \
	lint format type ui server clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(STAMP) ## Make .venv and install the tested versions into it (once)

$(STAMP): pyproject.toml constraints.txt
	@$(NEW_ENOUGH)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

# What belongs to the set, and torch's file with it, differs between Pythons and systems.
HERE = $(PYTHON) -c 'import platform as p; print(p.python_implementation(), p.python_version().rsplit(".", 1)[0], "on", \
	p.system(), p.machine())'
install-locked: ## Make .venv anew from requirements.lock alone: every file has the hash that was tested
	@grep -qxF "# For $$($(HERE))." requirements.lock || { echo "error: requirements.lock is for" \
		"$$(sed -n 's/^# For \(.*\)\./\1/p' requirements.lock), and this is $$($(HERE)): make install takes any, and" \
		"make PYTHON=… install-locked another Python" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

lock: $(STAMP) ## Write requirements.lock anew: the tested set, with the hashes of its files
	$(BIN)/python supply_chain/lock.py

licenses: $(STAMP) ## Write docs/licenses.md; fails on an unknown licence and on the GPL
	$(BIN)/python supply_chain/licenses.py

audit: $(STAMP) ## Ask for known vulnerabilities of what requirements.lock names
	$(BIN)/python supply_chain/audit.py

run: $(STAMP) ## Run the default pipeline: resnet18 on bundled digits, no download
	$(BIN)/python -m pipeline

# After a process has crashed xdist would wait for ever, hence no restarts.
test: $(STAMP) ## Run the tests, on three processes of one thread each: some only wait
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# SHORT=1: each of these once, in a quarter of an hour. Otherwise 20 kills, 2,000 command lines, every fault in every
# stage (as root; the table goes into outputs/faults.md): an hour and a half. SEED=7 types other command lines.
ifdef SHORT
FULL =
else
FULL = PIPELINE_TEST_KILLS=20 PIPELINE_TEST_PROCESSES=8 PIPELINE_COVERAGE=5 PIPELINE_FUZZ=2000 PIPELINE_FAULTS=all \
	PIPELINE_FAULT_TABLE=$(CURDIR)/outputs/faults.md
endif
test-operations: $(STAMP) ## Try faults, kills, outages, random command lines; SHORT=1 for a few of each
	@mkdir -p outputs && rm -f outputs/faults.md
	OMP_NUM_THREADS=1 $(FULL) PIPELINE_FUZZ_SEED=$(SEED) \
		$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m operations

test-server: $(STAMP) ## Try a shared MLflow server with PostgreSQL: 16 writers at once, outages of a minute
	PIPELINE_TEST_SERVER=1 $(BIN)/python -m pytest -m operations tests/test_shared_server.py

test-slurm: $(STAMP) ## Run sweeps on a real Slurm that is started for it: as root, with slurm-wlm and munge
	OMP_NUM_THREADS=1 PIPELINE_TEST_SLURM=1 $(BIN)/python -m pytest -m operations tests/test_slurm.py

lint: $(STAMP) ## Check style, names, and that each room imports from those below it alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

format: $(STAMP) ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(STAMP) ## Check types
	$(BIN)/mypy

MLFLOW_PORT ?= 5000
ui: $(STAMP) ## Open the MLflow UI on http://127.0.0.1:5000 over outputs/mlflow.db (MLFLOW_PORT=5001: there)
	@test -f outputs/mlflow.db || { echo "error: outputs/mlflow.db does not exist yet; make run makes it" >&2; exit 1; }
	@$(PYTHON) -c 'import socket; socket.create_server(("127.0.0.1", $(MLFLOW_PORT)))' 2>/dev/null || { echo "error: \
	port $(MLFLOW_PORT) cannot be had; make ui MLFLOW_PORT=5001 takes another" >&2; exit 1; }
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/outputs/mlflow.db --host 127.0.0.1 --port $(MLFLOW_PORT)

server: $(STAMP) ## Start a shared MLflow server in outputs/server (tools/mlflow_server.sh stop outputs/server ends it)
	@mkdir -p outputs
	tools/mlflow_server.sh start outputs/server

clean: ## Remove .venv and caches; keep outputs/ and data/
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
