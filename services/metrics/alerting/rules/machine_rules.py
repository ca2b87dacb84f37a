"""Alert rules for services, workers, machines and monitoring itself."""

from functools import partial

from services.metrics.alerting.rules.alert_rule import AlertRule, AlertUnit, DashboardName, Severity
from services.metrics.alerting.rules.expressions import (
    MINUTE,
    Absent,
    Always,
    Ratio,
    Selector,
    Unless,
    above,
    at_least,
    below,
    grown,
    highest,
    lowest,
    series,
    total,
)
from shared.telemetry import host_instruments, instruments

_overview = partial(AlertRule, board=DashboardName.OVERVIEW)
_workers = partial(AlertRule, board=DashboardName.WORKERS)
_mesh = partial(AlertRule, board=DashboardName.MESH)
_UP = instruments.NODE_UP
#: As DATABASE_READ_LAG_SECONDS, after which the primary answers, unless it is set otherwise.
REPLICA_LAG_SECONDS = 10

#: Service -> the severity without it. The metrics service cannot report itself and has its own alert.
_SERVICES = {"auth": Severity.PAGE, "gateway": Severity.PAGE, "web": Severity.CRITICAL}


def _none_up(service: str) -> Unless:
    """True if other services are up but not this one. Also covers nodes that are forgotten after an hour."""
    return Unless(above(total(Selector(_UP)), 0), above(total(series(_UP, service=service)), 0))


def _down(service: str, severity: Severity) -> AlertRule:
    return _overview(
        name="service_down",
        severity=severity,
        when=_none_up(service),
        hold_seconds=MINUTE,
        summary="No node of {service} is up",
        description="Without auth, nobody can sign in. Without the gateway, no request is answered. Without web, there are no pages.",
        labels=(("service", service),),
    )


#: Server -> the severity without it. Nodes that also have NATS don't need Hyperswarm.
_SERVERS = {"postgresql": Severity.PAGE, "valkey": Severity.PAGE, "nats": Severity.PAGE, "hyperswarm": Severity.CRITICAL}


def _server_down(server: str, severity: Severity) -> AlertRule:
    return _mesh(
        name="server_down",
        severity=severity,
        when=below(highest(series(instruments.SERVER_UP, server=server)), 1),
        hold_seconds=MINUTE,
        summary="No service reaches {server}",
        description="Without PostgreSQL or NATS, no requests are answered. Without Valkey, rate limits are inaccurate. Without Hyperswarm,"
        " remote workers are unreachable.",
        labels=(("server", server),),
    )


def _disk_free() -> Ratio:
    free, size = (Selector(one) for one in (host_instruments.HOST_DISK_FREE, host_instruments.HOST_DISK_TOTAL))
    return Ratio(lowest(free, "machine", "disk"), lowest(size, "machine", "disk"))


