# make quickstart    set up .venv and distil the Star Trek teacher into a student, offline, in minutes
# make test          set up .venv and run the tests
# make lint          ruff (format and lint) and mypy
# make integration   the tests that need an environment of their own: Airflow, Prefect, vLLM, the extras, a built wheel
# make clean         remove what was made (.venv and .envs stay)

PYTHON ?= python3
BIN := .venv/bin
# Test files run side by side, one a core: most wait for servers and processes that they have killed.
SIDE_BY_SIDE := -n logical --maxprocesses 4
# Beside the tests that share a quickstart: those that spend their time on an installation of their own.
OWN := tests/integration/test_vllm.py tests/integration/test_wheel.py tests/integration/test_extras.py

.PHONY: quickstart test lint format integration clean

quickstart: .venv/installed
	$(BIN)/seqkd run quickstart

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -q $(SIDE_BY_SIDE) --dist loadfile

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

integration: .venv/installed
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q $(OWN) & own=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/integration $(OWN:%=--ignore=%); others=$$?; \
	wait $$own && exit $$others

# torch is named in the same command as everything that needs it, so that nothing pulls in another build first.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "seqkd needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e '.[dev]'
	@touch $@

clean:
	rm -rf data/runs data/cache dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
