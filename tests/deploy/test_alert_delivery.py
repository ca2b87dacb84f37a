"""An alert and its resolution, end to end: a scrape, a rule, Prometheus and Alertmanager as shipped, a webhook."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import yaml

from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared.telemetry.instruments import Instruments
from shared.types import Role
from stack import processes
from tests.deploy import debian
from tests.testnet import MESH, free_port, testnet, until

DEPLOY = Path(__file__).parents[2] / "deploy"
#: From the change of a value to the message, including scrape, rule and grouping. Prometheus reads its targets every 5 s.
DELIVERED_SECONDS = 30


class Outside(ThreadingHTTPServer):
    """The metrics that Prometheus scrapes, and the webhook that Alertmanager calls."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.drift = 0
        #: Path -> the messages received there.
        self.received: dict[str, list[dict[str, Any]]] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def text(self) -> str:
        up = "".join(
            f'{Instruments.node_up.name}{{service="{service}",node="n"}} 1\n'
            for service in ("auth", "gateway", "inference", "metrics", "web")
        )
        return f'{up}{Instruments.ledger_drift.name}{{service="gateway",node="g"}} {self.drift}\n'

    def alerts(self, path: str, status: str) -> list[dict[str, Any]]:
        return [alert for message in self.received.get(path, []) for alert in message["alerts"] if alert["status"] == status]


class _Requests(BaseHTTPRequestHandler):
    server: Outside

    def do_GET(self) -> None:
        self._answer(self.server.text().encode())

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.received.setdefault(self.path, []).append(message)
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def outside() -> Iterator[Outside]:
    with Outside() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def running(folder: Path, *command: str, **environment: str) -> Iterator[None]:
    """Run a program in its own folder until the test ends."""
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.environ["PATH"], **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=processes.dies_with_parent(signal.SIGKILL, os.getpid()),  # noqa: PLW1509 - fork from the main thread
        )
    try:
        yield
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
    finally:
        process.kill()
        process.wait()


@contextmanager
def alertmanager(folder: Path, outside: Outside) -> Iterator[str]:
    """Run Alertmanager as shipped, except for its grouping times. Yields its address."""
    shutil.copytree(DEPLOY / "alertmanager", folder)
    shipped = folder / "alertmanager.yml"
    quick = re.sub(r"(group_wait|group_interval): \w+", r"\1: 200ms", shipped.read_text(encoding="utf-8"))
    shipped.write_text(quick, encoding="utf-8")
    urls = [
        f"{name.upper()}_WEBHOOK_URL=http://{outside.address}/{name}\n" for name in ("page", "critical", "warning", "ticket", "watchdog")
    ]
    (folder / "alertmanager.env").write_text("".join(urls), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    options = (f"--web.listen-address={address}", f"--storage.path={folder / 'data'}", "--cluster.listen-address=")
    program = debian.program("alertmanager")
    with running(folder, str(folder / "start.sh"), *options, ALERTMANAGER=program, CONFIG_OUT=str(folder / "in-use.yml")):
        yield address


@contextmanager
def prometheus(folder: Path, scraped: str, alertmanager_address: str, *, every: str = "200ms") -> Iterator[str]:
    """Run Prometheus as shipped, except for addresses and intervals. Yields its address."""
    folder.mkdir()
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": "200ms"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / "rules" / "*.rules.yml")]
    config["scrape_configs"] = [{**config["scrape_configs"][0], "static_configs": [{"targets": [scraped]}]}]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager_address]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    options = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}")
    # Resends an alert that fired before Alertmanager was found; the default is a minute.
    with running(folder, debian.program("prometheus"), *options, "--rules.alert.resend-delay=500ms"):
        yield address


