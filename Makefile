# SPDX-License-Identifier: GPL-2.0-only
# Everything happens in .venv; nothing is installed elsewhere. PYTHON=python3.12 chooses another Python.

PYTHON ?= python3
export PYTHON
SMP ?= 2
BIN := .venv/bin

.PHONY: help install hackbench test lint format benchmark selftests clean

help:
	@echo 'make hackbench   boot an arm64 Debian guest and run hackbench in it (SMP=2)'
	@echo 'make test        all tests, with linter and type checker'
	@echo 'make benchmark   anykvm beside QEMU and the machine'\''s own /dev/kvm, where they are (minutes)'
	@echo 'make selftests   the kernel'\''s own KVM tests under anykvm exec (fetches its source through apt; minutes)'
	@echo 'make lint        linter and type checker'
	@echo 'make install     only make .venv, with the anykvm command in .venv/bin'
	@echo 'make clean       remove what was built'

install:
	@sh scripts/setup-venv.sh

hackbench: install
	@$(BIN)/anykvm hackbench arm64 --smp $(SMP)

test: lint
	$(BIN)/python -m pytest

lint:
	@sh scripts/setup-venv.sh test
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

format:
	@sh scripts/setup-venv.sh test
	$(BIN)/python -m ruff format .

benchmark: install
	@$(BIN)/python -m benchmarks

selftests: install
	@$(BIN)/python scripts/selftests.py

clean:
	rm -rf .venv build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
