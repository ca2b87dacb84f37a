"""Each service starts with compose's own command and environment, from the files that `init` makes, and works with the others."""

import contextlib
import json
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from services.gateway.billing.journal import Journal
from stack.servers import nats_server
from tests.deploy import compose_file, containers
from tests.deploy.containers import Container, House
from tests.services.gateway.billing.test_usage_recorder import row

SERVICES = ("auth", "gateway", "inference", "metrics", "web")
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, dict[str, Container]]]:
    with containers.house(tmp_path_factory.mktemp("compose")) as everything:
        yield everything


@pytest.fixture
def house(running: tuple[House, dict[str, Container]]) -> House:
    return running[0]


def test_init_hands_out_what_compose_mounts(tmp_path: Path) -> None:
    handed = containers.run_init(tmp_path)
    for service in compose_file.services():
        for value in compose_file.environment_of(service).values() if "environment" in compose_file.services()[service] else ():
            if value.startswith("/run/aimesh/"):
                file = handed / service / Path(value).name
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert subprocess.run([nats_server.binary(), "-t", "-c", handed / "nats/nats.conf"], capture_output=True, check=False).returncode == 0
    # A worker gets only its ticket, the token for its own port, and the Hugging Face token.
    assert {path.name for path in (handed / "inference").iterdir()} == {"ticket", "service_token", "hf_token"}


def test_init_hands_out_your_own_servers_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "DATABASE_URL": "postgresql://me:pw@db/all",
        "METRICS_DATABASE_URL": "postgresql://me:pw@db/metrics",
        "REDIS_URL": "redis://cache:6379",
        "OPENAI_API_KEY": "sk-one",
        "HF_TOKEN": "hf-one",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    handed = containers.run_init(tmp_path)
    urls = {service: (handed / service / "database_url").read_text(encoding="utf-8") for service in ("auth", "gateway", "metrics")}
    assert urls == {"auth": given["DATABASE_URL"], "gateway": given["DATABASE_URL"], "metrics": given["METRICS_DATABASE_URL"]}
    assert (handed / "gateway/redis_url").read_text(encoding="utf-8") == given["REDIS_URL"]
    assert (handed / "inference-openai/openai_api_key").read_text(encoding="utf-8") == "sk-one"
    assert (handed / "inference/hf_token").read_text(encoding="utf-8") == "hf-one"
    assert (handed / "inference-openai/openai_upstream_keys").read_bytes() == b""
    # No other container gets the key.
    assert not list(handed.glob("inference/openai*"))


@pytest.mark.parametrize(
    ("given", "web", "gateway"),
    [("", "172.31.250.129\n", ""), ("10.0.0.0/8, 192.0.2.1", "10.0.0.0/8\n192.0.2.1\n", "10.0.0.0/8\n192.0.2.1\n")],
)
def test_the_proxy_gets_the_proxies_that_it_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, web: str, gateway: str
) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", given)
    handed = containers.run_init(tmp_path) / "proxy"
    assert [(handed / f"proxies_of_{name}").read_text("utf-8") for name in ("web", "gateway")] == [web, gateway]


@pytest.mark.parametrize(
    ("given", "urls"),
    [
        ({}, ""),
        ({"PUBLIC_URL": "http://ai.example.org"}, ""),
        ({"PUBLIC_URL": "https://ai.example.org/"}, "wss://ai.example.org/mesh"),
        ({"PUBLIC_URL": "https://10.0.0.7:3000", "PUBLIC_KEY_PIN": f"{'+/' * 21}a="}, f"wss://10.0.0.7:3000/mesh?pin={'-_' * 21}a"),
        ({"PUBLIC_URL": "https://ai.example.org", "PUBLIC_NATS_URL": "tls://nats.example.org:4222"}, "tls://nats.example.org:4222"),
    ],
)
def test_tickets_lead_through_the_proxy_with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], urls: str) -> None:
    for name in ("PUBLIC_URL", "PUBLIC_NATS_URL", "PUBLIC_KEY_PIN"):
        monkeypatch.setenv(name, given.get(name, ""))
    assert (containers.run_init(tmp_path) / "auth/public_nats_url").read_text("utf-8") == urls


