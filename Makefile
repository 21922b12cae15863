PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test test-nodes lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"Python 3.11 or 3.12 is needed, {v[0]}.{v[1]} found; name one: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv  # another Python over an old one would mix the two
	@echo "Installing into .venv (about 3 minutes, 3 GB)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --use-pep517 --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m diffseglung.compiled
	@touch $@

demo: install
	@$(BIN)/python jobs/demo.py --out demo

# Two processes, since each that runs integration tests holds a Ray; a file stays whole, as its fixtures are costly.
test: install
	@$(BIN)/python -m pytest --quiet -n 2 --dist loadfile -m "not nodes"

# Clusters of several nodes on this machine: autoscaled ones, and ones whose nodes are killed.
test-nodes: install
	@$(BIN)/python -m pytest --quiet -m nodes

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Each script prints its table and puts it into benchmarks/results.md.
bench: install
	@for script in $(filter-out %/record.py %/ceilings.py %/chain.py %/looked.py %/train_plain.py %/ways.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv build *.egg-info demo
