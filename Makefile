PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast lint format bench torture results clean

demo: $(VENV)/.installed
	$(BIN)/tgeokd demo

test: lint
	$(BIN)/pytest -n auto

# the tests without markers: no slow ones, no real data, no further processes
test-fast: $(VENV)/.installed-dev
	$(BIN)/pytest -n auto -m "not (slow or realdata or process or distributed or browser)"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# speed, memory and scale beside other implementations; about half an hour on a quiet machine; DATA=folder adds real data
bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/bench.py $(if $(DATA),--data-dir "$(DATA)")

# kills, signals, full disks, damaged and malicious files: the table of docs/reliability.md; 15 minutes, or SECONDS
torture: $(VENV)/.installed-dev
	$(BIN)/python -m tools.torture --seconds $(or $(SECONDS),900)

# docs/results.md from the files in results/
results: $(VENV)/.installed-dev
	$(BIN)/python tools/results.py page

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
