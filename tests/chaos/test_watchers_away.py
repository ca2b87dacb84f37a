"""Monitoring fails and callers notice nothing; when it is back, it has what was kept for it, and shows the rest as a gap.

test_kills.py tests what killing the metrics service does to each endpoint, and test_traces.py a collector that starts late.
"""

import json
import math
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from services.metrics.history import rollup
from shared import context, errors
from shared.api import alerts, gateway, metrics
from shared.api.gateway import InferenceRequest
from shared.types import SERVICE_NAMES
from stack import processes
from tests import otlp_receiver
from tests.chaos import streams
from tests.chaos.streams import Told
from tests.deploy import debian
from tests.people import ApiClient, Person
from tests.stacks import MESH, RunningStack, total, until
from tests.testnet import free_port

#: Streams at any time during an outage.
STREAMS = 20
#: The supervisor restarts a killed program after a second at the earliest, so a kill this shortly before a scrape causes a gap.
BEFORE_A_LOOK_SECONDS = 0.8
#: The supervisor pauses longer if an earlier test has killed the same program.
BACK_SECONDS = 30.0
#: Limit for the memory growth of a program while no one reads the telemetry that it keeps.
MAX_GROWTH_BYTES = 32 * 1024 * 1024
#: The programs that keep spans and log lines for the metrics service.
KEEPERS = ("gateway", "auth", "web", "inference-echo")
GAUGE, COUNTER = "ai_platform_node_up", "ai_platform_tokens_total"
#: What a call may raise until then.
_NOT_YET = (errors.AimeshError, httpx.TransportError)


# --- the metrics service ----------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
async def test_answers_go_on_without_the_metrics_service_and_it_reads_what_was_kept(
    stack: RunningStack, ann: Person, api_client: ApiClient
) -> None:
    await _ask(api_client, ann)
    await until(lambda: _is_in_history(api_client, COUNTER, _last_look()), seconds=4 * rollup.RAW, what="the history knows of it")
    resident = await _resident_bytes(stack, *KEEPERS)
    async with streams.running(stack, ann, count=STREAMS) as told:
        # Looked up early, because later there is no time for it before the scrape that must be missed.
        old = (await stack.pids())["metrics"]
        assert old is not None
        await _until_before_a_look(told)
        missed, whole = _last_look() + timedelta(seconds=rollup.RAW), told.exact
        os.kill(old, signal.SIGKILL)
        assert datetime.now(UTC) < missed, "it was killed too late"
        trace_id = await _ask(api_client, ann)
        started = set(told.running)
        await stack.restarted("metrics", old, seconds=BACK_SECONDS)
        assert datetime.now(UTC) > missed, "it was back too early to have missed anything"
        await until(lambda: streams.have_ended(told, started), seconds=streams.DEADLINE_SECONDS, what="those that began without it end")
    assert told.wrong == []
    assert told.exact - whole >= STREAMS
    print(f"{told.exact - whole} answers from its kill on, the longest pause of any was {max(told.pauses):.2f} s")
    await _check_growth(stack, resident)

    await until(lambda: _has_trace(api_client, trace_id), what="the trace of the meantime is read", ignoring=_NOT_YET)
    await until(lambda: _scrapes_all(stack), what="it scrapes all", ignoring=_NOT_YET)
    await _record_drift(stack, 5)
    await until(lambda: _has_alert(api_client, "firing"), seconds=3 * rollup.RAW, what="alerts are looked for again", ignoring=_NOT_YET)
    await _record_drift(stack, 0)
    found = await until(lambda: _seen_again(api_client, missed), seconds=4 * rollup.RAW, what="it looks again", ignoring=_NOT_YET)
    (up,) = (line.values for line in found if line.name == GAUGE)
    again = next(number for number, value in enumerate(up) if number and value is not None)
    assert again > 1, f"nobody looked then: {up}"
    for line in found:
        assert line.values[0] is not None, line
        # A gauge is known again at once; how much a counter grew during the gap is not.
        assert set(line.values[1 : again + (line.name == COUNTER)]) == {None}, line


async def _until_before_a_look(told: Told) -> None:
    async def now() -> bool:
        left = rollup.RAW - time.time() % rollup.RAW
        return 0.2 < left < BEFORE_A_LOOK_SECONDS and len(told.running) == STREAMS

    await until(now, seconds=3 * rollup.RAW, what="a look is to come")


def _last_look() -> datetime:
    return rollup.floor(datetime.now(UTC), rollup.RAW)


async def _is_in_history(api_client: ApiClient, name: str, look: datetime) -> bool:
    return any(value is not None for line in await _lines(api_client, (name,), look, look) for value in line.values)


async def _lines(api_client: ApiClient, names: tuple[str, ...], first: datetime, last: datetime) -> tuple[metrics.HistoryLine, ...]:
    """Return the history from the scrape at ``first`` to the scrape at ``last``."""
    asked = metrics.GetHistory(names, first, last + timedelta(seconds=rollup.RAW), rollup.RAW)
    return (await api_client.mesh.rpc.call(metrics.get_history, asked, credential=api_client.admin_key)).lines


