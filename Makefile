# The two commands are `make up` and `make test`; `make` alone explains all of them.
SHELL := /bin/sh
BIN := .venv/bin
# The first Python that is new enough; the setup script explains what to do when there is none.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && exit; done; echo python3)
#: Narrows a test run: make test TESTS=tests/cli
TESTS ?=
#: Narrows the mutants: make mutants ONLY=money, or numbers of entries: ONLY="3 17"
ONLY ?=
#: Test processes at a time. Two more than there are processors: much of their time they wait for a server.
AT_ONCE ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)
#: The number of tests is known at the end only: tests/parallel.py prints how far they are.
IN_PARALLEL = --numprocesses $(AT_ONCE) -o console_output_style=classic
#: What `make check` runs, and `make test` therefore does not.
CHECKED = tests/test_architecture.py tests/test_repository.py tests/test_docs.py tests/test_plain_english.py
#: For make images and make chart: where the images are, the end of their tag (such as -arm64), and PUSH=1 to push them.
AIMESH_REGISTRY ?= localhost
ARCH ?=
PUSH ?=
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' sdk/python/src/aimesh/version.py)
BIOME = $(CURDIR)/packages/pyhyperswarm/src/pyhyperswarm/sidecar/node_modules/@biomejs/cli-linux-*/biome ci --colors=off
IMAGES = aimesh aimesh-web aimesh-worker aimesh-worker-cuda aimesh-dht aimesh-backup
# Tests start hundreds of Python programs, and each would compile this repository anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev up down status test quick test-all test-system check types biome mutants chaos drill storm bench bench-check docs chart deploy-tools images image-lists lock worker-cpu worker-cuda worker-rocm worker-metal worker-vulkan

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install aimesh into .venv (make up does this too)
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -m tools.setup runtime

setup-dev:
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -m tools.setup dev
	@$(PYTHON) -m tools.engine_libraries

up: ## start everything in the background and send a first prompt (LAN=1: for your network, REACH=public: from anywhere)
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -m tools.setup runtime --then $(BIN)/aicli stack up --ask "Say hello"
	@$(PYTHON) -m tools.engine_libraries --background
	@$(BIN)/python -m tools.packages.install_index --libraries --background

down: ## stop everything; the data stays
	@test -x $(BIN)/aicli || { echo "nothing is installed here, so nothing is running"; exit 0; }; $(BIN)/aicli stack down

worker-cuda: ## take the engine for NVIDIA's CUDA (or: worker-vulkan, worker-cpu; BUILD=1 compiles, also worker-rocm, worker-metal)
worker-cpu worker-cuda worker-rocm worker-metal worker-vulkan:
	@$(PYTHON) -m tools.setup runtime --engine $(@:worker-%=%)
	@echo "The engine is installed for $(@:worker-%=%); to restart running workers with it: make down, then make up"

status: ## show what is running
	@test -x $(BIN)/aicli || { echo "nothing is installed here; start with: make up"; exit 1; }; $(BIN)/aicli stack status

test: setup-dev ## run the tests except the nightly ones, 8 to 15 minutes on 2 cores (TESTS=tests/cli: only some)
	@$(BIN)/python -m pytest $(if $(TESTS),$(TESTS),$(IN_PARALLEL) $(CHECKED:%=--ignore=%))

quick: ## run the tests of the pure cores, without servers and event loops, in 20 seconds
	@$(BIN)/python -m pytest -q -m "not nightly and not asyncio" --numprocesses auto -o console_output_style=classic $$($(BIN)/python -m tools.cores)

# pytest ends with 5 if it ran nothing: TESTS may name only tests of one kind.
test-all: setup-dev ## run all tests with random seeds and full volumes (more than an hour)
	@failed=0; \
	only() { [ $$1 = 5 ] && [ -n "$(TESTS)" ]; }; \
	$(BIN)/python -m pytest --nightly -m "not nightly" $(IN_PARALLEL) $(TESTS) || only $$? || failed=1; \
	$(BIN)/python -m pytest --nightly -m nightly $(TESTS) || only $$? || failed=1; \
	exit $$failed

test-system: ## install the system packages that some tests need (Debian, as root)
	@$(PYTHON) tools/system_packages.py

check: setup-dev ## format, lint, types, import contracts, dependencies, docs drift
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(MAKE) --no-print-directory types
	@$(BIN)/lint-imports
	@$(MAKE) --no-print-directory biome
	@$(BIN)/python -m pytest -q $(CHECKED)
	@$(BIN)/python -m tools.docs --check

