# make demo     run everything on drawn sample images; only the package registry is needed
# make test     lint, types, tests
# make nightly  the exhaustive versions of tests that `make test` only samples
# make docs     regenerate the pages and tables that are made from the code
# make bench    run all benchmarks and compare with benchmarks/results.yaml; bench-quick: ten minutes

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-output

.PHONY: demo test lint types tests nightly bench bench-quick browser docs clean

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/lookalike demo --output $(DEMO)

test: lint types tests

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tested
	$(BIN)/mypy

# in file order: whole jobs come first, so that no long file is left for the end
tests: $(VENV)/.tested
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

nightly: $(VENV)/.tested
	$(BIN)/pytest -m nightly --timeout=3600

# Chromium and its driver for the browser tests of the report, on Debian
browser:
	apt-get update --quiet
	apt-get install --yes chromium chromium-driver

docs: $(VENV)/.tested
	$(BIN)/python -m tests.generated

bench: $(VENV)/.tested
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/.tested
	$(BIN)/python -m benchmarks --quick

clean:
	rm -rf $(VENV) $(DEMO) bench-output build *.egg-info
