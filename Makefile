# Everything happens in .venv, filled from hashed pins: no server, no root, nothing installed elsewhere.
#   PYTHON=python3.12 make install      another interpreter (`make clean` first, if .venv exists)
#   make test ARGS="-k spool -x"        ARGS goes to the program behind test, chaos, demo, bench and lock

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INTEROP := .venv-interop
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
LOCK := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile pyproject.toml \
	--extra platform --extra postgres --extra metrics --universal --python-version 3.11 --generate-hashes \
	--no-strip-extras --no-emit-index-url --no-emit-find-links --quiet
# One more than there are cores: the tests of whole platforms wait, for a browser or a daemon's tick.
WORKERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
SOURCES := ingest tds_dagster tests benchmarks examples

.DEFAULT_GOAL := help
.PHONY: help install demo test interop chaos check format docs lock bench clean

help: ## list these targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed ## make .venv and fill it from requirements/dev.txt; instant when nothing changed

demo: install ## agents at work for seven days, through to JSONL exports; ends with a table of what was made
	@$(BIN)/tds demo $(ARGS)

test: install ## run the tests, a file a process, in up to four processes; ARGS="-k spool -x" picks some
	@$(BIN)/pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

interop: $(INTEROP)/.installed ## check the dialects with TRL's and OpenAI's own packages, in .venv-interop: a gigabyte
	@$(INTEROP)/bin/python -m pytest tests/interop --timeout 600 $(ARGS)

chaos: install ## attack the write path for a minute and count; ARGS="--minutes 30", "--controls" or "--help"
	@$(BIN)/python -m tests.chaos $(ARGS)

check: install ## ruff, formatting, mypy and the import contracts: what a change has to pass beside the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: install ## put the code into ruff's format and apply its safe fixes
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: install ## write what follows from the code: the tables of docs/files.md, and .env.example
	@$(BIN)/python docs/generate.py

lock: $(VENV)/.locked ## resolve pyproject.toml into requirements/*.txt; ARGS=--upgrade takes newer releases
	@$(LOCK) --extra dev --output-file requirements/dev.txt $(ARGS)
	@$(LOCK) --constraint requirements/dev.txt --output-file requirements/platform.txt
	@echo "requirements/dev.txt and platform.txt are up to date; make install takes the one, the Dockerfile the other"

bench: install ## measure the write path against named peers; ten minutes; ARGS="--write" keeps the page
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove .venv, caches and build output; data/ stays
	rm -rf $(VENV) $(INTEROP) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find $(wildcard $(SOURCES)) -type d -name __pycache__ -prune -exec rm -rf {} +

# Three stamps, so that a half-finished step is done again and a finished one never is.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit( \
		"$(PYTHON) is Python %d.%d: expected 3.11 or newer; name one, as in: make install PYTHON=python3.12" % v[:2])'
	@echo "[1/3] $(VENV): a virtual environment of $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.locked: requirements/dev.txt $(VENV)/.created
	@echo "[2/3] $(VENV): the pinned packages of requirements/dev.txt, one to three minutes"
	@$(PIP) install -qq --require-hashes --requirement requirements/dev.txt
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.locked
	@echo "[3/3] $(VENV): this project, editable"
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

# A venv of its own, and no pins: what is asked here is what the trainers' newest releases make of our files.
$(INTEROP)/.installed: pyproject.toml
	@test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	@$(INTEROP)/bin/python -m pip --disable-pip-version-check --no-input install -qq --editable '.[platform,interop]'
	@touch $@
