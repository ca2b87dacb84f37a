"""Alerts about what runs: services, workers, their machines, and the eyes that see all of it."""

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

_UP = instruments.NODE_UP

#: service -> how bad it is without. The metrics service, which would have to say it of itself, has an alert of its own.
_SERVICES = {"auth": Severity.PAGE, "gateway": Severity.PAGE, "web": Severity.CRITICAL}


def _none_up(service: str) -> Unless:
    """Somebody is up, and none of these. A node that is gone for an hour is forgotten, so its absence counts as well."""
    return Unless(above(total(Selector(_UP)), 0), above(total(series(_UP, service=service)), 0))


def _down(service: str, severity: Severity) -> AlertRule:
    return AlertRule(
        name="service_down",
        severity=severity,
        when=_none_up(service),
        hold_seconds=MINUTE,
        summary="No node of {service} is up",
        description="Without auth nobody can sign in, without the gateway nobody gets an answer, without web nobody sees the pages.",
        board=DashboardName.OVERVIEW,
        labels=(("service", service),),
    )


#: server -> how bad it is without. Hyperswarm is a way of its own: what has another goes on.
_SERVERS = {"postgresql": Severity.PAGE, "valkey": Severity.PAGE, "nats": Severity.PAGE, "hyperswarm": Severity.CRITICAL}


def _server_down(server: str, severity: Severity) -> AlertRule:
    return AlertRule(
        name="server_down",
        severity=severity,
        when=below(highest(series(instruments.SERVER_UP, server=server)), 1),
        hold_seconds=MINUTE,
        summary="No service reaches {server}",
        description="Without PostgreSQL or NATS nobody gets an answer, without Valkey limits are not counted as they should be, and without"
        " Hyperswarm nobody reaches workers elsewhere.",
        board=DashboardName.MESH,
        labels=(("server", server),),
    )


def _disk_free() -> Ratio:
    free, size = (Selector(one) for one in (host_instruments.HOST_DISK_FREE, host_instruments.HOST_DISK_TOTAL))
    return Ratio(lowest(free, "machine", "disk"), lowest(size, "machine", "disk"))


RULES = (
    *(_down(service, severity) for service, severity in _SERVICES.items()),
    *(_server_down(server, severity) for server, severity in _SERVERS.items()),
    AlertRule(
        name="metrics_down",
        severity=Severity.PAGE,
        when=Absent(series(_UP, service="metrics")),
        hold_seconds=MINUTE,
        summary="The metrics service does not answer",
        description="Answers go on, but nobody sees how they are, and no other alert can fire.",
        board=DashboardName.OVERVIEW,
    ),
    AlertRule(
        name="no_worker",
        severity=Severity.PAGE,
        when=_none_up("inference"),
        hold_seconds=MINUTE,
        summary="No worker is up",
        description="Nobody gets an answer from any model.",
        board=DashboardName.WORKERS,
    ),
    AlertRule(
        name="worker_gone",
        severity=Severity.WARNING,
        when=below(highest(series(_UP, service="inference"), "node"), 1),
        hold_seconds=MINUTE,
        summary="Worker {node} is gone",
        description="Its requests went to other workers. An hour after it went it is forgotten, and this alert ends.",
        board=DashboardName.WORKERS,
    ),
    AlertRule(
        name="model_not_served",
        severity=Severity.CRITICAL,
        when=below(highest(series(instruments.MODEL_WORKERS, service="gateway"), "model"), 1),
        hold_seconds=5 * MINUTE,
        summary="No worker could serve {model} for 5 minutes",
        description="Requests for it are refused, those for other models go on. A day after it was last served it is not missed any more.",
        board=DashboardName.WORKERS,
    ),
    AlertRule(
        name="worker_crash_loop",
        severity=Severity.CRITICAL,
        # At the fifth crash within five minutes it is not started again, so this is said before.
        when=at_least(grown(Selector(instruments.ENGINE_RESTARTS), 10 * MINUTE, "node", "model"), 3),
        summary="The engine of {model} on worker {node} crashes again and again",
        description="At the fifth crash within five minutes it stays down, and the worker does not serve this model any more.",
        board=DashboardName.WORKERS,
        unit=AlertUnit.COUNT,
    ),
    AlertRule(
        name="gpu_saturation",
        severity=Severity.WARNING,
        when=above(highest(Selector(host_instruments.GPU_USAGE), "machine", "gpu"), 0.9),
        hold_seconds=10 * MINUTE,
        summary="GPU {gpu} of {machine} is more than 90 % busy for 10 minutes",
        description="It has no room left: with more requests, answers begin later.",
        board=DashboardName.WORKERS,
        unit=AlertUnit.SHARE,
    ),
    AlertRule(
        name="cpu_high",
        severity=Severity.WARNING,
        when=above(highest(Selector(host_instruments.HOST_CPU), "machine"), 0.8),
        hold_seconds=10 * MINUTE,
        summary="{machine} is more than 80 % busy for 10 minutes",
        description="Everything on this machine gets slower. A worker without a GPU is meant to be busy while it answers.",
        board=DashboardName.WORKERS,
        unit=AlertUnit.SHARE,
    ),
    AlertRule(
        name="disk_low",
        severity=Severity.CRITICAL,
        when=below(_disk_free(), 0.1),
        hold_seconds=5 * MINUTE,
        summary="Less than 10 % of the disk {disk} of {machine} is free",
        description="When it is full, PostgreSQL and the gateway's journal cannot write any more, and requests are refused.",
        board=DashboardName.OVERVIEW,
        unit=AlertUnit.SHARE,
    ),
    AlertRule(
        name="nats_reconnects",
        severity=Severity.WARNING,
        when=at_least(grown(Selector(instruments.NATS_RECONNECTS), 15 * MINUTE, "service", "node"), 4),
        summary="{service} {node} loses NATS again and again",
        description="Calls over NATS fail for a moment each time; those over direct links go on.",
        board=DashboardName.MESH,
        unit=AlertUnit.COUNT,
    ),
    AlertRule(
        name="scrape_failures",
        severity=Severity.WARNING,
        when=at_least(grown(Selector(instruments.SCRAPE_FAILURES), 10 * MINUTE, "service"), 10),
        summary="Nodes of {service} do not give their metrics",
        description="They are up, and their part of every chart and alert is missing.",
        board=DashboardName.OVERVIEW,
        unit=AlertUnit.COUNT,
    ),
    AlertRule(
        name="spans_lost",
        severity=Severity.TICKET,
        when=above(grown(Selector(instruments.SPANS_LOST), 10 * MINUTE, "service", "reason"), 0),
        hold_seconds=10 * MINUTE,
        summary="Traces of {service} are incomplete: {reason}",
        description="Spans that were to be kept were overwritten before they were read, or the OTLP endpoint did not take them.",
        board=DashboardName.OVERVIEW,
        unit=AlertUnit.COUNT,
    ),
    AlertRule(
        name="watchdog",
        severity=Severity.NONE,
        when=Always(),
        summary="Alerts work",
        description="It fires always. Whoever gets it raises the alarm when it stops coming.",
        board=DashboardName.OVERVIEW,
    ),
)
