# Each target makes its own environment; nothing has to be installed before but Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench sweep fuzz-api soak soak-workers lab lab-power mutants clean

demo: $(VENV)/installed  ## publish a site, killed in the middle, recovered
	$(BIN)/python examples/site/demo.py

test: $(VENV)/tests-installed  ## the whole test suite
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST)

check: $(VENV)/check-installed  ## lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/usage/usage.py
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(VENV)/tests-installed  ## ours against the alternatives, interleaved
	$(BIN)/python bench/transition.py
	$(BIN)/python bench/concurrency.py
	$(BIN)/python bench/large.py
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/engine.py
	$(BIN)/python bench/agents.py
	$(BIN)/python bench/api.py

sweep: $(VENV)/tests-installed  ## every kill point of every workload, and of its recoveries
	SUREFOOT_SWEEP=full $(BIN)/python -m pytest -n auto tests/test_sweeps.py

lab: $(VENV)/tests-installed  ## the crash lab; writes its results into LAB.md: LONG=1 SEED ONLY SCALE
	$(BIN)/python tests/crash/lab.py $(if $(LONG),--long) --seed $(or $(SEED),1) --scale $(or $(SCALE),1) --only "$(ONLY)" $(if $(ONLY),,--write)

mutants: $(VENV)/tests-installed  ## every flush, check and order broken, one at a time: does the lab see it? WORD
	mkdir -p build && $(BIN)/python tests/crash/mutation.py run 2500 $(WORD) > build/mutants.json

lab-power: $(VENV)/tests-installed  ## power cuts on ext4, xfs and btrfs images (root): CUTS SEED
	for filesystem in ext4 xfs btrfs; do rm -rf build/lab; \
	  $(BIN)/python tests/crash/powercut.py build/lab $$filesystem $(or $(CUTS),500) $(or $(SEED),1) || exit 1; done

fuzz-api: $(VENV)/tests-installed  ## the API asked at random for whatever its OpenAPI allows, and what not: EXAMPLES SEED
	mkdir -p build/fuzz.$$$$ && $(BIN)/python tests/support/fuzzing.py build/fuzz.$$$$ $(or $(EXAMPLES),20) $(or $(SEED),1)

soak-workers: $(VENV)/tests-installed  ## workers killed and stopped over a queue of runs: WORKERS RUNS SEED
	mkdir -p build && $(BIN)/python tests/support/worksoak.py build/workers.$$$$ $(or $(SOAK),3 2000 1)

soak: $(VENV)/tests-installed  ## processes killed and stopped at random: PROCESSES RUNS TRANSITIONS SEED
	mkdir -p build/soak.$$$$ && $(BIN)/python tests/support/soak.py build/soak.$$$$ $(or $(SOAK),4 16 500 1)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is %s" % sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/tests-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

$(VENV)/check-installed: $(VENV)/tests-installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
