# Every target sets itself up: a fresh machine needs Python 3.11 or newer with its venv module,
# and make. `make help` lists the targets.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt

VENV := .venv
TOWN_V2 := runs/town_v2/model.safetensors
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow gpu fuzz check lint types imports fmt docs dist bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter, CONSTRAINTS=FILE other pinned versions."

setup: $(STAMP) ## install everything into .venv (the other targets do it when needed)

demo: $(STAMP) ## render a town, run the main job on it, compare with the truth (folder demo/)
	$(BIN)/geoseg demo demo --overwrite

test: $(STAMP) ## run the tests, without those that take long or need a GPU
	$(BIN)/python -m pytest -m "not slow and not gpu"

slow: $(STAMP) ## run the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu"

gpu: $(STAMP) ## run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

fuzz: $(STAMP) ## break 10,000 files and see what geoseg makes of them
	$(BIN)/python tests/fuzz/run.py --files 10000 --seed 1 --jobs 2

check: lint types imports ## lint, types and import directions

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

imports: $(STAMP) ## import directions between the rooms
	$(BIN)/lint-imports

fmt: $(STAMP) ## format the code and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## write docs/api.md from the docstrings, and the table of docs/inputs.md from the tests
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_inputs.py

dist: $(STAMP) ## build the wheel into dist/
	$(BIN)/python -m pip wheel . --no-deps -w dist

bench: $(STAMP) ## run the benchmarks that need no data
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/roialign.py
	$(BIN)/python benchmarks/vectorize.py
	$(BIN)/python benchmarks/throughput.py
	@if [ -f $(TOWN_V2) ]; then $(BIN)/python benchmarks/throughput.py --models $(TOWN_V2) --size 2816 --name throughput_v2; \
		else echo "torchvision's v2 with trained weights is left out: benchmarks/town_v2.toml says how to train it"; fi
	$(BIN)/python benchmarks/skip_empty.py
	$(BIN)/python benchmarks/scale_memory.py

clean: ## remove .venv, caches and the demo
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find geoseg tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: a set-up that was interrupted is done again.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@"$(PYTHON)" -c 'pass' 2>/dev/null || { \
		echo "$(PYTHON) was not found or does not run; install Python 3.11 or newer, or name one: make PYTHON=..." >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), but geoseg needs 3.11 or newer:" \
			"make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; \
		exit 1; }
	@echo "Installing into $(VENV): some minutes, and some 6 GB on Linux (torch brings CUDA)."
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@
