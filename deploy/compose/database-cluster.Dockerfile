# PostgreSQL under Patroni, and etcd. `docker compose build` builds it in the root of the checkout; the secrets are those of deploy/docker/Dockerfile.
ARG POSTGRES=postgres:18.4-bookworm
FROM $POSTGRES
COPY requirements/patroni.lock /build/
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt --mount=type=secret,id=pip,target=/etc/pip.conf \
    apt-get update && apt-get install --yes --no-install-recommends etcd-client etcd-server python3-venv && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes -r /build/patroni.lock \
    && install --directory --owner=postgres --group=postgres --mode=0700 /var/lib/aimesh-etcd
ENV PATH=/venv/bin:$PATH
USER 999:999
ENTRYPOINT []
CMD ["patroni", "/etc/patroni.yaml"]
