# Everything runs from .venv, which is made when first needed.
#
#   make demo              the whole story on an embedded Postgres
#   make test [PG=…]       PG: embedded (default), 15, 16, 17, 18 or all; ARGS: more for pytest
#   make lint              form, types, generated files
#   make generate          rebuild what is generated from sql/
#   make torture [PG=…]    kill -9 of the sealer and the server under load, some minutes long
#   make torture-archive [PG=…]   kill -9 of the archiver 100 times; 1,000 kinds of damage to archives
#   make bench             benchmarks/results.json
#   make bench-floors      benchmarks/floors.json: what the parts of an access cost at least
#   make bench-api         the memory of an export of a million entries
#   make fuzz-api          schemathesis against the HTTP API, some minutes long
#   make dist              wheel, sdist, and SQL for psql, Supabase's CLI and database.dev
#   make bench-search     benchmarks/search.json: ten million entries; ARGS="--rows 100000" for fewer
#   make bench-archive    benchmarks/archive.json: ten million entries archived and verified; ARGS="--rows 1000000"

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PG ?= embedded
ARGS ?=
PY := .venv/bin/python
RUNTIME := .venv/.installed
DEV := .venv/.installed-dev

.PHONY: help
help:
	@sed -n 's/^#   //p' Makefile

# Stamps: a second run does nothing unless pyproject.toml has changed.
$(RUNTIME): pyproject.toml
	@sh scripts/venv.sh
	@echo "installing meshaudit into .venv"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(DEV): pyproject.toml
	@sh scripts/venv.sh
	@echo "installing meshaudit and its development tools into .venv"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(RUNTIME)

.PHONY: demo
demo: $(RUNTIME)
	@.venv/bin/meshaudit demo

.PHONY: deps
deps:
	@sh scripts/deps.sh $(PG)

.PHONY: test
ifeq ($(PG),all)
test: $(DEV) deps
	@set -e; for v in 15 16 17 18; do $(MAKE) test PG=$$v ARGS='$(ARGS)'; done
else ifneq ($(MESHAUDIT_TEST_DSN)$(MESHAUDIT_TEST_IMAGE),)
test: $(DEV) deps
	@$(PY) -m pytest -n 2 $(ARGS)
else
test: $(DEV) deps
	@$(PY) -m tests.servers $(PG)
	@MESHAUDIT_TEST_PG=$(PG) $(PY) -m pytest -n 2 $(ARGS)
endif

.PHONY: torture
torture: $(DEV)
	@$(PY) -m tests.servers $(PG)
	@MESHAUDIT_TEST_PG=$(PG) $(PY) -m tests.torture

.PHONY: torture-archive
torture-archive: $(DEV)
	@$(PY) -m tests.archive.damage
	@$(PY) -m tests.archive.killing

.PHONY: lint
lint: $(DEV)
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy
	@if [ -f tests/lint_sql.py ]; then $(PY) -m tests.lint_sql; fi
	@$(MAKE) verify-generated

.PHONY: generate verify-generated
generate: $(DEV)
	@$(PY) scripts/generate.py

verify-generated: $(DEV)
	@$(PY) scripts/generate.py --check

.PHONY: format
format: $(DEV)
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

.PHONY: bench
bench: $(DEV)
	@$(PY) -m benchmarks $(ARGS)

.PHONY: bench-floors
bench-floors: $(DEV)
	@$(PY) -m benchmarks.floors $(ARGS)

.PHONY: bench-api fuzz-api
bench-api: $(DEV)
	@$(PY) -m benchmarks.api_export

fuzz-api: $(DEV)
	@$(PY) -m tests.fuzz_api

.PHONY: bench-search
bench-search: $(DEV)
	@$(PY) -m benchmarks.search $(ARGS)

.PHONY: bench-archive
bench-archive: $(DEV)
	@$(PY) -m benchmarks.archive $(ARGS)

.PHONY: dist
dist: $(DEV)
	@$(PY) scripts/dist.py

# .cache holds downloads; `make distclean` removes those too.
.PHONY: clean distclean
clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.cache/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .cache
