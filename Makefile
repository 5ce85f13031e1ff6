# make run    installs into .venv, trains on the demonstration set through Ray Data and Ray Train, prints the table
# make test   installs the test tools as well, then lint, types and tests; those that start a cluster come last, one by one
# make bench  the short set of benchmarks, on a machine that does nothing else

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

BENCH := OMP_NUM_THREADS=2 $(BIN)/python benchmarks

.PHONY: run test lint bench clean

run: $(VENV)/.run
	$(BIN)/python pipelines/mosi.py --num_epochs 8

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -m "not ray" --numprocesses 2 --dist loadfile --durations=40
	$(BIN)/python -m pytest -m ray --durations=40

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.run
	$(BENCH)/step.py
	$(BENCH)/step.py --breakdown
	$(BENCH)/scaling.py
	$(BENCH)/ingest.py
	$(BENCH)/startup.py --repeats 3
	$(BENCH)/preprocess.py pipelines/mosi.py
	$(BENCH)/trials.py

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[test]'
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
