# The single door. `make compare` is all a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One file a process, one thread each: small tensors gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile
CODE := odenets stability experiments tests

.PHONY: setup compare regions check format docs test test-all test-perturbed bench clean

setup: $(BIN)/.ready

# A stamp, not the folder: an interrupted installation is taken up again.
$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,docs]"
	touch $@

# Ends within five minutes on two cores; called again, it goes on with further seeds.
compare: setup
	$(BIN)/python experiments/compare_schemes.py --schemes explicit,implicit --budget 5m --out runs/compare --resume

regions: setup
	$(BIN)/python experiments/plot_regions.py --schemes all

# What a machine can say of the code without running it.
check: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check --quiet $(CODE)
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: setup
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html"

test: check
	$(PYTEST)

test-all: check
	$(PYTEST) -m ""

# The nets of the tests under other rounding, other weights, other images: what a test says must not hang on them.
PERTURBED := tests/masking tests/run/test_evaluation.py tests/commands/test_evaluate.py \
    tests/training/test_training.py
test-perturbed: setup
	ODENETS_TEST_JITTER=1e-6 $(PYTEST) $(PERTURBED)
	ODENETS_TEST_JITTER=1e-3 ODENETS_TEST_SEED=1 $(PYTEST) $(PERTURBED)
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) $(PERTURBED)
	ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default $(PYTEST) $(PERTURBED)

bench: setup
	$(BIN)/python experiments/benchmarks/run.py --out runs/bench.json

clean:
	rm -rf $(VENV) runs site build *.egg-info
