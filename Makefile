# make demo   everything on drawn sample images, offline but for the package registry
# make test   lint, types, tests
# make bench  the measured claims again; make bench-quick those of ten minutes

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

# in their own order: the whole jobs come first, and no long file is left for the end
tests: $(VENV)/.tested
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# all points of the loops of which `make test` takes a sample
nightly: $(VENV)/.tested
	$(BIN)/pytest -m nightly --timeout=3600

# what the browser tests of the report need, on Debian
browser:
	apt-get install --yes chromium chromium-driver

# the pages that are made from the code
docs: $(VENV)/.tested
	$(BIN)/python -m tests.generated

bench: $(VENV)/.tested
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/.tested
	$(BIN)/python -m benchmarks --quick

clean:
	rm -rf $(VENV) $(DEMO) bench-output build *.egg-info
