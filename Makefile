# `make chat` and `make test` set up everything they need in $(VENV). Needs make and Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
MODEL ?=
ARGS ?=
comma := ,
EXTRA := $(if $(shell command -v nvidia-smi 2>/dev/null),cu13$(comma),)
BIN = $(VENV)/bin
SETUP = $(VENV)/installed

.PHONY: named chat test slow check gpu bench clean
.SILENT:

$(SETUP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRA)test]'
	touch $@

named:
	$(if $(MODEL),,$(error say which model: MODEL=path-or-hub-id))

chat: $(SETUP)
	$(BIN)/bwinfer chat $(if $(MODEL),'$(MODEL)') $(ARGS)

test: $(SETUP)
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

slow: $(SETUP)
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'slow and not gpu' $(ARGS)

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

gpu: $(SETUP)
	$(BIN)/python -m pytest -m gpu $(ARGS)

bench: named $(SETUP)
	$(BIN)/bwinfer bench '$(MODEL)' $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info
