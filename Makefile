# demo, test, check, bench, screenshots, mutate, chaos and fuzz make .venv and install on first use; test-gpu and gpu-wheels do not.
# A C++ compiler (g++) makes it faster. Tests of the labeling pages want a browser and PostgreSQL (skipped if missing):
# apt-get install g++ chromium postgresql
PYTHON ?= python3
BIN := .venv/bin
OUTPUT ?= runs/demo

.PHONY: demo test check bench screenshots mutate chaos fuzz test-gpu gpu-wheels
.DEFAULT_GOAL := demo

# torch is pinned by itself first: from the pinned release pip takes a build without CUDA where there is one.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch .venv/installed

demo: .venv/installed
	$(BIN)/tutelage demo --output $(OUTPUT)

test: .venv/installed
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python benchmarks/bench.py --write

screenshots: .venv/installed
	$(BIN)/python docs/screenshots.py

# Break the algorithms on purpose: does a test fail? ONLY=objectives/kl takes the files whose path has that in it.
mutate: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutate.py $(ONLY)

# Kill runs at any moment and break their files: ONLY=sft takes one stage, KILLS=5 fewer kills.
chaos: .venv/installed
	OMP_NUM_THREADS=1 PYTHONPATH=tests ONLY=$(ONLY) KILLS=$(KILLS) $(BIN)/python tests/chaos/chaos.py

# Malformed files and settings, and requests to the labeling pages: as many as FUZZ says, 5,000 unless told otherwise.
fuzz: .venv/installed
	TUTELAGE_FUZZ=$(or $(FUZZ),5000) $(BIN)/python -m pytest -n 2 --dist loadfile -s tests/test_malformed.py tests/labeling/test_schema.py

# On a machine with a GPU and its own torch and transformers; tests/gpu/README.md says what else it needs.
test-gpu:
	$(PYTHON) -c "import jaxtyping, jinja2, pydantic, pytest, rich, yaml" || \
		$(PYTHON) -m pip install --quiet --no-index --find-links build/wheels pydantic pyyaml rich jaxtyping jinja2 pytest
	PYTHONPATH=src $(PYTHON) -m pytest -o addopts= -o filterwarnings= -p no:cacheprovider -q tests/gpu

gpu-wheels:
	$(PYTHON) -m pip download --quiet --only-binary :all: --constraint constraints.txt --dest build/wheels \
		pydantic pyyaml rich jaxtyping jinja2 pytest
