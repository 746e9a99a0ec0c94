# Two commands do everything on a fresh machine: `make quickstart` and `make test`. Both create .venv from the lock.
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready

.PHONY: help setup quickstart test test-all fuzz check format protos dashboards kubernetes-rules lock bench bench-steps bench-input bench-overlap bench-local bench-dataset bench-online bench-peers bench-endurance up down logs secrets image-sizes serve-local stop-local clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(READY)  ## create .venv from requirements.lock

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

quickstart: $(READY)  ## handwritten digits: pretrain a mixer, serve it, train two ranks on it
	$(BIN)/samix quickstart --out runs/quickstart

test: $(READY)  ## the fast tests
	$(BIN)/python -m pytest

test-all: $(READY)  ## every test this machine can run
	$(BIN)/python -m pytest -m ""

INPUTS ?= 100000
fuzz: $(READY)  ## send a server 100,000 broken messages, pictures and streams; INPUTS=N, and SEED=N to repeat a run
	SAMIX_FUZZ_INPUTS=$(INPUTS) SAMIX_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest tests/fuzz --timeout 0

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(READY)  ## rewrite the code as `check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

PROTOS := $(wildcard protos/samix/*/*/*.proto)
protos: $(READY)  ## regenerate samix/mixer/v1 and samix/inference/v2 from protos/
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

dashboards: $(READY)  ## rewrite the JSON of Grafana's dashboards from deploy/grafana/*.py
	$(BIN)/python deploy/grafana/dashboards.py

kubernetes-rules: $(READY)  ## rewrite the rules that Kubernetes applies from deploy/prometheus/rules
	$(BIN)/python deploy/kubernetes/rules.py

bench: $(READY)  ## how much of a mixer's speed arrives through the server; ARGS=--full for 224 px as well
	$(BIN)/python -m benchmarks.server $(ARGS)

bench-steps: $(READY)  ## what a training step costs with each way of mixing; ARGS="--policies all"
	$(BIN)/python -m benchmarks.steps $(ARGS)

PHOTOS ?= ../shared/data/imagenet-like/native/*-train-*.tar
bench-input: $(READY)  ## training images a core loads, beside webdataset; PHOTOS='photos-*.tar' names the shards
	$(BIN)/python -m benchmarks.input --shards '$(PHOTOS)' $(ARGS)

SMALL_PHOTOS ?= ../shared/data/imagenet-like/imagenette224/*-train-*.tar
bench-overlap: $(READY)  ## whether mixing hides behind the step; SMALL_PHOTOS='photos-*.tar' names the shards
	$(BIN)/python -m benchmarks.overlap --shards '$(SMALL_PHOTOS)' $(ARGS)

bench-local: $(READY)  ## images mixed per second in this process, by batch size and threads; ARGS=--compile
	$(BIN)/python -m benchmarks.local $(ARGS)

bench-endurance: $(READY)  ## fairness, memory under pressure, a soak, kill -9 of replicas; ARGS="--parts soak --soak.seconds 60"
	$(BIN)/python -m benchmarks.endurance $(ARGS)

bench-dataset: $(READY)  ## batches streamed from a server, beside bare sockets, tf.data service and making them here
	$(BIN)/samix bench dataset $(ARGS)

SMALL ?= ../shared/data/cifar100-20c/cifar100-20c
bench-online: $(READY)  ## the mixer in training on a server, beside one process; SMALL=PREFIX of PREFIX-train-*.tar
	$(BIN)/samix bench online --train '$(SMALL)-train-*.tar' --val '$(SMALL)-test-*.tar' $(ARGS)

bench-peers: $(READY)  ## images served per second, beside PyTriton, KServe, Ray Serve and LitServe
	$(BIN)/samix bench peers $(ARGS)

up:  ## build and start server and training run in containers; PROFILES=cpu,monitoring watches them (docs/deploy.md)
	@deploy/compose.sh up $(ARGS)

down:  ## stop them; ARGS=--volumes deletes their data as well
	@deploy/compose.sh down $(ARGS)

logs:  ## follow their logs; ARGS=trainer follows one
	@deploy/compose.sh logs $(ARGS)

secrets:  ## certificates and tokens for `make up TLS=1`, in deploy/secrets; NAMES="mixer.example.org" adds names
	@deploy/secrets.sh

image-sizes:  ## what the images built by `make up` weigh, with and without torch and what it needs
	@$(PYTHON) deploy/image_sizes.py $(ARGS)

serve-local: $(READY)  ## start a mixer server in the background, without containers; ARGS="--grpc-port 9001"
	@deploy/local-server.sh up $(ARGS)

stop-local:  ## stop it, after it has answered what it accepted
	@deploy/local-server.sh down

lock:  ## resolve requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-emit-index-url --constraint constraints.txt --output-file requirements.lock

clean:  ## remove what runs and tests left behind
	rm -rf runs .pytest_cache .ruff_cache .hypothesis
