# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
# The newest torch that axolotl 0.19 (Python 3.11) and 0.21 (3.12+) share. For another
# CUDA build: make demo TORCH='torch==2.13.0 --index-url <the build you want>'.
TORCH  ?= torch==2.13.0

BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: demo test install lint types tests bench clean

demo: install
	$(BIN)/leviathan demo

test: lint types tests

install: $(STAMP)

# torch first: with it in place nothing else pulls in another build of it.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable '.[train,dev]'
	touch $(STAMP)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# Three workers on two cores: much of the time is waiting. A file stays with one worker, since
# its tests share trainings; files go out in their order, the long ones (tests/real) first.
tests: install
	scripts/install_test_tools.sh
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=25

bench: install
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/crash.py
	$(BIN)/python benchmarks/corpus.py --check

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
