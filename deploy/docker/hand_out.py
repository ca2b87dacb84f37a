"""Give each container of compose.yaml its own secrets and nothing else; the last step of the one-shot `init` service.

`aicli stack init` has written everything to AIMESH_HOME, a volume that no other container sees. This program copies the files that
each container needs to its own volume, and writes the configuration of the servers. It is safe to run again.
"""

import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cli import profile
from shared import addresses
from shared.identity import private_file
from shared.types import MeshName, Role
from stack import features, secret_files
from stack import stack_home as homes
from stack.features import ContainerSite
from stack.servers import postgres, replica_tickets
from stack.stack_home import StackHome

#: Users: of our own images and the NATS container; of the PostgreSQL and Valkey images.
OURS, SERVERS = 10001, 999
#: Users of the Compose profile `observability`; Loki, Jaeger and the collector run as OURS.
GRAFANA, NOBODY = 472, 65534
#: Of the image of the proxy.
HAPROXY = 99
#: Whose X-Forwarded-For the proxy trusts on the port of each service: of web, a proxy on this host, which comes from the bridge's address.
OUTER_PROXIES = {"web": "172.31.250.129", "gateway": ""}
#: The worker of each volume before workers joined with tickets.
OLD_WORKERS = {
    "inference": "worker",
    "inference-gpu": "worker-gpu",
    "inference-ollama": "worker-ollama",
    "inference-openai": "worker-openai",
    "inference-http": "inference-http",
}
NATS_URL = "nats://nats:4222"
#: Of each service. Containers that are killed and started again count twice for a minute.
MAX_REPLICAS = 100
#: The longest. A container that starts after that needs another `docker compose up`, where `init` renews them.
TICKET_DAYS = 400
#: Mounted by compose.yaml.
ADDRESSES = Path("/alertmanager/alertmanager.env")


@dataclass(frozen=True, slots=True)
class Recipient:
    """One container's volume."""

    user: int
    files: Mapping[str, bytes]
    #: Write them only if the volume has this file.
    only_beside: str = ""


def recipients(home: StackHome, mesh: MeshName) -> Iterator[tuple[str, Recipient]]:
    """Yield the name and the content of each volume."""
    site = ContainerSite(home=home, given=given, database_url=lambda role: database_url(home, role))
    more = {volume: files for part in features.parts() for volume, files in part.container_files(site).items()}
    for name, recipient in of_services(home, mesh):
        yield name, replace(recipient, files={**recipient.files, **more.pop(name, {})})
    yield from ((name, Recipient(OURS, files)) for name, files in more.items())
    yield from of_replicas(home)
    yield from of_stores()
    yield from of_observers(home)


def of_services(home: StackHome, mesh: MeshName) -> Iterator[tuple[str, Recipient]]:
    ensure_valkey_password(home)
    bundled = f"redis://:{secret_files.read(home, 'valkey_password')}@valkey:6379"
    redis_url = (given("REDIS_URL") or bundled).encode()
    replica_tickets.ensure(home, mesh, [NATS_URL], MAX_REPLICAS, replica_tickets.PRIVATE_NETWORKS, days=TICKET_DAYS)
    worker = {"ticket": ticket(home, Role.WORKER), "service_token": secret(home, "service_token"), "hf_token": given("HF_TOKEN").encode()}
    yield (
        "auth",
        Recipient(
            OURS,
            {
                "node.nk": key(home, "auth"),
                "database_url": database_url(home, "auth"),
                "redis_url": redis_url,
                "public_nats_url": public_nats_url(),
                **{name: secret(home, name) for name in secret_files.OF_AUTH},
            },
        ),
    )
    yield (
        "gateway",
        Recipient(
            OURS,
            {
                "ticket": ticket(home, Role.GATEWAY),
                "database_url": database_url(home, "gateway"),
                "redis_url": redis_url,
                **{name: secret(home, name) for name in ("prompt_hash_secret", "web_hop_secret")},
            },
        ),
    )
    for name in ("inference", "inference-gpu", "inference-ollama", "inference-http"):
        yield name, Recipient(OURS, worker)
    keys = {name: given(name.upper()).encode() for name in ("openai_api_key", "openai_upstream_keys")}
    yield "inference-openai", Recipient(OURS, worker | keys)
    yield "metrics", Recipient(OURS, {"ticket": ticket(home, Role.METRICS), "database_url": database_url(home, "metrics")})
    hop = {name: secret(home, name) for name in ("web_secret", "web_hop_secret")}
    yield "web", Recipient(OURS, {"ticket": ticket(home, Role.WEB), **hop})
    yield "proxy", Recipient(HAPROXY, {f"proxies_of_{name}": outer_proxies(default) for name, default in OUTER_PROXIES.items()})
    yield "client", Recipient(OURS, {"node.nk": key(home, "client"), "profile.toml": client_profile(mesh)})
    yield "relay", Recipient(OURS, {"relay_seed": secret(home, "relay_seed")})
    yield "nats", Recipient(OURS, {"nats.conf": nats_conf(home), "users.conf": (home.nats / "users.conf").read_bytes()})
    yield "postgres", Recipient(SERVERS, {"admin_password": secret(home, secret_files.POSTGRES_ADMIN), "provision.env": provision(home)})
    yield "postgres-data", Recipient(SERVERS, {})
    yield "postgres-socket-data", Recipient(SERVERS, {})
    yield "valkey", Recipient(SERVERS, {"valkey.conf": valkey_conf(home)})