async def _seen_again(api_client: ApiClient, missed: datetime) -> tuple[metrics.HistoryLine, ...]:
    """Return the history since the scrape before the missed one; empty until there is a later scrape."""
    found = await _lines(api_client, (GAUGE, COUNTER), missed - timedelta(seconds=rollup.RAW), _last_look())
    return found if any(value is not None for line in found if line.name == GAUGE for value in line.values[1:]) else ()


async def _ask(api_client: ApiClient, person: Person) -> str:
    """Send a request and return the ID of its trace, which this test chooses; the trace is kept."""
    trace_id = secrets.token_hex(16)
    asked = gateway.ProcessInferenceRequest(InferenceRequest(prompt="one two three", model=streams.MODEL))
    context.start(f"00-{trace_id}-{secrets.token_hex(8)}-01")
    async with api_client.mesh.rpc.stream(gateway.process_inference_request, asked, credential=person.key.secret) as answer:
        assert [chunk.text async for chunk in answer]
    return trace_id


async def _has_trace(api_client: ApiClient, trace_id: str) -> bool:
    found = await api_client.mesh.rpc.call(metrics.get_trace, metrics.GetTrace(trace_id), credential=api_client.admin_key)
    return {("gateway", "ledger.settle"), ("inference", "decode")} <= {(one.service, one.span.name) for one in found.spans}


async def _scrapes_all(stack: RunningStack) -> bool:
    async with stack.http(service="metrics") as http:
        text = (await http.get("/metrics")).text
    return all(total(text, "ai_platform_build_info", service=name) >= 1 for name in SERVICE_NAMES.values())


async def _record_drift(stack: RunningStack, micro: int) -> None:
    """Record a drift that no ledger has, which raises an alert at the next check."""
    sample = msgspec.json.encode(metrics.RecordMetric("ai_platform_ledger_drift_micro", micro))
    async with stack.operator() as nats:
        subject = f"aimesh.{MESH}.rpc.{metrics.record_metric.name}"
        answer = await nats.request(subject, sample, timeout=5, headers={"content-type": "application/json"})
    assert msgspec.json.decode(answer.data) == {}


async def _has_alert(api_client: ApiClient, state: str) -> bool:
    found = await api_client.mesh.rpc.call(alerts.list_alerts, alerts.ListAlerts(), credential=api_client.admin_key)
    return any(alert.name == "ledger_drift" and alert.state == state for alert in found.alerts)


async def _resident_bytes(stack: RunningStack, *names: str) -> dict[str, int]:
    pids = await stack.pids()
    return {name: int(psutil.Process(pids[name]).memory_info().rss) for name in names}


async def _check_growth(stack: RunningStack, before: Mapping[str, int]) -> None:
    for name, now in (await _resident_bytes(stack, *before)).items():
        assert now - before[name] < MAX_GROWTH_BYTES, f"{name} has {(now - before[name]) / 1e6:.0f} MB more"


# --- the OTLP endpoint ------------------------------------------------------------------------------------------------