def test_receipts_of_the_version_before_get_the_key_that_signs_them(tmp_path: Path) -> None:
    (old := tmp_path / "handed/inference-data").mkdir(parents=True)
    (old / "worker.receipts").write_bytes(b"receipts")
    handed = containers.run_init(tmp_path)
    assert (old / "worker.nk").read_bytes() == (tmp_path / "state/keys/worker.nk").read_bytes()
    assert not list((handed / "inference-http-data").iterdir())


def test_init_refuses_the_database_of_an_older_postgresql(tmp_path: Path) -> None:
    program = containers.hand_out_program()
    program.check_postgres(tmp_path)
    (tmp_path / "18/docker").mkdir(parents=True)
    (tmp_path / "18/docker/PG_VERSION").write_text("18\n")
    program.check_postgres(tmp_path)
    (tmp_path / "PG_VERSION").write_text("17\n")
    with pytest.raises(SystemExit, match=r"PostgreSQL 17.*docs/howto/deploy.md, From PostgreSQL 17"):
        program.check_postgres(tmp_path)


def health_check(service: str, port: int) -> list[str]:
    kind, _, flag, text = compose_file.services()[service]["healthcheck"]["test"]
    assert (kind, flag) == ("CMD", "-c")
    text = compose_file.resolve(text, {f"{service.upper()}_SERVICE_PORT": str(port)})
    return [sys.executable, "-c", re.sub(r"127\.0\.0\.1:\d+/", f"127.0.0.1:{port}/", text)]


@pytest.mark.nightly("stacks")
@pytest.mark.parametrize("service", SERVICES)
def test_the_health_check_passes(house: House, service: str) -> None:
    check = health_check(service, house.ports[service])
    assert subprocess.run(check, env={}, capture_output=True, check=False, timeout=60).returncode == 0


def test_the_health_check_fails_where_nobody_listens() -> None:
    check = health_check("auth", containers.free_port())
    assert subprocess.run(check, env={}, capture_output=True, check=False, timeout=60).returncode != 0


@pytest.mark.nightly("stacks")
def test_a_machine_outside_reaches_nats_through_web(house: House) -> None:
    with containers.web_socket(house.ports["web"]) as (_, answer):
        assert b"INFO {" in answer.read(16)


@pytest.mark.nightly("stacks")
def test_a_new_user_gets_an_answer_through_the_published_ports(house: House) -> None:
    with httpx.Client(base_url=house.url("web", ""), timeout=60) as web:
        account = {"username": "john_doe", "email": "john@example.com", "password": PASSWORD}
        assert web.post("/api/auth/register", json=account).status_code == 201
        session = web.post("/api/auth/login", json={"username": "john_doe", "password": PASSWORD}).json()
        bearer = {"Authorization": f"Bearer {session['access_token']}"}
        made = web.post("/api/auth/api-keys", json={"name": "My CLI Key"}, headers=bearer).json()
        key = {"X-API-Key": made.get("apiKey") or made["api_key"]}
        answer = web.post("/api/inference", json={"prompt": "Say hello", "model": "smollm2", "maxTokens": 8}, headers=key)
        assert answer.status_code == 200, answer.text


def node_folders(house: House, service: str) -> set[Path]:
    return {path for path in house.volume(service).iterdir() if len(path.name) == 56}


