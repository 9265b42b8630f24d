# Every verb does its own set-up in .venv; the second time that takes a moment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(shell find native -name '*.cpp' -o -name '*.h') CMakeLists.txt
MODEL ?= penstock-tiny
.PHONY: dev demo serve test check test-all slow-sets variants bench docs wheel clean

# The environment and the native build. Warnings are errors here; a user's install only warns.
dev: $(STAMP)

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "penstock needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --upgrade pip
	$(BIN)/pip install -q --disable-pip-version-check "scikit-build-core>=0.10" "nanobind>=2.4" ninja "cmake>=3.22"
	touch $@

$(STAMP): $(VENV)/.created pyproject.toml $(NATIVE)
	@echo "building penstock (about two minutes the first time)"
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev]' \
	  --config-settings=cmake.define.PENSTOCK_WERROR=ON
	@$(BIN)/python -c 'import penstock._native' 2>/dev/null || { \
	  if command -v c++ >/dev/null; then echo "the native build failed; see: $(BIN)/pip install -v --no-build-isolation -e ."; exit 1; \
	  else echo "no C++ compiler: running on the numpy reference (penstock doctor says more)"; fi; }
	touch $@

demo: $(STAMP)
	@printf '%s\n' 'def read_lines(path):' '    """Return the lines of a file."""' | \
	  $(BIN)/penstock run $(MODEL) --prompt - --max-tokens 40 --seed 4 --stats

serve: $(STAMP)
	$(BIN)/penstock serve $(MODEL)

test: $(STAMP)
	$(BIN)/pytest -m "not slow and not oracle"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h,$(NATIVE))
	$(BIN)/pytest tests/test_architecture.py

test-all: test check slow-sets variants

# Whatever runs beside these does not change what they say, so two run at a time; the others measure time or memory.
UNTIMED := tests/exactness tests/property tests/contracts tests/faults/test_mutants.py tests/unit/text/test_tokenizer.py

# Takes memory away until the kernel kills: for a machine whose owner asked for it.
HARSH := tests/faults/test_cgroup.py

# All ISAs and long mixes, the builds with clang and for aarch64, and the oracle (torch, in an environment of its own).
slow-sets: $(STAMP)
	$(BIN)/pytest -m "slow and not oracle" $(patsubst %,--ignore=%,$(UNTIMED) $(HARSH))
	$(BIN)/pytest -m "slow and not oracle" -n 2 --dist worksteal $(UNTIMED)
	tools/build_variants.sh clang
	tools/aarch64.sh
	tools/oracle.sh

# The native tests under the sanitizers (builds of a quarter of an hour each), and a real lack of memory.
variants: $(STAMP)
	tools/build_variants.sh address thread
	$(BIN)/pytest -m slow $(HARSH)

bench: $(STAMP)
	$(BIN)/penstock bench latency $(MODEL)
	$(BIN)/penstock bench throughput $(MODEL)
	$(BIN)/penstock bench kernels --out benchmarks/results/kernels.jsonl

# The manylinux wheel in dist/, installed and asked where there is no compiler.
wheel: $(STAMP)
	tools/wheel.sh

docs: $(STAMP)
	$(BIN)/pytest tests/test_docs.py

clean:
	rm -rf $(VENV) .venv-oracle build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find src -name '*.so' -delete
