# make run       installs into .venv, trains on the demonstration set through Ray Data and Ray Train, prints the table
# make test      installs the test tools as well, then lint, types and tests; those that start a cluster come last, one by one
# make coverage  the tests without a cluster, and which lines they reach
# make package   wheel and sdist in dist/, checked
# make audit     known holes of the packages in constraints.txt, from the database of PyPI; needs the network
# make sbom      dist/sbom.json, the packages of the environment in CycloneDX
# make docs      the site of the documentation in build/site; a warning is an error
# make notebooks runs the notebooks of the documentation and keeps what they print
# make slow      the tests that take minutes each
# make bench     the short set of benchmarks, on a machine that does nothing else

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUIETLY := $(BIN)/python -m pip install --quiet --disable-pip-version-check
install = $(QUIETLY) --constraint constraints.txt --editable '.$(1)'
ifneq ($(HASHES),)
install = $(QUIETLY) --no-deps --require-hashes --requirement $(HASHES) && \
	$(QUIETLY) --no-deps --no-build-isolation --editable .
endif

BENCH := OMP_NUM_THREADS=2 $(BIN)/python benchmarks

.PHONY: run test coverage package audit sbom docs notebooks slow lint bench clean

run: $(VENV)/.run
	$(BIN)/python pipelines/mosi.py --num_epochs 5

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -m "not ray and not slow" --numprocesses 2 --dist loadfile --durations=40
	$(BIN)/python -m pytest -m "ray and not slow" --durations=40

slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow --durations=40

coverage: $(VENV)/.test
	$(BIN)/python -m pytest -m "not ray and not slow" --numprocesses 2 --dist loadfile --cov=cggm_ray --cov-report=term

package: $(VENV)/.run
	$(call install,[release])
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

audit: $(VENV)/.run
	$(call install,[release])
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

sbom: $(VENV)/.run
	$(call install,[release])
	mkdir -p dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-format JSON \
		--output-file dist/sbom.json $(BIN)/python

docs: $(VENV)/.docs
	$(BIN)/python docs/theme/assets.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(VENV)/.docs
	$(BIN)/python docs/theme/execute.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.run
	$(BENCH)/speed/step.py
	$(BENCH)/speed/step.py --breakdown
	$(BENCH)/scale/scaling.py
	$(BENCH)/speed/ingest.py
	$(BENCH)/speed/startup.py --repeats 3
	$(BENCH)/speed/preprocess.py pipelines/mosi.py
	$(BENCH)/speed/trials.py

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(call install)
	touch $@

$(VENV)/.docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(call install,[docs])
	touch $@ $(VENV)/.run

$(VENV)/.test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(call install,[test])
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
