# make search: set up and run the digits study.  make test: set up and check everything.
# make clean: remove what was installed and built; evaluations in .ranksearch stay.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: search test setup clean

search: $(READY)
	$(BIN)/ranksearch search studies/digits.py

test: $(READY)
	$(BIN)/python -m pytest -q --durations=10
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

setup: $(READY)

# installs once, and again only when the declared or pinned versions change
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find ranksearch studies analysis tests -name __pycache__ -type d -prune -exec rm -rf {} +