def of_replicas(home: StackHome) -> Iterator[tuple[str, Recipient]]:
    """Yield the volumes of journals and receipts, with the key that signs the receipts of a version that had one key for each worker."""
    yield "gateway-data", Recipient(OURS, {})
    for name, node in OLD_WORKERS.items():
        old = {"worker.nk": key(home, node)} if home.key(node).exists() else {}
        yield f"{name}-data", Recipient(OURS, old, only_beside="worker.receipts")


def of_stores() -> Iterator[tuple[str, Recipient]]:
    """Yield the volumes of the profile `s3`, and the recovery log's, which only gets an owner."""
    yield "recovery-data", Recipient(OURS, {})
    yield "s3", Recipient(OURS, {"s3.json": s3_config()})
    yield "s3-data", Recipient(OURS, {})


def of_observers(home: StackHome) -> Iterator[tuple[str, Recipient]]:
    """Yield the volumes of the profile `observability`. Data volumes only get an owner, because some images don't set one."""
    ensure_grafana_secrets(home)
    passwords = {"admin_password": secret(home, "grafana_admin_password"), "secret_key": secret(home, "grafana_secret_key")}
    yield "grafana", Recipient(GRAFANA, passwords)
    yield "alertmanager", Recipient(NOBODY, {"alertmanager.env": alert_addresses()})
    for name, user in (("grafana", GRAFANA), ("alertmanager", NOBODY), ("prometheus", NOBODY), ("loki", OURS), ("jaeger", OURS)):
        yield f"{name}-data", Recipient(user, {})


def key(home: StackHome, name: str) -> bytes:
    return home.key(name).read_bytes()


def ticket(home: StackHome, role: Role) -> bytes:
    return (replica_tickets.folder_of(home) / role).read_bytes()


def outer_proxies(default: str) -> bytes:
    """Return addresses and networks, one a line."""
    found = (given("TRUSTED_PROXIES") or default).split(",")
    return "".join(f"{each.strip()}\n" for each in found if each.strip()).encode()


def secret(home: StackHome, name: str) -> bytes:
    return (home.secrets / name).read_bytes()


def ensure_valkey_password(home: StackHome) -> None:
    """Create a password; the embedded Valkey needs none, because only its socket is accessible."""
    private_file.create(home.secrets / "valkey_password", lambda: secrets.token_urlsafe(32).encode())


def ensure_grafana_secrets(home: StackHome) -> None:
    """Create secrets that the embedded stack doesn't have."""
    for name in ("grafana_admin_password", "grafana_secret_key"):
        private_file.create(home.secrets / name, lambda: secrets.token_urlsafe(24).encode())


def alert_addresses() -> bytes:
    """Return deploy/alertmanager/alertmanager.env. It may contain tokens, so only Alertmanager can read the copy."""
    return ADDRESSES.read_bytes() if ADDRESSES.exists() else b""


def given(name: str) -> str:
    """Return a setting from `.env`; empty if it is not set."""
    return os.environ.get(name, "").strip()


