# make demo    the whole pipeline on real video, on this machine (VIDEOS=dir for your own)
# make test    all tests; the other targets are below
PYTHON ?= python3.11
PYTHON_VERSION := 3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
# What the tests and benchmarks compare with lies beside the environment that runs, and sees it; never the other way.
PEERS := .venv-peers
SITE := lib/python3.11/site-packages
JUPYTER_OPTIONS ?=
DEMO_CLIPS := runs/demo/videos
VIDEOS ?= $(DEMO_CLIPS)

DOCKER ?= docker
DEVICE ?= cpu
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' latte/__init__.py)
REVISION := $(shell git describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null || echo unknown)
IMAGE ?= latte-pipelines:$(VERSION)$(if $(filter-out cpu,$(DEVICE)),-$(DEVICE))
# Passed on where they are set, by `make NAME=value` or in the environment.
IMAGE_ARGS := BASE_IMAGE CANN_IMAGE PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST \
	HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy
# The certificate authority of the network, where it has its own: only for pip, only while building.
comma := ,
IMAGE_CA := $(if $(PIP_CERT),--secret id=ca$(comma)src=$(PIP_CERT) --build-arg PIP_CERT=/run/secrets/ca)

# Empty where there is no such program.
version_of = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
wrong_python = $(error $(1); MindSpore needs Python $(PYTHON_VERSION): $(2))

.PHONY: python setup setup-dev demo notebook test test-peers record-peers test-containers test-cluster images lint bench soak lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo [VIDEOS=dir]  run the whole pipeline on this machine and write a report"
	@echo "make notebook           open the notebooks in JupyterLab (a run, a schedule, sets in bulk)"
	@echo "make test               run every test (make setup-dev comes by itself)"
	@echo "make test-peers         compare live with PyTorch, diffusers, transformers, cd-fvd and MLflow (installs them, 5.2 GB)"
	@echo "make images             build the container image (DEVICE=ascend for NPUs); images/README.md"
	@echo "make test-containers    build the image and run the pipeline in containers (needs Docker)"
	@echo "make test-cluster       run manifests, doctor, launcher and pods on a real Kubernetes (needs Go; root for the pods)"
	@echo "make lint               ruff and mypy"
	@echo "make bench              every benchmark, each a ratio against a named peer"
	@echo "make soak               the long kill, fault and fuzz tests in full"
	@echo "make setup              only install, into .venv"

# Looked at by every target that uses the environment, before anything is installed; and whenever a Python is named.
python:
	$(eval found := $(call version_of,$(PYTHON)))
	$(if $(found),,$(call wrong_python,$(PYTHON) does not run,name one with make PYTHON=...))
	$(if $(filter $(PYTHON_VERSION),$(found)),,$(call wrong_python,$(PYTHON) is Python $(found),make PYTHON=python$(PYTHON_VERSION)))
	$(eval found := $(if $(wildcard $(BIN)/python),$(call version_of,$(BIN)/python),$(PYTHON_VERSION)))
	$(if $(filter $(PYTHON_VERSION),$(found)),,$(call wrong_python,$(VENV) was made with $(if $(found),Python $(found),a Python that is gone),rm -r $(VENV)))

ifneq ($(origin PYTHON),file)
help: python
endif

setup: $(VENV)/.run

$(VENV)/.run: requirements/run.lock requirements/hashed.lock pyproject.toml | python
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-deps --require-hashes -r requirements/hashed.lock -r requirements/run.lock
	$(PIP) install --quiet --no-deps -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.lock
	$(PIP) install --quiet --no-deps --require-hashes -r requirements/dev.lock
	@touch $@

$(VENV)/.notebook: $(VENV)/.run requirements/notebook.lock
	$(PIP) install --quiet --no-deps --require-hashes -r requirements/notebook.lock
	@touch $@

$(PEERS)/.installed: $(VENV)/.dev requirements/peers.lock requirements/peers-alone.lock
	$(PYTHON) -m venv $(PEERS)
	@echo "import site; site.addsitedir('$(CURDIR)/$(VENV)/$(SITE)')" > $(PEERS)/$(SITE)/latte-environment.pth
	sed -n 's/^\([^#; ]*==[^; ]*\).*/\1/p' requirements/run.lock requirements/dev.lock > $(PEERS)/constraints.txt
	$(PEERS)/bin/pip --disable-pip-version-check install --quiet -c $(PEERS)/constraints.txt -r requirements/peers.lock
	$(PEERS)/bin/pip --disable-pip-version-check install --quiet --no-deps --require-hashes \
		-r requirements/peers-alone.lock
	@touch $@

setup-dev: $(VENV)/.dev

demo: setup
	@if [ "$(VIDEOS)" = "$(DEMO_CLIPS)" ]; then $(BIN)/latte-pipeline demo-clips "$(DEMO_CLIPS)"; fi
	$(BIN)/latte-pipeline run -c configs/demo/pipeline.yaml "encode.dataset.videos=$(VIDEOS)"

# JUPYTER_OPTIONS="--no-browser --port 8889" and the like go to JupyterLab.
notebook: $(VENV)/.notebook
	$(BIN)/jupyter lab $(JUPYTER_OPTIONS) notebooks/submit_run.ipynb

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test-peers: $(PEERS)/.installed
	LATTE_PEERS=live $(PEERS)/bin/python -m pytest -m "peers or live"

record-peers: $(PEERS)/.installed
	rm -rf tests/data/peers
	LATTE_PEERS=record $(PEERS)/bin/python -m pytest -m peers

test-containers: $(VENV)/.dev
	$(BIN)/python -m pytest -m containers tests/e2e/test_containers.py

test-cluster: $(VENV)/.dev
	$(BIN)/python -m tests.cluster.programs
	$(BIN)/python -m pytest -m cluster tests/cluster

images:
	@command -v $(DOCKER) >/dev/null || { echo "error: $(DOCKER) not found; install Docker, or name it with make DOCKER=..." >&2; exit 2; }
	DOCKER_BUILDKIT=1 $(DOCKER) build $(BUILD_OPTIONS) --file images/Dockerfile --tag $(IMAGE) --build-arg DEVICE=$(DEVICE) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) $(addprefix --build-arg ,$(IMAGE_ARGS)) $(IMAGE_CA) .

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(PEERS)/.installed
	@for file in benchmarks/[a-z]*.py; do grep -q '^def main' $$file && \
		{ echo "== $$file"; $(PEERS)/bin/python $$file --json || exit 1; }; done

soak: $(VENV)/.dev
	@for program in radosgw ceph-mon ceph-osd; do command -v $$program >/dev/null || \
	{ echo "error: $$program not found; the storage tests also run against Ceph: apt-get install radosgw ceph-mon ceph-osd" >&2; exit 2; }; done
	LATTE_SOAK=1 $(BIN)/python -m pytest -m soak

lock: $(PEERS)/.installed $(VENV)/.notebook
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PEERS)/bin/python requirements/lock.py

clean:
	rm -rf runs build
