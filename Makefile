# make search: set up and run the digits study.  make test: set up and check everything.
# make test-numeric: what is computed, on other processors and with other random draws than those of make test.
# make docs: the documentation site, in site/; a warning is an error.
# make clean: remove what was installed and built; evaluations in .ranksearch stay.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: search test test-layers test-studies test-numeric numeric-compatible numeric-avx2 docs setup clean

search: $(READY)
	$(BIN)/ranksearch search studies/digits.py

# two processes, a core each: what is computed of networks and samplers, and what is done with studies
LAYERS := $(addprefix tests/,allocators compression contracts costs decompositions evaluation latency networks proxies rankbench samplers \
	schedulers search sites space statistics supernet surrogate tasks)

test: $(READY)
	$(MAKE) -j2 -O test-layers test-studies
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

test-layers: $(READY)
	$(BIN)/python -m pytest -q --durations=10 -o cache_dir=.pytest_cache/layers $(LAYERS)

test-studies: $(READY)
	$(BIN)/python -m pytest -q --durations=10 -o cache_dir=.pytest_cache/studies tests $(addprefix --ignore=,$(LAYERS))

# MKL_ENABLE_INSTRUCTIONS is of Intel's processors; MKL_CBWR chooses among the code paths of others too. The settings share no state:
# make -j2 -O test-numeric runs both at once
NUMERIC := $(addprefix tests/,decompositions statistics proxies allocators/test_exact.py allocators/test_solver.py \
	networks/test_batch_norm.py networks/reconstruction networks/recovery compression surrogate agreement)

test-numeric: numeric-compatible numeric-avx2

numeric-compatible: $(READY)
	MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
		$(BIN)/python -m pytest -q -p no:cacheprovider --shift-seeds 1000 --shuffle 1 $(NUMERIC)

numeric-avx2: $(READY)
	MKL_ENABLE_INSTRUCTIONS=AVX2 MKL_CBWR=AVX2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -q -p no:cacheprovider --shift-seeds 2000 --shuffle 2 $(NUMERIC)

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

setup: $(READY)

# installs once, and again only when the declared or pinned versions change
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist site *.egg-info
	find ranksearch studies analysis tests -name __pycache__ -type d -prune -exec rm -rf {} +
