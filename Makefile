# `make` or `make help` lists the targets. PYTHON chooses the interpreter that the environment is made with.
.DEFAULT_GOAL := help
.PHONY: help env build demo examples test test-oldest test-card lint bench gpu-check fuzz wheel c clean
.DELETE_ON_ERROR:

PYTHON ?= python3
TEXT ?=
FUZZTIME ?= 30s
# Processes that run Python's tests, a file at a time, by name (the longest, which build wheels, have few tests and would come
# last otherwise). Most tests wait for a subprocess or use one core.
TESTERS ?= 2

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
export GOTOOLCHAIN := local
export GOFLAGS := -buildvcs=false -mod=readonly
export CGO_ENABLED := 1

NATIVE := go.mod go.sum pyproject.toml $(wildcard python/_build/*.py) \
	$(shell find editor capi gobridge -type f ! -name '*_test.go' ! -path '*/testdata/*')

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

env: $(VENV)/.dev ## make .venv with all that the tests need

build: $(VENV)/.run ## make .venv with what the demo needs, and the package installed (editable)

# ONNX Runtime has no wheels for CPython 3.10 any more. Its library does not depend on Python, and only that is needed here.
define runtime_for_3_10
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 11))' || exit 0; \
	$(BIN)/python -m pip install -q --no-deps --ignore-requires-python --only-binary=:all: --python-version 3.11 \
		--platform manylinux_2_28_$$(uname -m) --upgrade \
		--target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" 'onnxruntime>=1.31,<1.34'
endef

# Three steps: an environment with Go in it, the package with what it runs with, the rest. mosaicml-streaming asks for transformers
# before 5, which only its model recipes read, and for four clouds' libraries: pyproject.toml lists what it needs here.
$(VENV)/.go: python/_build/golang.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python python/_build/golang.py $(BIN)
	@touch $@

$(VENV)/.run: $(VENV)/.go $(NATIVE)
	$(BIN)/python -m pip install -q -e '.[cpu,torch]'
	$(runtime_for_3_10)
	@touch $@

$(VENV)/.dev: $(VENV)/.go $(NATIVE)
	$(BIN)/python -m pip install -q -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps 'mosaicml-streaming==0.13.0'
	$(runtime_for_3_10)
	@touch $(VENV)/.run $@

demo: build ## edit real text in a DataLoader, with the bundled prior (TEXT=file for your own)
	$(BIN)/python -m toedit demo $(if $(TEXT),--text '$(TEXT)')

examples: env ## train a tiny model with and without editing (plain loop, Trainer, SFTTrainer); figures in dist/examples/
	mkdir -p dist/examples
	@export OMP_WAIT_POLICY=passive; for name in plain_loop trainer sft; do \
		$(BIN)/python tests/examples/$$name.py -o dist/examples/$$name.png || exit 1; \
	done

# The Go tests score with the library that pip installed.
ONNXRUNTIME = TOEDIT_ONNXRUNTIME="$$($(BIN)/python -c 'from toedit import _runtime; print(_runtime.library())')"

test: lint ## run every check and test: linters, Go (plain, race detector, cgo checks), pytest
	$(ONNXRUNTIME) $(BIN)/go test ./...
	$(ONNXRUNTIME) $(BIN)/go test -race ./...
	$(ONNXRUNTIME) GOEXPERIMENT=cgocheck2 $(BIN)/go test ./capi/... ./editor/scorer/...
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

# `make test` sees what pip takes today, beside many other packages. This is the other end: no pandas, no dateutil, no transformers.
test-oldest: $(VENV)/.go ## run pytest with the oldest versions that pyproject.toml admits, in .venv-oldest
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q -c tests/oldest.txt '.[cpu,torch]' polars pytest pytest-timeout pytest-xdist xxhash
	.venv-oldest/bin/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder --ignore tests/test_build.py

# ONNX Runtime's CUDA provider over libraries that stand in for NVIDIA's (tests/card): all but the values that a card computes.
test-card: env ## run pytest's tests of priors for a card, which need no card, with onnxruntime-gpu in .card
	test -d .card/onnxruntime || $(BIN)/python -m pip install -q --no-deps --target .card 'onnxruntime-gpu==1.31.1'
	TOEDIT_CARD_RUNTIME=$(CURDIR)/.card $(BIN)/python -m pytest -n $(TESTERS) tests/test_card.py

lint: env ## check formatting, types and style
	@unformatted=$$($$($(BIN)/go env GOROOT)/bin/gofmt -l editor capi gobridge); \
	test -z "$$unformatted" || { echo "gofmt -w is due in: $$unformatted"; exit 1; }
	$(BIN)/go vet ./...
	$(BIN)/go tool staticcheck ./...
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: env ## measure what README.md says about speed
	@for script in tests/bench/bench_*.py; do $(BIN)/python "$$script" || exit 1; done

gpu-check: env ## on a machine with an NVIDIA card: parity and speed on it, into a dated file in gpu-check/
	@nvidia-smi -L > /dev/null 2>&1 || { echo "gpu-check: nvidia-smi names no card here, so nothing of CUDA can be checked"; exit 2; }
	$(BIN)/python -m pip uninstall -q -y onnxruntime
	$(BIN)/python -m pip install -q -e '.[cuda]'
	$(BIN)/python tests/bench/gpu_check.py

fuzz: $(VENV)/.go ## fuzz every Go fuzz target for FUZZTIME (30s)
	@grep -rHo '^func Fuzz[A-Za-z0-9_]*' --include='*_test.go' editor capi | sed 's/:func / /' | \
	while read -r file name; do \
		echo "$$name"; $(BIN)/go test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$file")" || exit 1; \
	done

wheel: env ## build the wheel for this interpreter into dist/
	$(BIN)/python -m build --wheel

c: $(VENV)/.go ## build libtoedit for C programs into dist/c/
	mkdir -p dist/c
	$(BIN)/go build -trimpath -buildmode=c-shared -o dist/c/libtoedit.so \
		-ldflags "-s -w -extldflags '-Wl,--version-script=$(CURDIR)/capi/lib/symbols.map,-soname,libtoedit.so'" ./capi/lib
	$(BIN)/go build -trimpath -buildmode=c-archive -o dist/c/libtoedit.a ./capi/lib
	rm -f dist/c/libtoedit.h
	cp capi/toedit.h dist/c/

clean: ## remove everything that was built
	rm -rf $(VENV) .venv-oldest .card _gen dist build python/toedit.egg-info python/toedit/_gobridge*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .mypy_cache .pytest_cache .ruff_cache