def database_url(home: StackHome, role: str) -> bytes:
    """Return the URL of the user's own server, or of the container `postgres`, or of the nodes of database-cluster.yaml."""
    if own := given(f"{role.upper()}_DATABASE_URL") or given("DATABASE_URL"):
        return own.encode()
    password = secret_files.read(home, f"postgres_{role}")
    place = (
        f"{hosts}/{postgres.DATABASE}?target_session_attrs=read-write"
        if (hosts := given("POSTGRES_HOSTS"))
        else f"postgres:5432/{postgres.DATABASE}"
    )
    return f"postgresql://{role}:{password}@{place}".encode()


def public_nats_url() -> bytes:
    """Return the URLs for tickets: `/mesh` of the pages if they have TLS; empty for NATS_URL, which only containers reach."""
    pages = given("PUBLIC_URL")
    by_https = addresses.mesh_url(pages, given("PUBLIC_KEY_PIN") or None) if pages.startswith("https://") else ""
    return (given("PUBLIC_NATS_URL") or by_https).encode()


def s3_config() -> bytes:
    """Return SeaweedFS's users: the key of `.env`. Without one, nobody knows the secret; without a user, it would need none."""
    key = {"accessKey": given("AWS_ACCESS_KEY_ID") or "nobody", "secretKey": given("AWS_SECRET_ACCESS_KEY") or secrets.token_urlsafe(32)}
    user = {"name": "aimesh", "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]}
    return json.dumps({"identities": [user]}).encode()


def provision(home: StackHome) -> bytes:
    """Return the environment for stack/servers/postgres.sql. It has SCRAM verifiers, so no statement contains a password."""
    password = f"export PGPASSWORD={secret_files.read(home, secret_files.POSTGRES_ADMIN)}"
    passwords = {role: secret_files.read(home, f"postgres_{role}") for role in secret_files.LOGIN_ROLES}
    return f"{password}\n{postgres.exports(passwords)}".encode()


def nats_conf(home: StackHome) -> bytes:
    """Return the embedded server's configuration, changed to listen on the private network, with its health page on loopback."""
    text = (home.nats / "nats.conf").read_text(encoding="utf-8")
    text = re.sub(r"^listen:.*$", 'listen: "0.0.0.0:4222"\nhttp: "127.0.0.1:8222"', text, flags=re.MULTILINE)
    return re.sub(r"^  listen:.*$", '  listen: "0.0.0.0:8080"', text, flags=re.MULTILINE).encode()


def valkey_conf(home: StackHome) -> bytes:
    lines = {
        "port": "6379",
        "requirepass": secret_files.read(home, "valkey_password"),
        "dir": "/data",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory": "512mb",
        "maxmemory-policy": "noeviction",
    }
    return "".join(f"{name} {value}\n" for name, value in lines.items()).encode()


def client_profile(mesh: MeshName) -> bytes:
    """Return the profile for `docker compose run --rm aicli …`."""
    chosen = profile.Profile(node_key_file=Path("node.nk"), mesh=mesh, nats_url=NATS_URL, web_url="http://127.0.0.1:3000")
    return profile.render(chosen).encode()


def hand_out(folder: Path, recipient: Recipient) -> None:
    """Write each file atomically, readable only by that container's user."""
    # Compose has mounted a volume there; the Swarm stack reads the folder.
    folder.mkdir(exist_ok=True)
    needed = not recipient.only_beside or (folder / recipient.only_beside).exists()
    for name, content in recipient.files.items() if needed else ():
        place = folder / name
        for parent in place.relative_to(folder).parents[:-1][::-1]:
            (folder / parent).mkdir(mode=0o700, exist_ok=True)
            os.chown(folder / parent, recipient.user, recipient.user)
        unfinished = place.with_name(f".{place.name}.unfinished")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        os.chown(unfinished, recipient.user, recipient.user)
        unfinished.replace(place)
    os.chown(folder, recipient.user, recipient.user)
    folder.chmod(0o700)


def check_postgres(data: Path) -> None:
    """Exit if the volume has the database of a PostgreSQL before 18, which was at its top and which 18 cannot read."""
    try:
        version = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return
    sys.exit(
        f"the volume postgres-data is of PostgreSQL {version}: move it to PostgreSQL 18 first, see docs/howto/deploy.md, From PostgreSQL 17"
    )


def main(target: Path) -> None:
    check_postgres(target / "postgres-data")
    home = homes.locate(os.environ)
    mesh = MeshName(os.environ.get("MESH_NAME") or "home")
    for name, recipient in recipients(home, mesh):
        hand_out(target / name, recipient)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