@pytest.mark.nightly("stacks")
def test_replicas_join_by_ticket_and_adopt_what_a_killed_one_left(house: House) -> None:
    with contextlib.ExitStack() as ends:

        def start(number: int) -> Container:
            replica = house.service("gateway", number)
            ends.callback(replica.end)
            house.wait_until_ready(replica)
            return replica

        (first_folder,) = node_folders(house, "gateway")
        second = start(2)
        (killed_folder,) = node_folders(house, "gateway") - {first_folder}
        # PostgreSQL was down when this request ended.
        Journal(killed_folder / "gateway.journal").append([row()])
        second.end()
        third = start(3)
        wait(lambda: not killed_folder.exists())
        assert first_folder in node_folders(house, "gateway"), "the folder of a running gateway was adopted"
        assert len(node_folders(house, "gateway")) == 2
        assert "adopted the journal of a gateway that is gone" in third.log.read_text("utf-8")
        assert third.stop() == 0
        wait(lambda: node_folders(house, "gateway") == {first_folder})


@pytest.mark.nightly("stacks")
def test_a_worker_has_a_folder_with_its_key_and_leaves_none_without_receipts(house: House) -> None:
    with contextlib.ExitStack() as ends:
        worker = house.service("inference", 2, INFERENCE_BACKEND="echo")
        ends.callback(worker.end)
        house.wait_until_ready(worker)
        assert all((folder / "worker.nk").exists() for folder in node_folders(house, "inference"))
        assert len(node_folders(house, "inference")) == 2
        assert worker.stop() == 0
        # The worker answered no request.
        assert len(node_folders(house, "inference")) == 1


@pytest.mark.nightly("stacks")
@pytest.mark.skipif(shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None, reason="needs HAProxy")
def test_streams_end_while_gateways_and_workers_come_and_go(house: House) -> None:
    with contextlib.ExitStack() as ends:

        def start(name: str, number: int, **dotenv: str) -> Container:
            replica = house.service(name, number, **dotenv)
            ends.callback(replica.end)
            house.wait_until_ready(replica)
            return replica

        echo = {"INFERENCE_BACKEND": "echo", "ECHO_TOKEN_MS": "20"}
        going = [start("gateway", 2), start("inference", 2, **echo)]
        start("inference", 3, **echo)
        proxy = house.proxy(web=("web",), gateway=("gateway", "gateway-2"))
        ends.callback(proxy.end)
        house.wait_until_ready(proxy)
        key = (house.handed / "auth/admin_key").read_text("utf-8").strip()
        streams = [Stream(house.url("proxy-gateway", ""), key, "word " * 200) for _ in range(8)]
        with ThreadPoolExecutor(8) as threads:
            answers = [threads.submit(each.read) for each in streams]
            wait(lambda: all(each.words for each in streams))
            assert [container.stop() for container in going] == [0, 0]
            assert [answer.result() for answer in answers] == [200] * 8
        # The next request reaches the remaining replicas.
        assert Stream(house.url("proxy-gateway", ""), key, "one two three").read() == 3


class Stream:
    """A streamed chat with the echo backend."""

    def __init__(self, url: str, key: str, prompt: str) -> None:
        self.words = 0
        self._url, self._key, self._prompt = url, key, prompt

    def read(self) -> int:
        """Return how many words arrived. Fails if the end is missing."""
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": self._prompt}]}
        bearer = {"Authorization": f"Bearer {self._key}"}
        with (
            httpx.Client(timeout=60) as client,
            client.stream("POST", f"{self._url}/v1/chat/completions", json=body, headers=bearer) as got,
        ):
            assert got.status_code == 200, got.read()
            lines = [line for line in map(self._count, got.iter_lines()) if line]
        assert lines[-1] == "data: [DONE]", lines[-3:]
        return self.words

    def _count(self, line: str) -> str:
        if line.startswith("data: {"):
            self.words += sum(len((choice["delta"].get("content") or "").split()) for choice in json.loads(line[6:])["choices"])
        return line


def wait(until: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + 30
    while not until():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


@pytest.mark.nightly("stacks")
@pytest.mark.parametrize("service", SERVICES)
def test_it_ends_properly_when_compose_stops_it(running: tuple[House, dict[str, Container]], service: str) -> None:
    # The last tests of the module: they stop every service.
    assert running[1][service].stop() == 0
