# Every target makes the virtual environment when it is missing; nothing outside this folder is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NATIVE := CMakeLists.txt $(shell find csrc -type f 2>/dev/null)
# This environment gets CUDA kernels for the GPUs of this machine, and none where there is none: all architectures take
# minutes. `pip install .` builds them all where there is an nvcc.
GPUS   := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -u | sed 's/$$/-real/' | paste -sd';')
export IGM_FAST_CUDA       ?= $(if $(GPUS),AUTO,OFF)
export IGM_FAST_CUDA_ARCHS ?= $(GPUS)

.PHONY: train test bench lint format clean

train: $(VENV)/.installed       ## build, install, train IGM on the embedded sensor data, write runs/igm-watch/report.html
	$(BIN)/python -m igm_fast.train --out runs/igm-watch --overwrite

test: $(VENV)/.installed        ## the whole test suite with a coverage figure
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered

bench: $(VENV)/.installed       ## every benchmark, interleaved with its peers; writes benchmarks/results/
	$(BIN)/python -m benchmarks

lint: $(VENV)/.installed        ## what CI checks: ruff, clang-format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files '*.cpp' '*.hpp' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

format: $(VENV)/.installed      ## let ruff and clang-format write what lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.cpp' '*.hpp' '*.cu' '*.cuh' | xargs $(BIN)/clang-format -i

clean:                          ## remove the environment, builds and caches; runs/ is yours and stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

# Editable, so that Python edits need no reinstall; a change in csrc/ rebuilds the kernels.
$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,bench,lint]"
	touch $@
