# Every target does its own set-up: a virtual environment in .venv with a pinned torch, the build in place, then its job.
# With PYTHON=/path/to/python that interpreter is used instead: only what it lacks is installed, so one that has
# everything needs no network.
SHELL := /bin/bash -o pipefail
TORCH := torch==2.13.0
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

ifdef PYTHON
PY := $(PYTHON)
else
PY := .venv/bin/python
endif
require = $(PY) .ci/requirements.py "$(TORCH)" $(1)

.PHONY: demo test test-slow lint format bench bench-gpu cuda-check sanitize build clean

demo: build
	@$(call require,demo)
	$(PY) -m lsfast demo $(ARGS)

test: build
	@$(call require,test demo)
	$(PY) -m pytest -n auto $(ARGS)

test-slow: build
	@$(call require,test demo)
	$(PY) -m pytest -m slow $(ARGS)

lint: $(PY)
	@$(call require,dev)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	git ls-files 'csrc/*' 'tests/*.h' 'tests/*.cpp' 'tests/*.cu' | xargs $(dir $(PY))clang-format --dry-run --Werror
	g++ -std=c++17 -Wall -Wextra -Werror -fsyntax-only -Icsrc csrc/platform/dispatch.cpp csrc/platform/kernels_*.cpp

format: $(PY)
	@$(call require,dev)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	git ls-files 'csrc/*' 'tests/*.h' 'tests/*.cpp' 'tests/*.cu' | xargs $(dir $(PY))clang-format -i

bench: build
	@$(call require,test demo bench)
	$(PY) -m pytest bench --benchmark-only --results bench/results/cpu.json $(ARGS)
	$(PY) bench/schemes.py
	$(PY) bench/readme.py

# On a CUDA machine: build, test, check memory accesses and measure; the results file is named by the GPU.
bench-gpu: build
	@$(call require,test demo bench)
	$(PY) -m pytest -m cuda tests/cuda
	compute-sanitizer --tool memcheck --error-exitcode 1 $(PY) -m pytest -m cuda tests/cuda -k "points or cross_entropy or contains"
	$(PY) -m pytest bench --benchmark-only --device cuda --results \
	  bench/results/$$($(PY) -c "import torch; print(torch.cuda.get_device_name().replace(' ', '-').lower())").json

cuda-check: $(PY)
	@$(call require)
	$(PY) .ci/cuda-check

# The tests of the kernels, CPU and emulated CUDA, under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: build
	@$(call require,test demo)
	$(PY) tests/emulation/sanitize.py $(ARGS)

build: $(PY)
	@$(call require)
	@echo "building the operators (log: build/build.log)"; mkdir -p build
	@$(PY) setup.py build_ext --inplace > build/build.log 2>&1 || { cat build/build.log; exit 1; }

.venv/bin/python:
	python3 -m venv .venv

clean:
	rm -rf .venv build lsfast-demo lsfast/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