class Broken(ThreadingHTTPServer):
    """A collector that accepts nothing and fails as ``how`` says."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Breaking)
        self.how = "busy"
        self.is_over = threading.Event()


class _Breaking(BaseHTTPRequestHandler):
    server: Broken

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.close_connection = True
        match self.server.how:
            case "busy":
                self.wfile.write(b"HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n")
            case "speaks something else":
                self.wfile.write(b"\x00" * 100)
            case "hangs":
                self.server.is_over.wait()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


#: How the endpoint fails -> what the health status says; the log has the same words.
BREAKS = {
    "busy": "returned 503",
    "speaks something else": "is not responding: RemoteProtocolError",
    "hangs": "is not responding: TimeoutError",
}
#: The longest pause of the metrics service between two attempts, plus its timeout.
TRIED_SECONDS = 20.0


@pytest.mark.timeout(180)
async def test_answers_go_on_with_a_broken_otlp_endpoint_which_gets_all_of_it_later(
    stack: RunningStack, ann: Person, api_client: ApiClient, otlp_port: int
) -> None:
    lost, said, resident = await _lost(stack), len(_refusals(stack)), await _resident_bytes(stack, *KEEPERS, "metrics")
    with _broken(otlp_port) as endpoint:
        async with streams.running(stack, ann, count=STREAMS // 2) as told:
            trace_id = await _ask(api_client, ann)
            for how, words in BREAKS.items():
                endpoint.how = how
                await until(partial(_complains, api_client, words), seconds=2 * TRIED_SECONDS, what=f"it is seen: {words}")
                async with stack.http(service="metrics") as http:
                    assert (await http.get("/readyz")).status_code == 200, "nothing waits for the endpoint"
    assert told.wrong == []
    assert told.exact >= STREAMS
    # The outbox of the traces and the outbox of the logs each report it, and may repeat the previous report once.
    assert len(BREAKS) <= len(_refusals(stack)) - said <= 2 * len(BREAKS) + 2
    with otlp_receiver.receiving(otlp_port) as collector:

        async def caught_up() -> bool:
            return {"gateway", "inference"} <= {one.service for one in collector.trace(trace_id)}

        await until(caught_up, seconds=2 * TRIED_SECONDS, what="what was made meanwhile is there")
        await until(lambda: _is_content(api_client), seconds=2 * TRIED_SECONDS, what="the health complains no more")
    assert await _lost(stack) == lost
    await _check_growth(stack, resident)


@contextmanager
def _broken(port: int) -> Iterator[Broken]:
    with Broken(port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.is_over.set()
            server.shutdown()
            thread.join()


async def _complains(api_client: ApiClient, words: str) -> bool:
    found = await _metrics_health(api_client)
    return found.status == "degraded" and "OTLP" in found.detail and words in found.detail


async def _is_content(api_client: ApiClient) -> bool:
    return "OTLP" not in (await _metrics_health(api_client)).detail


async def _metrics_health(api_client: ApiClient) -> metrics.ComponentHealth:
    health = await api_client.mesh.rpc.call(metrics.get_system_health, metrics.GetSystemHealth(), credential=api_client.admin_key)
    return next(one for one in health.components if (one.kind, one.name) == ("service", "metrics"))


async def _lost(stack: RunningStack) -> float:
    return await stack.metric("metrics", "ai_platform_spans_lost_total", service="metrics", reason="not_taken")


def _refusals(stack: RunningStack) -> list[str]:
    return [line for line in stack.log("metrics").splitlines() if '"the OTLP endpoint rejects everything"' in line]


# --- Prometheus -------------------------------------------------------------------------------------------------------


#: Time for its start on a busy machine and for a scrape of the whole mesh.
PROMETHEUS_SECONDS = 30.0
COUNTED_HERE = 'ai_platform_completed_requests_total{model="echo",status="success"}'
COUNTED = f"sum({COUNTED_HERE})"


class Prometheus:
    """A real Prometheus that scrapes the whole mesh twice a second. It can be killed, and continues with its stored data."""

    def __init__(self, folder: Path, scraped: str) -> None:
        self._folder = folder
        self._log = folder / "log"
        address = f"127.0.0.1:{free_port()}"
        scrapes = {"job_name": "aimesh", "honor_labels": True, "static_configs": [{"targets": [scraped]}]}
        config = {"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"}, "scrape_configs": [scrapes]}
        (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
        options = (
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        )
        self._command = (debian.program("prometheus"), *options)
        self._process: subprocess.Popen[bytes] | None = None
        self._url = f"http://{address}/api/v1/query"

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
                preexec_fn=processes.dies_with_parent(signal.SIGKILL, os.getpid()),  # noqa: PLW1509 - fork from the main thread
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def ask(self, query: str) -> float | None:
        """Return the only number of the result; None if there is none yet."""
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        async with httpx.AsyncClient(trust_env=False) as http:
            try:
                answer = await http.get(self._url, params={"query": query})
            except httpx.TransportError:
                return None
        if answer.status_code != 200:
            return None  # it is still loading its data
        found = answer.json()["data"]["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None


@pytest.mark.timeout(180)
async def test_a_prometheus_that_was_killed_counts_what_it_missed(
    stack: RunningStack, ann: Person, api_client: ApiClient, tmp_path: Path
) -> None:
    counted = await _counted(stack)
    await _ask(api_client, ann)
    await until(lambda: _is_counted(stack, counted + 1), what="what was asked before is counted")
    pids = await stack.pids()
    prometheus = Prometheus(tmp_path, f"127.0.0.1:{stack.environment['PROMETHEUS_PORT']}")
    prometheus.start()
    try:
        first = await until(lambda: prometheus.ask(COUNTED), seconds=PROMETHEUS_SECONDS, what="Prometheus has scraped")
        began = time.time()
        async with streams.running(stack, ann, count=STREAMS // 2) as told:
            await until(lambda: _is_more(told, 0), what="some are answered")
            prometheus.kill()
            seen = told.exact
            await until(lambda: _is_more(told, seen + STREAMS), seconds=30, what="many are answered without it")
            prometheus.start()
            await until(lambda: prometheus.ask(COUNTED), seconds=PROMETHEUS_SECONDS, what="it has begun again")
        assert told.wrong == []
        assert await stack.pids() == pids
        await until(lambda: _has(prometheus, first + told.exact), seconds=PROMETHEUS_SECONDS, what="it has counted all, and no more")
        window = f"[{math.ceil(time.time() - began)}s]"
        assert await prometheus.ask(f"sum(resets({COUNTED_HERE}{window}))") == 0
        # Prometheus extrapolates from the first and last samples to the ends of the window.
        increase = await prometheus.ask(f"sum(increase({COUNTED_HERE}{window}))")
        assert increase == pytest.approx(told.exact, rel=0.2)
    finally:
        prometheus.kill()


async def _is_more(told: Told, than: int) -> bool:
    return told.exact > than


async def _counted(stack: RunningStack) -> float:
    return await stack.metric("metrics", "ai_platform_completed_requests_total", model="echo", status="success")


async def _is_counted(stack: RunningStack, number: float) -> bool:
    return await _counted(stack) == number


async def _has(prometheus: Prometheus, number: float) -> bool:
    return await prometheus.ask(COUNTED) == number
