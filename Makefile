# Everything runs in .venv, made from the pinned files in requirements/ when it is missing or they changed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VENV5 := .venv-tf5
STAMP5 := $(VENV5)/.installed
# One compute thread per process would halve the speed of a single run; tests and tools take what the machine has.
export TOKENIZERS_PARALLELISM ?= false

# The documentation site needs none of the package's environment.
DOCS_VENV ?= .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed

.PHONY: help install install-app quickstart test test-long test-tf5 lint format docs benchmark clean

help:
	@echo "make quickstart  environment, data, training, evaluation, pictures: work_dirs/quickstart/report.html"
	@echo "make test        the test suite"
	@echo "make test-long   what takes long: many processes, large corpora, trials of killed runs; a skip is a failure"
	@echo "make test-tf5    the tests of the package without training, under transformers 5 (an environment of its own, $(VENV5))"
	@echo "make lint        ruff, import contracts, types (mypy), docstrings (pydoclint): what the hooks of pre-commit run too"
	@echo "make docs        the documentation site: work_dirs/site/index.html (an environment of its own, $(DOCS_VENV))"
	@echo "make install     only the environment in $(VENV)"
	@echo "make install-app what flmm-detseg app needs in addition (Gradio)"
	@echo "make benchmark   speed and memory ratios (docs/benchmarks.md)"
	@echo "make clean       removes $(VENV), $(VENV5) and work_dirs"

install: $(STAMP)

$(STAMP): requirements/lock.txt requirements/no_deps.txt requirements/deepspeed.txt setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"Python 3.11 or 3.12 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "this Python cannot make virtual environments: apt-get install python3-venv"; exit 1; }
	@if [ "$(VENV)" != .venv ] && [ -e "$(VENV)" ] && [ ! -e "$(STAMP)" ]; then echo "$(VENV) exists and was not made by this Makefile; name another with VENV=..."; exit 1; fi
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/lock.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/no_deps.txt
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -r requirements/deepspeed.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

install-app: $(VENV)/.app

$(VENV)/.app: $(STAMP) requirements/app.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/app.txt
	@touch $@

$(DOCS_STAMP): requirements/docs.txt
	rm -rf $(DOCS_VENV)
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements/docs.txt
	@touch $(DOCS_STAMP)

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build

quickstart: $(STAMP)
	$(BIN)/python tools/quickstart.py

# Processes that divide the test files. One thread in each: the tests' tensors are tiny, and on a busy machine threads
# that wait for each other take minutes.
JOBS ?= 2
test: export OMP_NUM_THREADS ?= 1
test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-long: export OMP_NUM_THREADS ?= 1
test-long: $(STAMP) $(VENV)/.app $(DOCS_STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/ocr.txt
	$(BIN)/python -m pytest -m long --no-skips

# The lock's environment with requirements/transformers5.txt over it. XTuner stays as it is and cannot be imported then,
# so what trains with it is left out, and so is what starts other processes.
TF5 := compat lmms heads refiners inference cache models labelling pretrain
$(STAMP5): requirements/lock.txt requirements/no_deps.txt requirements/deepspeed.txt requirements/transformers5.txt setup.py
	rm -rf $(VENV5)
	$(PYTHON) -m venv $(VENV5)
	$(VENV5)/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements/lock.txt
	$(VENV5)/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements/no_deps.txt
	DS_BUILD_OPS=0 $(VENV5)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -r requirements/deepspeed.txt
	$(VENV5)/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements/transformers5.txt
	$(VENV5)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP5)

test-tf5: export OMP_NUM_THREADS ?= 1
test-tf5: $(STAMP5)
	$(VENV5)/bin/python -m pytest $(addprefix tests/,$(TF5)) -m 'not (long or e2e)'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet flmm_detseg

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(STAMP)
	$(BIN)/python benchmarks/attention_rows.py
	$(BIN)/python benchmarks/prefix_reuse.py

clean:
	rm -rf $(VENV) $(DOCS_VENV) $(VENV5) work_dirs/*
