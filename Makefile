# The single door. `make compare` is all a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One file a process, one thread each: small tensors gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: setup compare regions test test-all bench clean

setup: $(BIN)/.ready

# A stamp, not the folder: an interrupted installation is taken up again.
$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

compare: setup
	$(BIN)/python experiments/compare_schemes.py --schemes explicit,implicit --out runs/compare --resume

regions: setup
	$(BIN)/python experiments/plot_regions.py --schemes all

test: setup
	$(PYTEST)

test-all: setup
	$(PYTEST) -m ""

bench: setup
	$(BIN)/python experiments/benchmarks/cost.py
	$(BIN)/python experiments/benchmarks/peers.py
	$(BIN)/python experiments/benchmarks/spectra.py
	$(BIN)/python experiments/benchmarks/attacks.py
	$(BIN)/python experiments/benchmarks/audit.py

clean:
	rm -rf $(VENV) runs build *.egg-info
