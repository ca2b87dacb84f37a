"""What a feature may use of the metrics service, and what it may add. Nothing here names one."""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from services.metrics.alerting.alerting_module import Channel
from services.metrics.collection.mesh_survey import MeshMetrics
from services.metrics.leader import LeaderDuty
from services.metrics.settings import MetricsSettings
from shared import features
from shared.api.gateway import Check
from shared.background.tasks import keep
from shared.node import Node, http_server
from shared.rpc.audit_reporting import AuditReporting
from shared.rpc.authorization import Identify


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What every feature may use."""

    settings: MetricsSettings
    node: Node
    #: The newest metrics of the mesh; None before the first collection.
    latest: Callable[[], MeshMetrics | None]
    #: Asks auth who a caller over HTTP is.
    identify: Identify
    audit_reporting: AuditReporting


class OtherAlerts(Protocol):
    """Serves the methods of ``shared.api.alerts`` about alerts that another program evaluates and sends."""

    def checks(self) -> tuple[Check, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a feature adds."""

    #: Objects whose methods are marked with ``serves``.
    served: Sequence[object] = ()
    #: Each runs as long as the service, and starts again if it fails.
    tasks: Mapping[str, Callable[[], Coroutine[Any, Any, Any]]] = field(default_factory=dict)
    #: Their state is in rows of ``leader_state`` with names of their own.
    leader_duties: Sequence[LeaderDuty] = ()
    #: For the page of dependencies.
    checks: Callable[[], Iterable[Check]] = tuple
    #: Where alerts are sent.
    channels: Sequence[Channel] = ()
    #: In place of the service's own alerts. Of one feature at most.
    alerts: OtherAlerts | None = None
    #: Path on the service's port, such as `/scores/{name}` -> what answers everything below `/scores/`.
    apps: Mapping[str, http_server.App] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricsPart:
    """``build`` may raise BadSettings, which prevents the start."""

    build: Callable[[Site], Built]


class Features:
    """Those of one metrics service."""

    def __init__(self, site: Site) -> None:
        #: Each after those that it needs.
        self._built = [part.build(site) for part in features.parts("metrics.part", MetricsPart).values()]
        self.leader_duties = [duty for built in self._built for duty in built.leader_duties]
        self.channels = [channel for built in self._built for channel in built.channels]
        self.alerts = next((built.alerts for built in self._built if built.alerts is not None), None)
        self._apps = {path: app for built in self._built for path, app in built.apps.items()}

    @property
    def served(self) -> Iterator[object]:
        return (each for built in self._built for each in built.served)

    def tasks(self) -> Iterator[Coroutine[Any, Any, Any]]:
        return (keep(name, task) for built in self._built for name, task in built.tasks.items())

    def checks(self) -> Iterator[Check]:
        return (check for built in self._built for check in built.checks())

    def asgi(self) -> http_server.App | None:
        return self._answer if self._apps else None

    async def _answer(self, scope: http_server.Scope, receive: http_server.Receive, send: http_server.Send) -> None:
        if scope["type"] != "http":
            return
        found = (app for path, app in self._apps.items() if scope["path"].startswith(path.partition("{")[0]))
        if (app := next(found, None)) is not None:
            await app(scope, receive, send)
            return
        message = f"this port has {', '.join(self._apps)}, /healthz, /readyz, /dependencies and /metrics"
        body = {"code": "not_found", "message": message, "hint": "the API is on the gateway"}
        await http_server.respond(send, 404, msgspec.json.encode(body))
