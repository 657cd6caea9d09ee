.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PY := .venv/bin/python
# Warnings of pip and friends about a root user or a missing home say nothing here.
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help install demo dev lint test test-slow bench docs clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

install: ## install what the other targets need (they do it by themselves)
	@scripts/install.sh

demo: install ## run the main job: two organizations, one contract, an attested training
	@$(PY) -m cloister.demo $(ARGS)

dev: install ## prepare for development and say how to start
	@printf '%s\n' 'ready. Next:' '  source .venv/bin/activate' '  make lint test      # what CI runs' '  cloister --help'

lint: install ## style, types, import contracts, house rules
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --strict src/cloister
	.venv/bin/lint-imports --no-logo
	$(PY) scripts/check_house.py

test: install ## all tests but the slow ones, with the coverage floor
	@mkdir -p build
	$(PY) -m scripts.run_tests

test-slow: install ## the slow suites
	$(PY) -m pytest -m slow -n 2 --timeout 1800

bench: install ## one benchmark: make bench NAME=subject (without NAME: the list)
	@$(if $(NAME),$(PY) -m benchmarks.$(NAME) $(ARGS),find benchmarks -maxdepth 1 -name '[a-z]*.py' -printf '%f\n' | sed 's/\.py$$//' | sort)

docs: install ## check the documents and render them to build/docs
	$(PY) -m pytest -q --no-header tests/unit/test_docs.py
	$(PY) scripts/render_docs.py

clean: ## remove everything that was made here, also the environment
	rm -rf .venv build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
