"""A mesh for `aicli top`: one gateway, two workers (one of them gone), an alert, and a history."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from shared.api import alerts, gateway, metrics
from shared.api.alerts import Alert
from shared.api.gateway import NodeRow
from shared.api.metrics import ComponentHealth, GetHistory, History, HistoryLine, SystemHealth
from shared.types import ModelName, NodeId, Role
from tests.cli.fake_mesh import FakeMesh

AT = datetime(2026, 11, 21, 14, 0, tzinfo=UTC)
WORKER, GONE, GATEWAY = NodeId("UWORKERAAAAAAAAAA"), NodeId("UGONEBBBBBBBBBBBB"), NodeId("UGATEWAYCCCCCCCCC")


def node(node_id: NodeId = WORKER, role: Role = Role.WORKER, **changed: object) -> NodeRow:
    facts: dict[str, object] = {
        "id": node_id,
        "role": role,
        "service": "inference" if role is Role.WORKER else role.value,
        "path": "direct",
        "alive": True,
        "usable": True,
        "why_not": "",
        "models": (ModelName("smollm2"),) if role is Role.WORKER else (),
        "since": AT - timedelta(hours=1),
        "version": "1",
        "running": 0,
        "queued": 0,
        "slots": 0,
        **changed,
    }
    return NodeRow(**facts)  # type: ignore[arg-type]


def alert(name: str = "worker_gone", **changed: object) -> Alert:
    facts: dict[str, object] = {
        "id": name,
        "name": name,
        "severity": "warning",
        "labels": {},
        "state": "firing",
        "since": AT - timedelta(minutes=5),
        "ended": None,
        "value": 1.0,
        "summary": "A worker is gone",
        "description": "",
        "runbook": "docs/runbooks/worker_gone.md",
        "silenced": False,
        **changed,
    }
    return Alert(**facts)  # type: ignore[arg-type]


def line(name: str, value: float | None, /, *before: float | None, **labels: str) -> HistoryLine:
    """Return a line with ``value`` as its last number."""
    return HistoryLine(name, labels, (*before, value))


def answer(*lines: HistoryLine, since: datetime = AT) -> History:
    return History(since, 15, 15, lines)


HEALTH = SystemHealth(
    status="degraded",
    components=(
        ComponentHealth(name="gateway", kind="service", status="healthy", since=AT),
        ComponentHealth(name="UGONEBBBB", kind="worker", status="down", since=AT - timedelta(seconds=12), detail="gone without a word"),
    ),
)
NODES = (
    node(GATEWAY, Role.GATEWAY, path="self"),
    node(running=2, queued=1, slots=4, round_trip_ms=1.25),
    node(GONE, alive=False, usable=False, why_not="no heartbeat", path=""),
)
#: name -> the worker's value; a history has only the names that the request lists.
_OF_NODES: Mapping[str, float] = {
    "ai_platform_host_cpu_usage_ratio": 0.5,
    "ai_platform_host_memory_used_bytes": 3e9,
    "ai_platform_host_memory_total_bytes": 4e9,
    "ai_platform_gpu_usage_ratio": 0.91,
    "ai_platform_gpu_memory_used_bytes": 6e9,
    "ai_platform_gpu_memory_total_bytes": 24e9,
}


def history_of(request: GetHistory) -> History:
    lines: list[HistoryLine] = []
    for name in request.names:
        if name in _OF_NODES:
            lines.append(line(name, _OF_NODES[name], node=WORKER[:12]))
        elif name == "ai_platform_completed_requests_total":
            lines += [line(name, 11.5, service="metrics", status="success"), line(name, 0.5, service="metrics", status="error")]
        elif name == "ai_platform_drafted_tokens_total":
            lines += [line(name, 12.0, service="inference", result="accepted"), line(name, 4.0, service="inference", result="rejected")]
        elif name == "ai_platform_queue_depth":
            lines.append(line(name, 3.0, service="gateway", model="smollm2"))
        elif "node" in request.by:
            lines.append(line(name, 80.0, service="inference", node=WORKER[:12], type="output"))
        else:
            lines += [line(name, 340.0, service="gateway", type="input"), line(name, 1234.0, service="gateway", type="output")]
    return answer(*lines, since=request.since)


def fill(mesh: FakeMesh) -> None:
    """Let all four sources answer."""
    mesh.answer(metrics.get_system_health, HEALTH)
    mesh.answer(alerts.list_alerts, alerts.Alerts((alert(),), ()))
    mesh.answer(gateway.list_nodes, gateway.NodeRows(NODES))
    mesh.answer(metrics.get_history, history_of)
