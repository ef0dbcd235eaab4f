# Each target creates the environment that it needs; make and Python 3.11 or newer are the only requirements.
# .venv holds everything that the tests use, .venv-demo only the package and its three requirements,
# .venv-minimum the minimum versions of the requirements, .venv-newest the newest Python at hand,
# .venv-packages the tools that build and check packages, and .dask dask.distributed as released and on this core.

PYTHON ?= python3
# the oldest supported Python, for which the minimum versions of all requirements have wheels
PYTHON_MINIMUM ?= $(shell command -v python3.11 || echo $(PYTHON))
# the newest Python at hand; empty if none is newer than PYTHON
PYTHON_NEWEST ?= $(shell $(PYTHON) scripts/interpreters.py --newest)
VENV := .venv
VENV_DEMO := .venv-demo
VENV_MINIMUM := .venv-minimum
VENV_NEWEST := .venv-newest
VENV_PACKAGES := .venv-packages
# the extras of setup.cfg whose minimum versions are tested, and the tools for these tests, in any version
MINIMUM_EXTRAS := cli compression config libraries metrics security statistics tracebacks
MINIMUM_TOOLS := hypothesis kosoku pytest pytest-timeout websockets
# what is installed for the newest Python: no heavy library but numpy
NEWEST_EXTRAS := cli,compression,config,security,statistics,tracebacks
NEWEST_TOOLS := hypothesis numpy pytest pytest-timeout websockets
BIN := $(VENV)/bin
# modules are compiled when they are first imported: most of those in the large libraries never are
PIP_INSTALL := -m pip install --disable-pip-version-check --no-compile -qq
# each test file runs in one of these processes, so that its tests share what is expensive to set up
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
FUZZ_ARGS ?=
SOAK_ARGS ?=
QUICK ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo dask test test-minimum test-newest packages check lint types contracts format docs pytest fuzz soak bench clean python-is-new-enough

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) \
	  | while IFS='|' read -r verb what; do printf '  make %-13s %s\n' "$$verb" "$$what"; done
	@echo
	@echo '  PYTHON=...      the interpreter for new environments (default: python3; 3.11 or newer)'
	@echo '  PYTEST_ARGS=... arguments for pytest, such as PYTEST_ARGS="-k handshake -x"'
	@echo '  PYTEST_WORKERS=... processes for the tests (default: 2; 0 for none beside pytest itself)'
	@echo '  SOAK_ARGS=...   arguments for the soak test, such as SOAK_ARGS="--calls 20000 --address unix://"'
	@echo '  QUICK=1         measure for a few minutes only'
	@echo '  BENCH_ARGS=...  arguments for the benchmarks, such as BENCH_ARGS="--only sequential --contestants ours,original"'

demo: $(VENV_DEMO)/.made  ## run a server and three clients, each in its own process
	@$(VENV_DEMO)/bin/python examples/demo.py

dask: $(VENV)/.made  ## run a dask program on dask.distributed as released, and on this core
	@$(BIN)/python examples/dask/compare.py

test: check docs pytest  ## run check, docs and the test suite

test-minimum: $(VENV_MINIMUM)/.made  ## run tests with exactly the minimum versions of the requirements
	$(VENV_MINIMUM)/bin/python -m pytest $(PYTEST_ARGS)

test-newest: | python-is-new-enough  ## run tests with the newest Python at hand, if it is newer than PYTHON
	@if [ -z "$(PYTHON_NEWEST)" ]; then \
	  echo "make test-newest: skipped, no Python newer than $$($(PYTHON) --version) was found;" \
	    "name one: make test-newest PYTHON_NEWEST=/path/to/python"; \
	else \
	  $(MAKE) --no-print-directory $(VENV_NEWEST)/.made PYTHON_NEWEST="$(PYTHON_NEWEST)" && \
	  $(VENV_NEWEST)/bin/python -m pytest $(PYTEST_ARGS); \
	fi

packages: $(VENV_PACKAGES)/.made  ## build and check the packages, and run the demo from them with each Python at hand
	@$(VENV_PACKAGES)/bin/python scripts/packages.py

check: lint types contracts  ## check style, types and import contracts

format: $(VENV)/.made  ## format the code
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

docs: $(VENV)/.made  ## build the documentation in docs/_build/html; a warning is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

lint: $(VENV)/.made
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/python scripts/plain_english.py

types: $(VENV)/.made
	$(BIN)/mypy

contracts: $(VENV)/.made
	$(BIN)/lint-imports --no-logo

pytest: $(VENV)/.made
	$(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

fuzz: $(VENV)/.made  ## search for messages that break the protocol, until interrupted (FUZZ_ARGS for libFuzzer)
	$(BIN)/python $(PIP_INSTALL) --editable '.[fuzz]'
	$(BIN)/python -m distributed.protocol.tests.fuzzing $(FUZZ_ARGS)

soak: $(VENV)/.made  ## make 300,000 calls beside hostile peers (3 minutes); fail if an answer is wrong or memory grows
	@$(BIN)/python -m distributed.tests.soak $(SOAK_ARGS)

bench: $(VENV)/.made  ## measure this project, the original, similar libraries and the limits of the machine
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(BENCH_ARGS)

clean:  ## remove the environments and all generated files
	rm -rf $(VENV) $(VENV_DEMO) $(VENV_MINIMUM) $(VENV_NEWEST) $(VENV_PACKAGES) .dask .environments docs/_build build *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .fuzz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is recreated when the declared requirements change, so that requirements removed from setup.cfg
# are gone. The file .made is written last, so that an interrupted attempt is repeated.
$(VENV)/.made: setup.cfg setup.py | python-is-new-enough
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python $(PIP_INSTALL) --editable '.[test]'
	@touch $@

$(VENV_DEMO)/.made: setup.cfg setup.py | python-is-new-enough
	$(PYTHON) -m venv --clear $(VENV_DEMO)
	$(VENV_DEMO)/bin/python $(PIP_INSTALL) --editable .
	@touch $@

$(VENV_MINIMUM)/.made: setup.cfg setup.py scripts/minimum_versions.py | python-is-new-enough
	$(PYTHON_MINIMUM) -m venv --clear $(VENV_MINIMUM)
	$(VENV_MINIMUM)/bin/python scripts/minimum_versions.py $(MINIMUM_EXTRAS) > $(VENV_MINIMUM)/requirements.txt
	$(VENV_MINIMUM)/bin/python $(PIP_INSTALL) --requirement $(VENV_MINIMUM)/requirements.txt $(MINIMUM_TOOLS)
	$(VENV_MINIMUM)/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

$(VENV_NEWEST)/.made: setup.cfg setup.py
	$(PYTHON_NEWEST) -m venv --clear $(VENV_NEWEST)
	$(VENV_NEWEST)/bin/python $(PIP_INSTALL) --editable '.[$(NEWEST_EXTRAS)]' $(NEWEST_TOOLS)
	@touch $@

$(VENV_PACKAGES)/.made: | python-is-new-enough
	$(PYTHON) -m venv --clear $(VENV_PACKAGES)
	$(VENV_PACKAGES)/bin/python $(PIP_INSTALL) build check-wheel-contents twine
	@touch $@

python-is-new-enough:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No '$(PYTHON)' found. Name a Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "'$(PYTHON)' is $$($(PYTHON) --version 2>&1), but 3.11 or newer is needed:" \
	    "make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot create virtual environments: its venv module is missing" \
	    "(on Debian: apt-get install python3-venv)." >&2; exit 1; }
