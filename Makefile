# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
PORT ?= 7860
BIN := .venv/bin
# A worker that crashes ends the run: where it is replaced, what it still had to do may be waited for without end.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

.PHONY: help demo space test test-all parity lint types clean

help:
	@echo "make demo    install, prepare phantoms, train, evaluate, serve on http://localhost:$(PORT)"
	@echo "             (HEADLESS=1 make demo stops before serving)"
	@echo "make space   serve the bundled model on http://localhost:$(PORT)"
	@echo "make test    install the test extras; lint, types and the whole suite, but for the long tests"
	@echo "make test-all  the long tests, too, and what they cover"
	@echo "make parity  install PyTorch (a CPU build where pip finds one); compare every architecture with it"

.venv/requirements: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/requirements-test: .venv/requirements requirements-test.txt requirements-export.txt requirements-smote.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

# glibc would give the buffers of every step back to the kernel, which clears them again page by page: kept, a CPU trains
# a quarter faster. Other C libraries ignore this.
demo: export MALLOC_ARENA_MAX := 1
demo: export MALLOC_MMAP_MAX_ := 0
demo: export MALLOC_TRIM_THRESHOLD_ := 100000000000
demo: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
demo: .venv/requirements
	$(BIN)/python jobs/prepare.py --source phantom --data_dir data
	$(BIN)/python jobs/train.py --config configs/demo.py --workdir runs/demo
	$(BIN)/python jobs/calibrate.py --checkpoint runs/demo --data_dir data
	$(BIN)/python jobs/evaluate.py --checkpoint runs/demo --split test --data_dir data --out runs/demo/report
ifndef HEADLESS
	$(BIN)/python space/app.py --checkpoint runs/demo --port $(PORT)
endif

space: .venv/requirements
	$(BIN)/python space/app.py --checkpoint space/checkpoint --port $(PORT)

lint: .venv/requirements-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/requirements-test
	$(BIN)/mypy

# Much of the suite's time is compiling: `make test` compiles without optimizing, `make test-all` as users do.
test: export JAX_DISABLE_MOST_OPTIMIZATIONS := 1
test: lint types
	$(PYTEST) -m "not slow"

test-all: lint types
	$(PYTEST) --cov=model --cov=jobs --cov=space --cov-report=term

.venv/requirements-parity: .venv/requirements-test requirements-parity.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	touch $@

parity: .venv/requirements-parity
	$(BIN)/python -m pytest tests/parity

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