async def test_alert_and_its_resolution_reach_a_webhook(outside: Outside, tmp_path: Path) -> None:
    with (
        alertmanager(tmp_path / "alertmanager", outside) as received,
        prometheus(tmp_path / "prometheus", outside.address, received) as address,
    ):
        await until(lambda: outside.alerts("/watchdog", "firing"), seconds=DELIVERED_SECONDS)
        assert set(outside.received) == {"/watchdog"}

        outside.drift = 5
        await until(lambda: outside.alerts("/page", "firing"), seconds=DELIVERED_SECONDS)
        [alert, *_] = outside.alerts("/page", "firing")
        assert alert["labels"] == {"alertname": "ledger_drift", "node": "g", "severity": "page"}
        assert alert["annotations"]["runbook_url"] == "docs/runbooks/ledger_drift.md"
        assert alert["annotations"]["summary"] == "The ledger is inconsistent"

        outside.drift = 0
        await until(lambda: outside.alerts("/page", "resolved"), seconds=DELIVERED_SECONDS)
        assert set(outside.received) == {"/watchdog", "/page"}
        async with httpx.AsyncClient() as http:
            rules = (await http.get(f"http://{address}/api/v1/rules")).json()["data"]["groups"]
        assert not [rule["lastError"] for group in rules for rule in group["rules"] if rule["health"] == "err"]


async def test_prometheus_scrapes_a_mesh(outside: Outside, tmp_path: Path) -> None:
    """Prometheus asks for OpenMetrics, and gets it."""
    port = free_port()
    async with testnet() as net:
        key_file = net.server.key("metrics", Role.METRICS)
        settings = MetricsSettings(node_key_file=key_file, port=0, prometheus_port=port, mesh=MESH, nats_url=net.server.url)
        await net.start(MetricsService, settings)
        with prometheus(tmp_path / "prometheus", f"127.0.0.1:{port}", outside.address, every="1s") as address:
            async with httpx.AsyncClient(base_url=f"http://{address}/api/v1") as http:
                target: dict[str, Any] = {"health": "unknown"}
                async with asyncio.timeout(DELIVERED_SECONDS):
                    await _ready(http, "/status/config")
                    while target["health"] == "unknown":
                        await asyncio.sleep(0.05)
                        for target in (await http.get("/targets")).json()["data"]["activeTargets"]:
                            assert (target["lastError"], target["health"] == "down") == ("", False)
                response = (await http.get("/query", params={"query": f'{Instruments.node_up.name}{{service="metrics"}}'})).json()
    [found] = response["data"]["result"]
    assert found["value"][1] == "1"


async def test_inhibited_alerts_are_not_sent(outside: Outside, tmp_path: Path) -> None:
    silenced = [
        {"alertname": "high_latency", "severity": "warning", "service": "gateway"},
        {"alertname": "response_slow", "severity": "critical", "model": "llama3"},
        {"alertname": "availability_burn", "severity": "ticket", "window": "1d"},
    ]
    posted_labels = [
        {"alertname": "service_down", "severity": "page", "service": "gateway"},
        {"alertname": "high_latency", "severity": "warning", "service": "auth"},
        {"alertname": "ledger_drift", "severity": "page", "node": "g"},
        {"alertname": "worker_gone", "severity": "warning", "node": "w"},
    ]
    with alertmanager(tmp_path / "alertmanager", outside) as address:
        async with httpx.AsyncClient(base_url=f"http://{address}/api/v2") as http:
            await _ready(http, "/status")
            posted = await http.post("/alerts", json=[{"labels": each} for each in (*posted_labels, *silenced)])
            assert posted.status_code == 200
            expected = sorted(_words(each) for each in posted_labels)
            async with asyncio.timeout(DELIVERED_SECONDS):
                while await _uninhibited(http) != expected:  # noqa: ASYNC110 - Alertmanager sends no event
                    await asyncio.sleep(0.02)
        await until(lambda: outside.alerts("/page", "firing"), seconds=DELIVERED_SECONDS)
        assert "/ticket" not in outside.received


async def _uninhibited(http: httpx.AsyncClient) -> list[list[tuple[str, str]]]:
    """Return the alerts that are not inhibited. A new alert counts as such until Alertmanager has compared it with the others."""
    found = (await http.get("/alerts", params={"inhibited": "false"})).json()
    return sorted(_words(alert["labels"]) for alert in found)


def _words(labels: dict[str, str]) -> list[tuple[str, str]]:
    return sorted(labels.items())


async def _ready(http: httpx.AsyncClient, path: str) -> None:
    """Wait until the program answers. The time depends on the machine, and the test's own limit bounds it."""
    while True:
        try:
            if (await http.get(path)).status_code == 200:
                return
        except httpx.ConnectError:
            pass  # it is starting
        await asyncio.sleep(0.02)
