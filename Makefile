# make help says what there is.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

SHELL := /bin/bash
export UV_PYTHON_DOWNLOADS := never

ifeq ($(strip $(VENV)),)
# An environment of the user's: used as it is, nothing is installed.
RUN := $(PYTHON)
ENVIRONMENT := check-environment
else
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
ENVIRONMENT := $(READY)
# Make the venv anew if its folder moved, its interpreter is gone, or PYTHON= now asks for another.
$(shell [ -f $(READY) ] || exit; \
    wanted="$$($(RUN) -V 2>&1)" && [ "$(origin PYTHON)" = 'command line' ] && wanted="$$($(PYTHON) -V 2>&1)"; \
    [ "$$(cat $(READY)) $$($(RUN) -V 2>&1)" = "$(CURDIR) $$wanted" ] || mv $(READY) $(VENV)/.stale)
endif

.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow test-gpu lint doctor lock clean check-environment

help:
	@echo 'make demo       draw scenes, pre-train a small PerA on them, report (minutes, no GPU needed)'
	@echo 'make test       the test suite on two cores; ARGS="-k mask -x" goes to pytest, ARGS="-n 0" is one process'
	@echo 'make test-slow  the slow tests only'
	@echo 'make test-gpu   training on a GPU against the CPU, and its cost; writes a report to send (docs/gpu.md)'
	@echo 'make lint       ruff and mypy'
	@echo 'make doctor     what is installed here and what can run'
	@echo 'make env        only the environment'
	@echo 'make lock       resolve requirements/ anew into requirements/lock.txt'
	@echo 'make clean      remove caches and build leftovers; rm -r .venv removes the environment'
	@echo
	@echo 'Each makes .venv on first use, from the versions in requirements/lock.txt, and re-uses it;'
	@echo 'an active environment is left alone.  PYTHON=python3.12 chooses the interpreter for it.'
	@echo 'To run in an environment of your own (another torch, a compiled mmcv), where'
	@echo '"pip install -e .[all]" was run:  make test VENV= PYTHON=/path/to/python'

env: $(ENVIRONMENT)

demo: $(ENVIRONMENT)
	$(RUN) tools/demo.py $(ARGS)

# On two cores. A fixture serves the tests that one core takes; a core that is done takes tests of the other.
test: $(ENVIRONMENT)
	$(RUN) -m pytest -n 2 --dist worksteal $(ARGS)

test-slow: $(ENVIRONMENT)
	$(RUN) -m pytest -m slow $(ARGS)

test-gpu: $(ENVIRONMENT)
	$(RUN) -m pytest -m gpu tests/gpu tests/engine/test_optim_wrapper.py $(ARGS)

lint: $(ENVIRONMENT)
	$(RUN) -m ruff check .
	$(RUN) -m mypy

doctor: $(ENVIRONMENT)
	$(RUN) tools/doctor.py $(ARGS)

# pip installs uv, and uv the rest from the same index: wheels only, exactly the versions of the lock file.
# Compiled here once: where Python may not write bytecode (containers, CI), a process starts in half the time.
$(READY): requirements/lock.txt setup.py
	@command -v $(PYTHON) > /dev/null || \
	    { echo 'There is no $(PYTHON) here: install Python 3.10 or newer, or run make PYTHON=/path/to/python.'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "pera_mm needs Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1): run make PYTHON=/path/to/python."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || \
	    { echo '$(PYTHON) has no venv module: install it (Debian, Ubuntu: apt install python3-venv), or run make PYTHON=/path/to/python.'; exit 1; }
	@echo 'Setting up $(VENV): a minute or two, plus about 3 GB of downloads the first time'
	@$(PYTHON) -m venv $$([ ! -f $(VENV)/.stale ] || echo --clear) $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint requirements/lock.txt uv
	@index=$$($(RUN) -m pip config get global.index-url 2> /dev/null); index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$index}}; \
	    [ -z "$$index" ] || export UV_DEFAULT_INDEX=$$index; \
	    $(RUN) -m uv pip install --python $(RUN) --no-deps --no-build --compile-bytecode \
	    --requirement requirements/lock.txt
	@$(RUN) -m uv pip install --python $(RUN) --no-deps --no-build-isolation --editable .
	@echo '$(CURDIR)' > $@

check-environment:
	@$(PYTHON) -c 'import pera_mm, mmcv' || \
	    { echo 'pera_mm does not run in $(PYTHON): run "$(PYTHON) -m pip install -e .[all]" first, or leave out VENV=.'; exit 1; }

lock: $(ENVIRONMENT)
	cd requirements && $(abspath $(VENV))/bin/python -m uv pip compile --quiet --universal --python-version 3.10 \
	    --only-binary :all: --overrides overrides.txt --no-annotate --custom-compile-command 'make lock' \
	    --upgrade --output-file lock.txt lock.in

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find pera_mm configs tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
