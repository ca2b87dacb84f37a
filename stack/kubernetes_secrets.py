"""The Secrets of the chart deploy/helm/ai-inference, made from a home: each program gets its own and nothing else.

In a cluster, the chart's Job `init` keeps the home in the Secret NAME-home, so that its next run adds what is missing.
"""

import base64
import io
import json
import secrets
import ssl
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import profile
from shared import errors
from shared.identity import private_file
from shared.types import MeshName, Role
from stack import features, secret_files
from stack import stack_home as homes
from stack.servers import postgres, replica_tickets
from stack.stack_home import StackHome

_SECONDS = 20
#: Groups of programs, each in its own namespace if you like.
GROUPS = ("gateway", "models", "observability", "infra")
#: The secrets of auth, and the names of its settings for them.
_OF_AUTH = {name: name for name in secret_files.OF_AUTH}
_OF_AUTH |= {"key_pepper": "api_key_pepper", "admin_key": "admin_api_key", "mesh_ca.nk": "mesh_ca_key", "nats_issuer.nk": "nats_issuer_key"}
_OF_AUTH |= {"nats_callout.nk": "nats_callout_key", "nats_sys.nk": "nats_sys_key"}


def manifests(name: str, namespaces: Mapping[str, str], files: Iterator[tuple[str, str, dict[str, bytes]]]) -> Iterator[dict[str, Any]]:
    for component, group, content in files:
        metadata = {"name": f"{name}-{component}", "namespace": namespaces[group], "labels": {"app.kubernetes.io/part-of": "aimesh"}}
        data = {key: base64.b64encode(value).decode() for key, value in content.items()}
        yield {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}


def files_of(home: StackHome, mesh: MeshName, urls: Mapping[str, str]) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """Yield the name, the group and the files of each Secret. ``urls`` has nats, web, database, database_read and redis."""

    def read(*names: str) -> dict[str, bytes]:
        # As environment variables, they must not end with a newline.
        return {name: (home.secrets / name).read_bytes().strip() for name in names}

    def place(role: Role) -> dict[str, bytes]:
        ticket = {} if role is Role.AUTH else {"ticket": (replica_tickets.folder_of(home) / role).read_bytes()}
        named = {name: url for name in ("database", "database_read") if (url := urls[name]) and role in passwords}
        return ticket | {f"{name}_url": url.format(role=role, password=passwords[role]).encode() for name, url in named.items()}

    for name in ("valkey_password", "metrics_token", "grafana_admin_password", "grafana_secret_key"):
        private_file.create(home.secrets / name, lambda: secrets.token_urlsafe(32).encode())
    passwords = {role: secret_files.read(home, f"postgres_{role}") for role in secret_files.LOGIN_ROLES}
    databases = {
        role: urls["database"].format(role=role, password=password).encode() for role, password in passwords.items() if urls["database"]
    }
    redis = {"redis_url": urls["redis"].format(password=secret_files.read(home, "valkey_password")).encode()} if urls["redis"] else {}
    for part in features.parts():
        part.ensure_secrets(home)
    trusted = Path("NATS_CA") if urls["nats"].startswith("tls") else None
    client = profile.Profile(node_key_file=Path("node.nk"), mesh=mesh, nats_url=urls["nats"], nats_ca_file=trusted, web_url=urls["web"])
    aicli = {"node.nk": home.key("client").read_bytes(), "profile.toml": profile.render(client).encode()}
    hop, worker = read("web_hop_secret", "metrics_token"), place(Role.WORKER) | read("service_token") | {"hf_token": b""}
    yield "auth", "gateway", place(Role.AUTH) | redis | {_OF_AUTH[name]: secret for name, secret in read(*_OF_AUTH).items()}
    yield "gateway", "gateway", place(Role.GATEWAY) | redis | read("prompt_hash_secret") | hop
    yield "web", "gateway", place(Role.WEB) | read("web_secret") | hop
    yield "router", "gateway", worker
    yield "worker", "models", worker
    yield "migrate", "gateway", aicli | {f"{role}_database_url": url for role, url in databases.items()}
    yield "metrics", "observability", place(Role.METRICS)
    yield "observability", "observability", read("metrics_token", "grafana_admin_password", "grafana_secret_key")
    yield "nats", "infra", {"users.conf": (home.nats / "users.conf").read_bytes()}
    yield "valkey", "infra", read("valkey_password")
    provision = postgres.exports(passwords)
    yield "postgres", "infra", read(secret_files.POSTGRES_ADMIN) | {"provision.env": provision.encode()}
    yield "home", "infra", {"home.tar": pack(home), "backup_database_url": databases.get("backup", b"")}


def pack(home: StackHome) -> bytes:
    """Return an archive of the home's secrets, keys and settings."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in (home.secrets, home.keys, home.settings_file):
            archive.add(path, path.name)
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Cluster:
    """The API server, with the account of this pod. Its methods block and raise Unavailable."""

    url: str = "https://kubernetes.default.svc"
    account: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")

    def restore(self, home: StackHome, namespace: str, name: str) -> None:
        """Unpack what an earlier run has kept, if there was one."""
        if (kept := self._ask("GET", f"{namespace}/secrets/{name}-home")) is not None:
            homes.ensure_folders(home)
            with tarfile.open(fileobj=io.BytesIO(base64.b64decode(json.loads(kept)["data"]["home.tar"]))) as archive:
                # Python before 3.11.4 has no filters.
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                archive.extractall(home.root)  # noqa: S202 - it has a filter where there are any

    def apply(self, manifest: dict[str, Any]) -> None:
        namespace, name = (manifest["metadata"][key] for key in ("namespace", "name"))
        self._ask("PATCH", f"{namespace}/secrets/{name}?fieldManager=aimesh-init&force=true", json.dumps(manifest).encode())

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes | None:
        token = (self.account / "token").read_text(encoding="utf-8")
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/apply-patch+yaml"}
        request = urllib.request.Request(f"{self.url}/api/v1/namespaces/{path}", body, headers, method=method)  # noqa: S310
        trusted = ssl.create_default_context(cafile=str(self.account / "ca.crt")) if self.url.startswith("https") else None
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS, context=trusted) as answer:  # noqa: S310 - the API server
                return bytes(answer.read())
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 404 and method == "GET":
                return None
            raise errors.Unavailable(
                f"Kubernetes: {method} {path}: {error}", hint="check the Role and the network policy of init"
            ) from error
