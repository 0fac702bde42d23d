# Every target works on a fresh machine with Python 3.11 or newer: it makes .venv and installs what it needs.
#   make run OFFLINE=1           the built-in offline model, no account needed
#   make run ARGS='--profile staging'    make test ARGS='-k broker -x'
#   make install PYTHON=python3.13       another interpreter than the first that fits

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11 python3.12 python3.13 python3.14 python3
PY := .venv/bin/python
PIP := $(PY) -m pip --quiet --quiet --disable-pip-version-check --no-input
# What an installation depends on; the code itself is found where it lies.
SOURCES := setup.cfg pyproject.toml $(wildcard claude_daemon/__init__.py ctl/claudectl/__init__.py)
# What needs minutes, or root, has a target of its own.
APART := not system and not capabilities and not crash and not restarts
EVERYDAY := not engine and $(APART)
AT_ONCE := -n 3 --dist loadfile --no-loadscope-reorder
OFFLINE ?=
ARGS ?=

# Tests, the demo and the benchmark see these variables and no others, and an empty HOME: no credential
# or setting of this machine reaches them.
OFFLINE_ENV = home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && trap 'exit 130' INT && trap 'exit 143' TERM && \
	env -i PATH="$(CURDIR)/.venv/bin:$$PATH" HOME="$$home" LANG="$${LANG:-C.UTF-8}" TMPDIR="$${TMPDIR:-/tmp}" \
	$${CI:+CI="$$CI"}

.PHONY: help install run demo test test-engine test-crash test-restarts test-system test-guest test-capabilities lint types cover bench docs screenshots clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: .venv/.test ## make .venv with the daemon, claudectl and what the tests need
	@echo "installed: .venv/bin/claude-daemon and .venv/bin/claudectl"

run: .venv/.run ## serve in the foreground (OFFLINE=1: the offline model; ARGS: more flags)
	@exec .venv/bin/claude-daemon run $(if $(filter-out 0,$(OFFLINE)),--offline) $(ARGS)

demo: .venv/.test ## start offline, stream an answer through each lane, show health, drain
	@$(OFFLINE_ENV) $(PY) -m tests.e2e.demo $(ARGS)

test: .venv/.test ## run the tests, offline, with an empty HOME
	@$(OFFLINE_ENV) $(PY) -m pytest tests $(AT_ONCE) -m "$(EVERYDAY)" $(ARGS)

test-engine: .venv/.test ## try Claude Code's processes and what agents may do: tools, sandbox, sessions, other versions
	@$(OFFLINE_ENV) $(PY) -m pytest tests/e2e $(AT_ONCE) -m "engine and $(APART)" $(ARGS)

test-crash: .venv/.test ## kill -9 the daemon under load, at every commit of its store and at random moments
	@$(OFFLINE_ENV) $${CRASH_SEED:+CRASH_SEED="$$CRASH_SEED"} $(PY) -m pytest tests -m crash -rP $(ARGS)

test-restarts: .venv/.test ## restart the daemon under load, a hundred times (RESTARTS=50 in each of two ways)
	@$(OFFLINE_ENV) $${RESTARTS:+RESTARTS="$$RESTARTS"} $(PY) -m pytest tests -m restarts -rP $(ARGS)

test-system: .venv/.test ## run the tests that need root: mounts and networks of their own, a real systemd
	@$(OFFLINE_ENV) $(PY) -m pytest tests -m system $(ARGS)

test-guest: .venv/.test ## run the tests of agents' limits in a guest kernel (ARGS: more flags; see CONTRIBUTING)
	@$(OFFLINE_ENV) $(PY) -m tests.guest $(ARGS)

test-capabilities: .venv/.test ## run the engine's tests with each capability of the CLI forced off in turn
	@$(OFFLINE_ENV) $(PY) -m pytest tests -m capabilities $(ARGS)

lint: .venv/.lint ## check style, formatting, the usual traps of security, the CI workflow, the Dockerfile
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m bandit --quiet --configfile pyproject.toml --recursive claude_daemon ctl
	@$(PY) -m check_jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(PY) -m check_jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	@.venv/bin/zizmor --quiet --offline .github
	@.venv/bin/hadolint Dockerfile

types: .venv/.lint ## check the types, strictly
	@$(PY) -m mypy

cover: .venv/.test ## run the tests under coverage and hold the floor
	@$(PY) -m coverage erase
	@$(OFFLINE_ENV) $(PY) -m coverage run -m pytest tests $(AT_ONCE) -m "$(APART)" $(ARGS)
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report

bench: .venv/.test ## print the numbers this project holds, as ratios in one run
	@$(OFFLINE_ENV) $(PY) -m tests.bench $(ARGS)

docs: .venv/.test ## write the pages of docs/ that are made from the code
	@$(OFFLINE_ENV) $(PY) -m tests.docs

screenshots: .venv/.test ## draw the pictures of docs/images anew, of a daemon with some load
	@$(OFFLINE_ENV) $(PY) -m tests.screenshots $(ARGS)

clean: ## remove .venv, caches and build products
	@rm -rf .venv .coverage .coverage.* .coverage-html .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info ctl/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@without=; \
	for python in $(PYTHON); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    "$$python" -c 'import ensurepip, venv' 2>/dev/null || { without=$${without:-$$python}; continue; }; \
	    echo "making .venv with $$python ($$("$$python" -c 'import platform; print(platform.python_version())'))"; \
	    "$$python" -m venv --clear .venv || { rm -rf .venv; exit 1; }; \
	    exit 0; \
	done; \
	if [ -n "$$without" ]; then \
	    version=$$("$$without" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "$$without has no venv module with ensurepip. On Debian and Ubuntu: apt-get install -y python$$version-venv" >&2; \
	else \
	    echo "No Python 3.11 or newer among: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3" >&2; \
	fi; \
	exit 1

.venv/.run: $(SOURCES) | $(PY)
	@echo "installing the daemon into .venv (with the Claude Code CLI, 160 MB to fetch: the first time takes a while)"
	@$(PIP) install --editable .
	@touch $@

.venv/.test: $(SOURCES) | $(PY)
	@echo "installing the daemon and what its tests need into .venv (with the Claude Code CLI, 160 MB to fetch: the first time takes a while)"
	@$(PIP) install --editable '.[test]'
	@touch .venv/.run $@

.venv/.lint: .venv/.test
	@echo "installing the linters into .venv"
	@$(PIP) install --editable '.[test,lint]'
	@touch $@
