# Everything a newcomer needs: `make demo`, `make test`, `make docs`. Each installs what it needs into .venv first.
VENV := .venv
ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN := $(VENV)/Scripts
SHELL := bash
else
PYTHON ?= python3
BIN := $(VENV)/bin
endif
CONSTRAINTS := constraints.txt
STAMP := $(VENV)/.installed
OUT ?= out/gpu
EXAMPLES ?= 100
FINDINGS ?=
OPTIONS ?=

.PHONY: install browser-tools demo test lowest install-and-test docs slow fuzz lint format parity gpu gpu-wheels clean

install: $(STAMP)

# The stamp is renewed only when what has to be installed changes.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=24"
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) "torch"
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e ".[dev]"
	touch $(STAMP)

# The checkers of types and of accessibility for the studio's page; tests/browser/package-lock.json pins them. Without npm
# those tests are skipped.
BROWSER_TOOLS := tests/browser/node_modules/.installed

browser-tools: $(BROWSER_TOOLS)

$(BROWSER_TOOLS): tests/browser/package.json tests/browser/package-lock.json
	@if command -v npm > /dev/null; then npm ci --prefix tests/browser --no-audit --no-fund --silent && touch $@; \
	else echo "npm is not installed: the types of the studio's page are not checked"; fi

demo: install
	$(BIN)/python examples/demo.py --out demo_output

# Two processes of one thread each; the tests of a file stay together, because they share what is slow to build.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: install browser-tools lint
	$(PYTEST)

# The same tests with the lowest versions that pyproject.toml allows, in an environment of its own.
lowest:
	$(MAKE) install-and-test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

install-and-test: install
	$(PYTEST)

# Into site/; a broken link or reference is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

slow: install
	$(BIN)/python -m pytest -m slow

# Broken inputs, so many of each kind: docs/architecture.md tells how they are judged.
fuzz: install
	FUZZ_EXAMPLES=$(EXAMPLES) FUZZ_FINDINGS=$(FINDINGS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz \
		--hypothesis-show-statistics

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

parity: install
	$(BIN)/python -m pytest -s -m "slow or not slow" tests/test_parity.py tests/test_parity_filmed.py

# With the Python that has torch for the GPU, not with .venv: docs/speed.md tells how.
gpu:
	$(PYTHON) benchmarks/gpu.py --out $(OUT) $(OPTIONS)

gpu-wheels:
	$(PYTHON) benchmarks/on_gpu/wheels.py

clean:
	rm -rf $(VENV) .venv-lowest site .mypy_cache .ruff_cache .pytest_cache demo_output
