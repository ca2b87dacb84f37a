"""The fake mesh, history part of the metrics service: series written by tests, aggregated per query."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from shared import errors
from shared.api import metrics
from shared.api.metrics import GetHistory, History, HistoryGrouping, HistoryLine
from shared.types import Credential, UserRole
from tests.services.web.fake_mesh import NOW, FakeMesh

Value = Callable[[int], float | None]

NODE, OTHER = "UWORKERAAAAA", "UGATEWAYAAAA"


@dataclass(frozen=True, slots=True)
class Kept:
    name: str
    #: Including service and node.
    labels: Mapping[str, str]
    #: The value of each step, counted from the first step of the query.
    value: Value


class FakeHistory(FakeMesh):
    """A test writes ``kept``; ``refused`` is the service's error for every query."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Kept] = []
        self.refused: errors.AimeshError | None = None
        self.most_lines = metrics.MAX_LINES

    def keep(self, name: str, value: Value | float, **labels: str) -> None:
        made: Value = value if callable(value) else lambda _: value
        self.kept.append(Kept(f"ai_platform_{name}", {"service": "gateway", "node": OTHER, **labels}, made))

    def keep_everything(self, model: str = "smollm2", gpu: str = "0") -> None:
        """Keep series for a line on every chart."""
        self.keep("active_users", 2.0)
        self.keep("ratelimit_degraded", 0.0)
        for status, rate in (("success", 2.5), ("error", 0.25), ("limited", 0.1)):
            self.keep("completed_requests_total", rate, service="metrics", model=model, status=status)
        self.keep("tokens_total", 120.0, model=model, type="input")
        self.keep("tokens_total", 80.0, model=model, type="output")
        self.keep("ttft_seconds", lambda step: None if step % 7 == 3 else 0.2 + step / 1000, model=model)
        self.keep("queue_depth", lambda step: float(step % 5), model=model)
        self.keep("worker_slots", 3.0, service="inference", node=NODE, model=model, state="busy")
        self.keep("worker_slots", 1.0, service="inference", node=NODE, model=model, state="free")
        for service, node in (("gateway", OTHER), ("inference", NODE)):
            self.keep_machine(node, service)
            self.keep("round_trip_seconds", 0.0021, service=service, node=node, path="nats")
        at = {"service": "inference", "node": NODE, "gpu": gpu}
        for name, value in (("usage_ratio", 0.9), ("memory_used_bytes", 6e10), ("memory_total_bytes", 8e10), ("temperature_celsius", 71.0)):
            self.keep(f"gpu_{name}", value, **at)

    def keep_machine(self, node: str, service: str = "inference", cpu: Value | float = 0.42, machine: str = "") -> None:
        at = {"service": service, "node": node} | ({"machine": machine} if machine else {})
        self.keep("host_cpu_usage_ratio", cpu, **at)
        self.keep("host_memory_used_bytes", 4e9, **at)
        self.keep("host_memory_total_bytes", 16e9, **at)
        self.keep("host_disk_free_bytes", 123.4e9, **at)

    def _get_history(self, request: GetHistory, credential: Credential | None) -> History:
        if self._user(credential).role is not UserRole.ADMIN:
            raise errors.NotAllowed("this is for administrators", hint="ask one of them")
        if self.refused is not None:
            raise self.refused
        until = min(request.until, NOW)
        steps = -int((request.since - until).total_seconds() // request.step_seconds)
        lines = [line for name in request.names for line in self._lines(name, request, steps)]
        if len(lines) > self.most_lines:
            raise errors.BadRequest(f"by: that would be {len(lines)} lines, and at most {self.most_lines} are answered", hint="fewer")
        since = datetime.fromtimestamp(request.since.timestamp() // request.step_seconds * request.step_seconds, UTC)
        return History(since, request.step_seconds, 15, tuple(lines))

    def _lines(self, requested: str, request: GetHistory, steps: int) -> list[HistoryLine]:
        found: dict[tuple[tuple[str, str], ...], list[float | None]] = {}
        left_out = {*(set(HistoryGrouping) - set(request.by)), *(() if HistoryGrouping.NODE in request.by else ("machine",))}
        for one in self.kept:
            if one.name != requested.rpartition(":")[2] or (request.node is not None and one.labels["node"] != request.node[:12]):
                continue
            key = tuple(sorted((label, value) for label, value in one.labels.items() if label not in left_out))
            sums = found.setdefault(key, [None] * steps)
            for step in range(steps):
                if (value := one.value(step)) is not None:
                    sums[step] = (sums[step] or 0.0) + value
        return [HistoryLine(requested, dict(key), tuple(values)) for key, values in sorted(found.items())]