RULES = (
    *(_down(service, severity) for service, severity in _SERVICES.items()),
    *(_server_down(server, severity) for server, severity in _SERVERS.items()),
    _overview(
        name="replica_lag_high",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.DATABASE_REPLICA_LAG), "service"), REPLICA_LAG_SECONDS),
        hold_seconds=2 * MINUTE,
        summary="The database replica of {service} is over 10 seconds behind",
        description="The primary answers reports, request lists and charts instead, or they are out of date. Requests are not affected.",
        unit=AlertUnit.SECONDS,
    ),
    _overview(
        name="metrics_down",
        severity=Severity.PAGE,
        when=Absent(series(_UP, service="metrics")),
        hold_seconds=MINUTE,
        summary="The metrics service is down",
        description="Requests still work, but there is no monitoring, and no other alert can fire.",
    ),
    _workers(
        name="no_worker",
        severity=Severity.PAGE,
        when=_none_up("inference"),
        hold_seconds=MINUTE,
        summary="No worker is up",
        description="No request to any model is answered.",
    ),
    _workers(
        name="worker_gone",
        severity=Severity.WARNING,
        when=below(highest(series(_UP, service="inference"), "node"), 1),
        hold_seconds=MINUTE,
        summary="Worker {node} disappeared",
        description="Its requests moved to other workers. After an hour it is forgotten, and this alert resolves.",
    ),
    _workers(
        name="model_not_served",
        severity=Severity.CRITICAL,
        when=below(highest(series(instruments.MODEL_WORKERS, service="gateway"), "model"), 1),
        hold_seconds=5 * MINUTE,
        summary="No worker has served {model} for 5 minutes",
        description="Requests for it are rejected; other models still work. The alert resolves a day after the model was last served.",
    ),
    _workers(
        name="worker_crash_loop",
        severity=Severity.CRITICAL,
        # Fires before the fifth crash within five minutes, after which it is not restarted.
        when=at_least(grown(Selector(instruments.ENGINE_RESTARTS), 10 * MINUTE, "node", "model"), 3),
        summary="The engine of {model} on worker {node} keeps crashing",
        description="After the fifth crash within five minutes it stays down, and the worker stops serving this model.",
        unit=AlertUnit.COUNT,
    ),
    _workers(
        name="upstream_refused",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.UPSTREAM_REFUSED), "node", "server"), 0),
        hold_seconds=MINUTE,
        summary="The server {server} refuses the key or the account of worker {node}",
        description="It answered with status 401, 402 or 403. Routes use their next target; requests that only it can answer fail.",
    ),
    _workers(
        name="gpu_saturation",
        severity=Severity.WARNING,
        when=above(highest(Selector(host_instruments.GPU_USAGE), "machine", "gpu"), 0.9),
        hold_seconds=10 * MINUTE,
        summary="GPU {gpu} of {machine} has been over 90 % busy for 10 minutes",
        description="It is at capacity: more requests mean a longer time to first token.",
        unit=AlertUnit.SHARE,
    ),
    _workers(
        name="cpu_high",
        severity=Severity.WARNING,
        when=above(highest(Selector(host_instruments.HOST_CPU), "machine"), 0.8),
        hold_seconds=10 * MINUTE,
        summary="{machine} has been over 80 % busy for 10 minutes",
        description="Everything on this machine slows down. This is normal for a worker without a GPU while it generates answers.",
        unit=AlertUnit.SHARE,
    ),
    _overview(
        name="disk_full",
        severity=Severity.PAGE,
        when=below(_disk_free(), 0.01),
        hold_seconds=0,
        summary="Disk {disk} of {machine} is full",
        description="Less than 1 % is free. PostgreSQL and the gateway's journal cannot write, or soon can't, and requests are rejected.",
        unit=AlertUnit.SHARE,
    ),
    _overview(
        name="disk_low",
        severity=Severity.CRITICAL,
        when=below(_disk_free(), 0.1),
        hold_seconds=5 * MINUTE,
        summary="Disk {disk} of {machine} has less than 10 % free",
        description="When it is full, PostgreSQL and the gateway's journal cannot write, and requests are rejected.",
        unit=AlertUnit.SHARE,
    ),
    _mesh(
        name="nats_reconnects",
        severity=Severity.WARNING,
        when=at_least(grown(Selector(instruments.NATS_RECONNECTS), 15 * MINUTE, "service", "node"), 4),
        summary="{service} {node} keeps losing its connection to NATS",
        description="Calls over NATS fail briefly each time; calls over direct links still work.",
        unit=AlertUnit.COUNT,
    ),
    _overview(
        name="scrape_failures",
        severity=Severity.WARNING,
        when=at_least(grown(Selector(instruments.SCRAPE_FAILURES), 10 * MINUTE, "service"), 10),
        summary="Metrics of {service} cannot be collected",
        description="The nodes are up, but their metrics are missing from charts and alerts.",
        unit=AlertUnit.COUNT,
    ),
    _overview(
        name="spans_lost",
        severity=Severity.TICKET,
        when=above(grown(Selector(instruments.SPANS_LOST), 10 * MINUTE, "service", "reason"), 0),
        hold_seconds=10 * MINUTE,
        summary="Traces of {service} are incomplete: {reason}",
        description="Sampled spans were overwritten before they were read, or the OTLP endpoint rejected them.",
        unit=AlertUnit.COUNT,
    ),
    _overview(
        name="watchdog",
        severity=Severity.NONE,
        when=Always(),
        summary="Alerts work",
        description="This alert always fires. Configure the receiver to raise an alarm when it stops.",
    ),
)