types: ## check the types, as make check and the pre-commit hook do
	@$(BIN)/mypy shared features services cli stack tools bench
	@for package in sdk/python packages/pyhyperswarm; do $(BIN)/mypy --config-file $$package/pyproject.toml || exit 1; done

biome: ## check JavaScript and CSS, as make check and the pre-commit hook do
	@cd packages/pyhyperswarm/src/pyhyperswarm/sidecar && $(BIOME) .
	@cd sdk/javascript && $(BIOME) .
	@$(BIOME) --config-path=services/web/static/js tests/services/web/js
	@cd services/web/static/js && $(BIOME) .

mutants: setup-dev ## inject the faults of tests/mutants.toml; a test must fail for each (9 minutes)
	@$(BIN)/python -m tools.mutants $(ONLY)

chaos: setup-dev ## break every part of a stack under load, three times each, and write docs/reference/faults.md (an hour; fails after 75 minutes)
	@$(BIN)/python -m tests.chaos.run --page docs/reference/faults.md

drill: setup-dev ## rehearse docs/runbooks/disaster.md under load, and measure each recovery (5 minutes)
	@$(BIN)/python -m pytest -q --nightly tests/drill

storm: setup-dev ## inject random faults, two at once, for 10 minutes (REPLICAS=3: of each service)
	@$(BIN)/python -m tests.chaos.storm $(if $(REPLICAS),--replicas $(REPLICAS))

BENCHES_OF_FEATURES = $(subst /,.,$(basename $(wildcard tests/features/*/bench.py)))
bench: setup-dev ## benchmark the claims of the README against competitors
	@failed=0; for name in $(addprefix bench.,mesh gateway fairness swarm ledger first_answer engine) $(BENCHES_OF_FEATURES); do echo "== $$name"; $(BIN)/python -m "$$name" || failed=1; done; $(BIN)/python -m tests.soak.soak || failed=1; exit $$failed

bench-check: setup-dev ## run short benchmarks, and fail if a ratio is worse than in bench/baseline.json (20 minutes)
	@$(BIN)/python -m bench.baseline --check

docs: setup-dev ## write the generated pages of docs/
	@$(BIN)/python -m tools.docs

deploy-tools: setup-dev ## install helm, kubectl, Compose and linters for deploy/ into .tools; as root, also container engines
	@$(BIN)/python -m tools.deploy_tools

chart: ## package the Helm chart into build/, and render deploy/kustomize/base (after make deploy-tools)
	@PATH="$(CURDIR)/.tools/bin:$$PATH"; rm -rf build/chart build/ai-inference-*.tgz; mkdir -p build/chart && cp -RL deploy/helm/ai-inference build/chart \
		&& sed 's|^  registry: ""|  registry: "$(AIMESH_REGISTRY)"|' deploy/helm/ai-inference/values.yaml >build/chart/ai-inference/values.yaml \
		&& helm package build/chart/ai-inference --destination build && rm -rf build/chart \
		&& helm template aimesh build/ai-inference-*.tgz --namespace aimesh --values deploy/kustomize/values.yaml >deploy/kustomize/base/aimesh.yaml

images: ## build the container images with Docker's buildx (PUSH=1: push them to AIMESH_REGISTRY, with SBOM and provenance)
	@for image in $(IMAGES); do \
		docker buildx build --file deploy/docker/Dockerfile --target "$$(echo "$$image" | sed 's/^aimesh-//')" --tag "$(AIMESH_REGISTRY)/$$image:$(VERSION)$(ARCH)" \
			--build-arg VERSION=$(VERSION) --build-arg REVISION="$$(git rev-parse HEAD)" \
			$(if $(PUSH),--push --sbom=true --provenance=mode=max,--load) . || exit 1; \
	done

image-lists: ## combine the pushed amd64 and arm64 images under one tag
	@for image in $(IMAGES); do \
		docker buildx imagetools create --tag "$(AIMESH_REGISTRY)/$$image:$(VERSION)" \
			"$(AIMESH_REGISTRY)/$$image:$(VERSION)-amd64" "$(AIMESH_REGISTRY)/$$image:$(VERSION)-arm64" || exit 1; \
	done

lock: setup-dev ## update all lock files (UPGRADE=1: newest versions, COOLDOWN=0: also releases younger than a week)
	@$(BIN)/python -m tools.locks $(if $(UPGRADE),--upgrade) $(if $(COOLDOWN),--cooldown $(COOLDOWN))
