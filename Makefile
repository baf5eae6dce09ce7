# Owns: what a person types. Every target works on a fresh clone: the environment is made on the way.
.DELETE_ON_ERROR:
.PHONY: demo test test-kernels gpu bench kernels wheel exhaustive fuzz overhead readme clean

BASE_PYTHON ?= python3
PYTHON := .venv/bin/python
SOURCES := setup.py pyproject.toml CMakeLists.txt focal_ext/_version.py $(wildcard csrc/*.* csrc/*/*.*)
# The build of torch that is fetched when .venv has none. A CUDA build: make demo TORCH=torch==2.14.1
TORCH ?= torch==2.13.0

demo: .venv/.native .venv/.examples
	$(PYTHON) -m examples.retinanet.demo --out out/demo
	$(PYTHON) -m bench.compare --quick --logits out/demo/logits.pt --csv out/demo/compare.csv
	@echo out/demo

test: .venv/.native .venv/.examples .venv/.tests
	$(PYTHON) -m pytest

# Sanitizers and planted defects over the CUDA kernels, executed on the CPU.
test-kernels: .venv/.native .venv/.examples .venv/.tests
	$(PYTHON) -m pytest tests/kernels

# On a machine with a GPU: the suite on device cuda, then the benchmark. Without one it says so.
gpu: .venv/.native .venv/.examples .venv/.tests
	$(PYTHON) -m bench.gpu

# docs/kernels.md and docs/kernel_certificate.md from the built library.
kernels: .venv/.native .venv/.examples .venv/.tests
	$(PYTHON) -m bench.kernels --write

bench: .venv/.native .venv/.examples
	$(PYTHON) -m bench.compare --csv bench/results/cpu.csv
	$(PYTHON) -m bench.compare --keep-memory --csv bench/results/cpu_kept_memory.csv

exhaustive: .venv/.native .venv/.tests
	$(PYTHON) tests/exhaustive.py

# Random calls against the float64 reference, for as long as one likes: make fuzz FUZZ_MINUTES=60. FUZZ_SEED repeats a run.
fuzz: .venv/.native .venv/.examples .venv/.tests
	PYTHONPATH=.:tests FUZZ_MINUTES=$(or $(FUZZ_MINUTES),10) $(PYTHON) tests/test_properties.py

# Microseconds of a call on 64 logits, and where they go.
overhead: .venv/.native .venv/.examples
	$(PYTHON) -m bench.overhead

wheel: .venv/.tools
	$(PYTHON) -m pip wheel --no-build-isolation --no-deps -w dist .

readme: .venv/.examples
	$(PYTHON) -m bench.readme

clean:
	rm -rf build dist out focal_ext/*.so .venv/.native

.venv/.tools:
	$(BASE_PYTHON) -m venv .venv
	$(PYTHON) -m pip install -q "$(TORCH)" "setuptools>=77" wheel "cmake>=3.25" ninja "pybind11>=2.13" numpy
	touch $@

.venv/.native: .venv/.tools $(SOURCES)
	$(PYTHON) -m pip install -q --no-build-isolation --no-deps -e .
	@$(PYTHON) -c "import focal_ext as f; i = f.build_info(); \
	  cuda = f\"CUDA {i['cuda']} kernels for {' '.join(i['archs'])}\" if i['cuda'] else 'no CUDA kernels'; \
	  print('built: focal_ext', i['version'], '|', i['reason'] or f\"native, CPU {i['cpu_level']}\", '|', cuda, '| torch', i['torch'])"
	touch $@

.venv/.examples: .venv/.tools examples/retinanet/requirements.txt bench/requirements.txt
	$(PYTHON) -m pip install -q -r examples/retinanet/requirements.txt -r bench/requirements.txt
	touch $@

.venv/.tests: .venv/.tools tests/requirements.txt
	$(PYTHON) -m pip install -q -r tests/requirements.txt
	touch $@
