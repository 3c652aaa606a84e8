# make demo     run all stages on drawn sample images; needs only the package registry
# make test     run linter, type checker and tests
# make nightly  run the exhaustive versions of tests, of which `make test` runs a sample
# make docs     regenerate the documentation that is derived from the code
# make bench    run all benchmarks and compare them with benchmarks/results.yaml; bench-quick takes
#               ten minutes
# make browser  install Chromium for the browser tests of the report, on Debian
# make clean    remove the virtual environment and all generated folders

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

# Files run in order: those with whole jobs come first, so that no long file starts last.
tests: $(VENV)/.tested
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

nightly: $(VENV)/.tested
	$(BIN)/pytest -m nightly --timeout=3600

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
