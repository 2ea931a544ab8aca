# Everything a newcomer needs: `make demo`, `make test`. Both install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= out/gpu
EXAMPLES ?= 100
FINDINGS ?=
OPTIONS ?=

.PHONY: install demo test slow fuzz lint format parity gpu gpu-wheels clean

install: $(STAMP)

# The stamp is renewed only when what has to be installed changes.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=24"
	$(BIN)/python -m pip install -q -c constraints.txt "torch"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: install
	$(BIN)/python examples/demo.py --out demo_output

# Two processes of one thread each; the tests of a file stay together, because they share what is slow to build.
test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

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
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache demo_output
