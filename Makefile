# Two commands: `make demo` and `make test`. The first run makes .venv, installs and builds; after that, and until csrc/,
# setup.py or pyproject.toml change, they start at once and need no network.
#
#   make demo IMAGE=photo.jpg FRAMES=48 SIZE=1920x1080 OUT=folder     every option may be left out
#   make test TEST_FLAGS="-k cube"                                    options for pytest
#   make test TORCH=torch==2.11.0                                     another torch, 2.11 or later
#   make test TORCH= VENV_FLAGS=--system-site-packages                the torch that python3 has already

TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := $(VENV)/constraints.txt
NATIVE_FORMAT = $(BIN)/clang-format csrc/*/* tests/simt/*.h tests/simt/*.cu

# The requirements of an extra in pyproject.toml; pip itself would build pyops once more to learn them.
extra = $(shell sed -n 's/^$(1) = \[\(.*\)\]$$/\1/p' pyproject.toml | sed 's/", "/" "/g')

demo: $(VENV)/built $(VENV)/demo.extra
	$(BIN)/pyops demo $(if $(IMAGE),--image "$(IMAGE)") $(if $(FRAMES),--frames $(FRAMES)) \
		$(if $(SIZE),--size $(SIZE)) $(if $(OUT),--out "$(OUT)") $(DEMO_FLAGS)

test: $(VENV)/built $(VENV)/demo.extra $(VENV)/test.extra
	$(BIN)/python -m pytest tests --numprocesses 2 --dist worksteal $(TEST_FLAGS)

bench: $(VENV)/built $(VENV)/bench.extra
	$(BIN)/python -m bench run $(BENCH_FLAGS)
	$(BIN)/python -m bench report

lint: $(VENV)/dev.extra
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pyops models bench
	$(NATIVE_FORMAT) --dry-run --Werror

format: $(VENV)/dev.extra
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(NATIVE_FORMAT) -i

clean:
	rm -rf build dist demo *.egg-info pyops/*.so $(VENV)/built .*_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/built: $(CONSTRAINTS) setup.py pyproject.toml $(shell find csrc -type f)
	$(PIP) install --no-build-isolation -c $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/%.extra: $(CONSTRAINTS) pyproject.toml
	$(PIP) install -c $(CONSTRAINTS) $(call extra,$*)
	@touch $@

# From here on nothing may replace torch. A torch without CUDA comes without Triton: the tests get the one they know.
$(CONSTRAINTS): always | $(BIN)/pip
	@grep -qsxF '# $(TORCH)' $@ || { set -e; \
		$(PIP) install $(TORCH) 'setuptools>=77' wheel ninja numpy; \
		$(PIP) list --format=freeze | grep -E '^(torch|triton)==' > $@.new \
			|| { echo "$(PYTHON) has no torch: leave TORCH as it is, or install one."; exit 1; }; \
		grep -q '^triton' $@.new || echo 'triton==3.7.1' >> $@.new; \
		echo '# $(TORCH)' >> $@.new; mv $@.new $@; }

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)

.PHONY: demo test bench lint format clean always
.NOTPARALLEL:
