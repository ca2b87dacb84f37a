"""`aicli stack kubernetes-secrets`: the Secrets of the chart, printed or written to an API server."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from cli import main
from shared import errors
from shared.identity import enrollment_list, tickets
from shared.types import Role
from stack import kubernetes_secrets
from stack import stack_home as homes
from stack.kubernetes_secrets import Cluster

URLS = [
    "--nats",
    "tls://x-nats-0.x-nats.infra:4222",
    "--database",
    "postgresql://{role}:{password}@db/aimesh",
    "--redis",
    "redis://:{password}@v",
]


def run(folder: Path, *words: str) -> dict[str, dict[str, Any]]:
    done = CliRunner().invoke(main.aicli, ["stack", "kubernetes-secrets", "x", *words], env={"AIMESH_HOME": str(folder)})
    assert done.exit_code == 0, done.output
    return {secret["metadata"]["name"]: secret for secret in map(json.loads, done.stdout.splitlines())}


def content(secret: dict[str, Any], key: str) -> str:
    return base64.b64decode(secret["data"][key]).decode()


def test_each_program_gets_its_own_secrets_in_its_namespace(tmp_path: Path) -> None:
    made = run(tmp_path, *URLS, "--active", "7", "--namespace", "models=ai-models", "--namespace", "infra=ai-infra")
    assert {name: secret["metadata"]["namespace"] for name, secret in made.items()} == {
        **dict.fromkeys(("x-auth", "x-gateway", "x-web", "x-router", "x-migrate", "x-metrics", "x-observability"), "default"),
        **dict.fromkeys(("x-nats", "x-valkey", "x-postgres", "x-home"), "ai-infra"),
        "x-worker": "ai-models",
    }
    # A worker can join and check its own port, and do nothing else.
    assert set(made["x-worker"]["data"]) == {"ticket", "service_token", "hf_token"}
    assert {name for name, secret in made.items() if "mesh_ca_key" in secret["data"]} == {"x-auth"}
    password = content(made["x-valkey"], "valkey_password").strip()
    assert content(made["x-auth"], "redis_url") == f"redis://:{password}@v"
    assert content(made["x-metrics"], "database_url").startswith("postgresql://metrics:")
    assert "database_read_url" not in made["x-gateway"]["data"]
    assert 'nats_ca_file = "NATS_CA"' in content(made["x-migrate"], "profile.toml")
    assert "GATEWAY_VERIFIER='SCRAM-SHA-256$" in content(made["x-postgres"], "provision.env")
    ticket = tickets.parse(content(made["x-gateway"], "ticket"))
    listed = {each.id: each for each in enrollment_list.read(homes.locate({"AIMESH_HOME": str(tmp_path)}).enrollment).tickets}
    assert (listed[ticket.id].role, listed[ticket.id].active_most) == (Role.GATEWAY, 7)
    assert ticket.nats == ("tls://x-nats-0.x-nats.infra:4222",)


def test_without_urls_your_own_servers_are_used(tmp_path: Path) -> None:
    made = run(tmp_path, *URLS[:2])
    assert "database_url" not in made["x-auth"]["data"]
    assert "redis_url" not in made["x-gateway"]["data"]


def test_replicas_answer_reports(tmp_path: Path) -> None:
    made = run(tmp_path, *URLS, "--database-read", "postgresql://{role}:{password}@replica/aimesh")
    assert content(made["x-metrics"], "database_read_url").startswith("postgresql://metrics:")
    assert content(made["x-gateway"], "database_read_url").endswith("@replica/aimesh")


class ApiServer(BaseHTTPRequestHandler):
    kept: ClassVar[dict[str, bytes]] = {}
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        found = self.kept.get(self.path)
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write(found or b"{}")

    def do_PATCH(self) -> None:
        assert self.headers["Authorization"] == "Bearer token-of-the-pod"
        path, _, query = self.path.partition("?")
        self.seen.append(query)
        self.kept[path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(403 if path.endswith("forbidden-home") else 200)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    ApiServer.kept, ApiServer.seen = {}, []
    (tmp_path / "token").write_text("token-of-the-pod", encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), ApiServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Cluster(f"http://127.0.0.1:{server.server_port}", tmp_path)
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("old_tarfile")
def test_a_second_run_keeps_the_keys_of_the_first(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_secrets, "Cluster", lambda: cluster)
    # The Job starts with an empty home each time.
    for number in (1, 2):
        run(tmp_path / str(number), *URLS, "--apply")
    assert set(ApiServer.seen) == {"fieldManager=aimesh-init&force=true"}
    secrets = [tmp_path / str(number) / "secrets" for number in (1, 2)]
    for name in ("mesh_ca.nk", "data_key", "tickets/gateway", "valkey_password"):
        assert len({(folder / name).read_bytes() for folder in secrets}) == 1, name
    written = json.loads(ApiServer.kept["/api/v1/namespaces/default/secrets/x-auth"])
    assert base64.b64decode(written["data"]["mesh_ca_key"]) == (secrets[0] / "mesh_ca.nk").read_bytes().strip()


def test_a_refusal_says_what_to_check(cluster: Cluster) -> None:
    with pytest.raises(errors.Unavailable, match="PATCH default/secrets/forbidden-home"):
        cluster.apply({"metadata": {"namespace": "default", "name": "forbidden-home"}})
