# Every target sets itself up on a fresh machine: Python 3.11 or 3.12, make and a package registry are enough.
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter on this machine that is new enough and runs (a version manager's stub may not).
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
OUT ?= out
# Tests run in two processes side by side, each file in one of them, which sets it up once: a core and up to 3 GB each.
JOBS ?= 2

.PHONY: help explain parity test test-slow lint bench docs notebooks build freeze clean

help:
	@echo 'make explain    the four maps of four photographs, into $(OUT)/'
	@echo 'make parity     the same maps by Keras and by PyTorch, compared: $(OUT)/parity/report.html'
	@echo 'make test       the tests; make test-slow: the long ones; make lint: types, style, import borders'
	@echo 'make notebooks  both notebooks, run from top to bottom (five minutes)'
	@echo 'make docs       the documentation, into $(OUT)/docs; make build: sdist and wheel, into dist/'
	@echo 'make bench      speed and memory against what one would use instead; number formats; cost against work (half an hour)'

explain: $(VENV)/.base
	$(BIN)/python -m torch_impl explain --weights offline --out $(OUT)

parity: $(VENV)/.keras
	$(BIN)/python -m parity --samples 2 --weights offline --no-ladder --out $(OUT)/parity
	$(BIN)/python -m parity --samples 2 --weights offline-random:0 --out $(OUT)/parity-random

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.test
	mkdir -p $(OUT)
	$(BIN)/python -m benchmarks --json $(OUT)/benchmarks.json
	$(BIN)/python -m benchmarks precision --samples 4 --json $(OUT)/precision.json
	$(BIN)/python -m benchmarks cost --json $(OUT)/cost.json --plot $(OUT)/cost.svg

docs: $(VENV)/.test
	$(BIN)/python -m sphinx -W --keep-going -q docs $(OUT)/docs
	@echo 'wrote $(OUT)/docs/index.html'

notebooks: $(VENV)/.test
	$(BIN)/python notebooks/make.py

build: $(VENV)/.test
	$(BIN)/python -m build

freeze: $(VENV)/.test
	$(BIN)/python -m pip freeze --exclude-editable | sort -f | sed '1i \# Exact versions for development and CI: `pip install -c constraints.txt …`. Made with `make freeze`.' > constraints.txt

clean:
	rm -rf $(VENV) $(OUT)

$(VENV)/bin/python:
	@test -n '$(PYTHON)' || { echo 'make: Python 3.11 or 3.12 is needed, and none was found; install one, or say PYTHON=/path/to/python3.12' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# A stamp is written after a whole installation only, so that an interrupted one is done again.
$(VENV)/.base: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo 'Installing PyTorch and the libraries (a few minutes, once) ...'
	$(INSTALL) -e .
	@touch $@

$(VENV)/.keras: $(VENV)/.base
	@echo 'Installing TensorFlow, Keras and tf-keras-vis (once) ...'
	$(INSTALL) -e '.[keras]'
	@touch $@

$(VENV)/.test: $(VENV)/.keras
	@echo 'Installing the test tools (once) ...'
	$(INSTALL) -e '.[keras,ray,docs,bench,notebook,test]'
	@touch $@
