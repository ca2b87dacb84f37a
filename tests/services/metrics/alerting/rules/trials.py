"""For every alert: series that make it fire, series that almost do, and their return to normal.

A course is quiet, then has trouble, then is quiet again. Trials that fire and trials that don't differ in the level of the trouble. If
no level is just below the threshold, the trouble is shorter instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from services.metrics.alerting.rules import all_rules, objectives
from services.metrics.alerting.rules.alert_rule import AlertRule
from services.metrics.alerting.rules.objectives import Burn
from shared.telemetry import host_instruments, instruments
from shared.telemetry.instrument import Instrument

#: One value for each step; None means no sample.
Values: TypeAlias = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One series."""

    name: str
    labels: tuple[tuple[str, str], ...]
    values: Values


@dataclass(frozen=True, slots=True)
class Course:
    """The number of steps of each part."""

    quiet: int
    trouble: int
    after: int

    @property
    def steps(self) -> int:
        return self.quiet + self.trouble + self.after

    def gauge(self, calm: float | None, troubled: float | None) -> Values:
        return (calm,) * self.quiet + (troubled,) * self.trouble + (calm,) * self.after

    def counter(self, calm: float, troubled: float) -> Values:
        """Return a counter that grows by this much in every step."""
        grown = 0.0
        values = []
        for step in (*(calm,) * self.quiet, *(troubled,) * self.trouble, *(calm,) * self.after):
            grown += step
            values.append(grown)
        return tuple(values)

    def jump(self, by: float) -> Values:
        """Return a counter that grows once, when the trouble begins."""
        return (0.0,) * self.quiet + (by,) * (self.trouble + self.after)


Lines: TypeAlias = Callable[[Course, float], Sequence[Line]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    rule: AlertRule
    step_seconds: int
    course: Course
    lines: Lines
    #: A level of trouble that fires, and a level that just doesn't.
    over: float
    under: float
    #: A number of troubled steps that is too short to fire, if ``under`` alone would fire.
    brief: int | None = None

    @property
    def id(self) -> str:
        return "-".join((self.rule.name, *(value for _, value in self.rule.labels)))

    @property
    def calm_course(self) -> Course:
        return self.course if self.brief is None else Course(self.course.quiet, self.brief, self.course.after)


def line(instrument: Instrument, values: Values, *, suffix: str = "", **labels: str) -> Line:
    return Line(instrument.name + suffix, tuple(sorted(labels.items())), values)


def _rule(name: str, **labels: str) -> AlertRule:
    (found,) = (rule for rule in all_rules.ALL if rule.name == name and dict(rule.labels) == labels)
    return found


# --- objectives -----------------------------------------------------------------------------------------------------

#: The step for each long window: coarse enough to be fast, and fine enough for the short window.
_STEPS = {3600: 100, 6 * 3600: 600, 86400: 2400, 3 * 86400: 7200}


def _completed(course: Course, level: float) -> Sequence[Line]:
    """A hundred requests per step; a third of the failures are timeouts. Limited and canceled requests are no failures."""
    status = instruments.COMPLETED_REQUESTS
    where = {"service": "metrics", "node": "m", "model": "llama3"}
    return (
        line(status, course.counter(90, 90 - 100 * level), status="success", **where),
        line(status, course.counter(10, 10), status="cancelled", **where),
        line(status, course.counter(900, 900), status="limited", **where),
        # Callers' mistakes: half as many as good requests.
        line(status, course.counter(50, 50), status="rejected", **where),
        line(status, course.counter(0, 70 * level), status="error", **where),
        line(status, course.counter(0, 30 * level), status="timeout", **where),
    )


def _completed_by_models(course: Course, level: float) -> Sequence[Line]:
    """One model fails, another doesn't, and requests without a model always fail."""
    status = instruments.COMPLETED_REQUESTS
    well = line(status, course.counter(100, 100), status="success", service="metrics", node="m", model="phi")
    other_service = line(status, course.counter(100, 100), status="error", service="metrics", node="m", model="")
    return (*_completed(course, level), well, other_service)


def _first_tokens(course: Course, level: float) -> Sequence[Line]:
    """A hundred answers per step. The worker's own measurements, which are bad, don't count."""
    ttft = instruments.TTFT_SECONDS
    where = {"service": "gateway", "node": "g", "model": "llama3"}
    return (
        line(ttft, course.counter(100, 100 - 100 * level), suffix="_bucket", le="2.5", **where),
        line(ttft, course.counter(100, 100), suffix="_count", **where),
        line(ttft, course.counter(0, 0), suffix="_bucket", le="2.5", service="inference", node="w", model="llama3"),
        line(ttft, course.counter(900, 900), suffix="_count", service="inference", node="w", model="llama3"),
    )


_LINES_OF = {
    objectives.AVAILABILITY.name: _completed,
    objectives.MODEL_AVAILABILITY.name: _completed_by_models,
    objectives.FIRST_TOKEN.name: _first_tokens,
}


def _burning(name: str, allowed: float, burn: Burn) -> Trial:
    step = _STEPS[burn.long_seconds]
    return Trial(
        rule=_rule(name, window={3600: "1h", 21600: "6h", 86400: "1d", 259200: "3d"}[burn.long_seconds]),
        step_seconds=step,
        course=Course(quiet=6, trouble=burn.long_seconds // step + 2, after=burn.short_seconds // step + 2),
        lines=_LINES_OF[name],
        over=burn.rate * allowed * 1.02,
        under=burn.rate * allowed * 0.98,
    )


BURNING = tuple(_burning(one.name, one.allowed, burn) for one in objectives.OBJECTIVES for burn in objectives.BURNS)

# --- requests -------------------------------------------------------------------------------------------------------

_GATEWAY = {"service": "gateway", "node": "g"}


def _durations(course: Course, level: float) -> Sequence[Line]:
    """A hundred calls per step, a share of which takes about 1 s; and answers of a model, which take long."""
    duration = instruments.REQUEST_DURATION
    call = {**_GATEWAY, "method": "getUsage", "model": ""}
    answer = {**_GATEWAY, "method": "chat", "model": "llama3"}
    return (
        line(duration, course.counter(100, 100 - 100 * level), suffix="_bucket", le="0.64", **call),
        line(duration, course.counter(100, 100), suffix="_bucket", le="1.28", **call),
        line(duration, course.counter(100, 100), suffix="_bucket", le="+Inf", **call),
        line(duration, course.counter(100, 100), suffix="_count", **call),
        line(duration, course.counter(0, 0), suffix="_bucket", le="1.28", **answer),
        line(duration, course.counter(900, 900), suffix="_bucket", le="+Inf", **answer),
        line(duration, course.counter(900, 900), suffix="_count", **answer),
    )


def _late(course: Course, level: float) -> Sequence[Line]:
    ttft = instruments.TTFT_SECONDS
    where = {**_GATEWAY, "model": "llama3"}
    return (
        line(ttft, course.counter(50, 50 - 50 * level), suffix="_bucket", le="2.5", **where),
        line(ttft, course.counter(100, 100 - 100 * level), suffix="_bucket", le="5.0", **where),
        line(ttft, course.counter(100, 100), suffix="_bucket", le="7.5", **where),
        line(ttft, course.counter(100, 100), suffix="_bucket", le="+Inf", **where),
    )


def _calls(course: Course, level: float) -> Sequence[Line]:
    """Many calls fail through a mistake of the caller."""
    requests = instruments.REQUESTS
    return (
        line(requests, course.counter(60, 60 - 100 * level), method="chat", status="success", **_GATEWAY),
        line(requests, course.counter(40, 40), method="chat", status="bad_request", **_GATEWAY),
        line(requests, course.counter(0, 50 * level), method="chat", status="unavailable", **_GATEWAY),
        line(requests, course.counter(0, 50 * level), method="embed", status="internal", **_GATEWAY),
        line(requests, course.counter(100, 100), method="login", status="success", service="auth", node="a"),
    )


def _queued(course: Course, level: float) -> Sequence[Line]:
    """Requests queued at two gateways together. The gateways already count what waits at a worker."""
    depth = instruments.QUEUE_DEPTH
    return (
        line(depth, course.gauge(0, level - 50), model="llama3", **_GATEWAY),
        line(depth, course.gauge(0, 50), model="llama3", service="gateway", node="h"),
        line(depth, course.gauge(500, 500), model="llama3", service="inference", node="w"),
    )


def _paid(course: Course, level: float) -> Sequence[Line]:
    return (line(instruments.COST, course.counter(1000, 1000 * level), model="llama3", **_GATEWAY),)


def _strikes(course: Course, level: float) -> Sequence[Line]:
    return (line(instruments.WRONG_COUNTS, course.jump(level), exported_node="w", **_GATEWAY),)


def _one_gauge(instrument: Instrument, calm: float, **labels: str) -> Lines:
    return lambda course, level: (line(instrument, course.gauge(calm, level), **labels),)


def _on_a_machine(instrument: Instrument, calm: float, **labels: str) -> Lines:
    """All five services run on one machine and report its figures, but there is only one alert."""
    return lambda course, level: tuple(
        line(instrument, course.gauge(calm, level), service=service, node=service[0], machine="laptop-1", **labels)
        for service in ("auth", "gateway", "inference", "metrics", "web")
    )


def _one_jump(instrument: Instrument, **labels: str) -> Lines:
    return lambda course, level: (line(instrument, course.jump(level), **labels),)


def _trial(name: str, lines: Lines, course: Course, over: float, under: float, *, step_seconds: int = 60) -> Trial:
    return Trial(rule=_rule(name), step_seconds=step_seconds, course=course, lines=lines, over=over, under=under)


REQUESTS = (
    _trial("high_latency", _durations, Course(10, 12, 8), 0.12, 0.10),
    _trial("response_slow", _late, Course(10, 12, 8), 0.055, 0.045),
    _trial("error_rate_spike", _calls, Course(10, 8, 8), 0.052, 0.048),
    _trial("queue_depth_high", _queued, Course(3, 4, 3), 101, 100),
    Trial(
        rule=_rule("limiter_degraded"),
        step_seconds=30,
        course=Course(3, 5, 3),
        lines=_one_gauge(instruments.RATE_LIMIT_DEGRADED, 0, **_GATEWAY),
        over=1,
        under=1,
        brief=2,
    ),
    _trial("wrong_counts", _strikes, Course(70, 10, 70), 2, 1),
    _trial("route_without_target", _one_gauge(instruments.ROUTE_TARGETS, 2, route="assistant", **_GATEWAY), Course(3, 4, 3), 0, 1),
    _trial(
        "upstream_ceiling_near",
        _one_gauge(instruments.UPSTREAM_CEILING_SHARE, 0.1, route="assistant", target="api", **_GATEWAY),
        Course(3, 3, 3),
        0.8,
        0.79,
    ),
    _trial(
        "rollout_rolled_back",
        _one_gauge(instruments.ROLLOUT_STATE, 0, route="assistant", state="rolled_back", **_GATEWAY),
        Course(3, 3, 3),
        1,
        0,
    ),
    _trial(
        "rollout_stalled",
        _one_gauge(instruments.ROLLOUT_STATE, 0, route="assistant", state="holding", **_GATEWAY),
        Course(3, 5, 3),
        1,
        0,
        step_seconds=300,
    ),
    _trial("config_stale", _one_gauge(instruments.CONFIG_AGE, 1, **_GATEWAY), Course(3, 4, 3), 11, 10),
    _trial("cost_anomaly", _paid, Course(8 * 24 + 2, 25, 12), 1.53, 1.47, step_seconds=3600),
)

# --- trust ----------------------------------------------------------------------------------------------------------

TRUST = (
    _trial("ledger_drift", _one_gauge(instruments.LEDGER_DRIFT, 0, **_GATEWAY), Course(3, 3, 3), 1, 0),
    _trial("ledger_unverified", _one_gauge(instruments.UPKEEP_AGE, 60, job="verify", **_GATEWAY), Course(3, 3, 3), 1801, 1800),
    _trial("upkeep_late", _one_gauge(instruments.UPKEEP_AGE, 60, job="roll", **_GATEWAY), Course(3, 3, 3), 10_801, 10_800),
    _trial(
        "partitions_short", _one_gauge(instruments.PARTITIONS_AHEAD, 40 * 86_400, **_GATEWAY), Course(3, 8, 3), 14 * 86_400 - 1, 14 * 86_400
    ),
    _trial("settle_journal_long", _one_gauge(instruments.SETTLE_JOURNAL_ROWS, 0, **_GATEWAY), Course(3, 3, 3), 10_001, 10_000),
    _trial("reservation_old", _one_gauge(instruments.LEDGER_OLDEST_RESERVATION, 9, **_GATEWAY), Course(3, 4, 3), 301, 300),
    _trial("audit_chain_broken", _one_gauge(instruments.AUDIT_CHAIN_VALID, 1, service="auth", node="a"), Course(3, 3, 3), 0, 1),
    _trial("recovery_log_behind", _one_gauge(instruments.RECOVERY_LOG_BEHIND, 0, service="auth", node="a"), Course(3, 3, 3), 61, 60),
    _trial("database_restored", _one_gauge(instruments.DATABASE_RESTORED, 0, service="auth", node="a"), Course(3, 3, 3), 1, 0),
    _trial("certificate_expiring", _one_gauge(instruments.CERTIFICATE_SECONDS_LEFT, 86400, **_GATEWAY), Course(3, 8, 3), 21_599, 21_600),
    _trial("revocation_list_old", _one_gauge(instruments.REVOCATION_LIST_AGE, 9, **_GATEWAY), Course(3, 4, 3), 601, 600),
    _trial(
        "nats_logins_refused",
        _one_jump(instruments.NATS_LOGINS, service="auth", node="a", role="", result="refused"),
        Course(12, 8, 12),
        61,
        60,
    ),
    _trial("ticket_used_from_new_network", _one_jump(instruments.TICKET_NEW_NETWORKS, service="auth", node="a"), Course(70, 10, 70), 1, 0),
    _trial("contested_key", _one_jump(instruments.CONTESTED_KEYS, **_GATEWAY), Course(70, 10, 70), 1, 0),
)

# --- backups --------------------------------------------------------------------------------------------------------


def _of_the_report(name: str, instrument: Instrument, calm: float, over: float, under: float, **labels: str) -> Trial:
    """All three replicas of auth export the same report, but there is only one alert."""

    def lines(course: Course, level: float) -> Sequence[Line]:
        site = dict.fromkeys(instrument.labels, "north")
        return tuple(line(instrument, course.gauge(calm, level), service="auth", node=node, **site) for node in "abc")

    return Trial(rule=_rule(name, **labels), step_seconds=60, course=Course(3, 3, 3), lines=lines, over=over, under=under)


def _slot(course: Course, level: float) -> Sequence[Line]:
    return (
        *(line(instruments.WAL_SLOT_BYTES, course.gauge(1, level), service="auth", node=node) for node in "abc"),
        *(line(instruments.WAL_SLOT_MOST, course.gauge(100, 100), service="auth", node=node) for node in "abc"),
    )


BACKUPS = (
    _of_the_report("backup_off", instruments.BACKUP_MISSING, 0, 1, 0),
    _of_the_report("backup_agent_gone", instruments.BACKUP_REPORT_AGE, 9, 121, 120),
    _of_the_report("backup_old", instruments.BACKUP_AGE, 60, 26 * 3600 + 1, 26 * 3600),
    _of_the_report("backup_verify_failed", instruments.BACKUP_TEST_OK, 1, 0, 1),
    _of_the_report("backup_verify_old", instruments.BACKUP_VERIFIED_AGE, 60, 9 * 86_400 + 1, 9 * 86_400),
    _of_the_report("wal_lag", instruments.WAL_LAG, 2, 301, 300, threshold="5m"),
    _of_the_report("wal_lag", instruments.WAL_LAG, 2, 61, 60, threshold="1m"),
    # Above five minutes, only the page fires.
    _of_the_report("wal_lag", instruments.WAL_LAG, 2, 300, 301, threshold="1m"),
    _trial("wal_slot_filling", _slot, Course(3, 3, 3), 51, 50),
    _of_the_report("recovery_log_behind", instruments.RECOVERY_LOG_STORE_BEHIND, 0, 61, 60, copy="store"),
    _of_the_report("backup_store_failing", instruments.BACKUP_STORE_FAILING, 0, 20, 19),
)

# --- machines -------------------------------------------------------------------------------------------------------

_WORKER = {"service": "inference", "node": "w"}
_DISK = {"machine": "laptop-1", "disk": "/"}


def _nodes(gone: str, becomes: float | None) -> Lines:
    """One node of each service. In the trouble, the ``gone`` service disappears, or all services do."""

    def lines(course: Course, _: float) -> Sequence[Line]:
        names = {"auth": "a", "gateway": "g", "inference": "w", "metrics": "m", "web": "x"}
        return [
            line(instruments.NODE_UP, course.gauge(1, becomes if gone in (service, "all") else 1), service=service, node=node)
            for service, node in names.items()
        ]

    return lines


def _gone(name: str, lines: Lines, **labels: str) -> Trial:
    return Trial(rule=_rule(name, **labels), step_seconds=30, course=Course(3, 5, 3), lines=lines, over=0, under=0, brief=2)


def _disk(course: Course, level: float) -> Sequence[Line]:
    return (
        *(line(host_instruments.HOST_DISK_FREE, course.gauge(500, level), **node, **_DISK) for node in (_WORKER, _GATEWAY)),
        *(line(host_instruments.HOST_DISK_TOTAL, course.gauge(1000, 1000), **node, **_DISK) for node in (_WORKER, _GATEWAY)),
    )


def _losing(course: Course, level: float) -> Sequence[Line]:
    return (line(instruments.SPANS_LOST, course.counter(0, level), reason="overwritten", **_GATEWAY),)


def _served(course: Course, level: float) -> Sequence[Line]:
    """Two gateways, one of which sees no worker at all, and a model without trouble."""
    workers = instruments.MODEL_WORKERS
    return (
        line(workers, course.gauge(2, level), model="llama3", **_GATEWAY),
        line(workers, course.gauge(0, 0), model="llama3", service="gateway", node="h"),
        line(workers, course.gauge(1, 1), model="phi", **_GATEWAY),
    )


def _unreached(server: str) -> Trial:
    """One of two metrics services has lost the server before."""

    def lines(course: Course, level: float) -> Sequence[Line]:
        up = instruments.SERVER_UP
        return (
            line(up, course.gauge(1, level), server=server, service="metrics", node="m"),
            line(up, course.gauge(0, 0), server=server, service="metrics", node="n"),
            line(up, course.gauge(1, 1), server="other", service="metrics", node="m"),
        )

    return Trial(rule=_rule("server_down", server=server), step_seconds=30, course=Course(3, 5, 3), lines=lines, over=0, under=0, brief=2)


MACHINES = (
    _gone("service_down", _nodes("auth", 0), service="auth"),
    # As after an hour, when the node is forgotten.
    _gone("service_down", _nodes("gateway", None), service="gateway"),
    _gone("service_down", _nodes("web", 0), service="web"),
    _gone("metrics_down", _nodes("all", None)),
    _gone("no_worker", _nodes("inference", None)),
    _gone("worker_gone", _nodes("inference", 0)),
    *(_unreached(server) for server in ("postgresql", "valkey", "nats", "hyperswarm")),
    _trial("model_not_served", _served, Course(3, 8, 3), 0, 1),
    _trial("upstream_refused", _one_gauge(instruments.UPSTREAM_REFUSED, 0, server="openai", **_WORKER), Course(3, 4, 3), 1, 0),
    _trial("worker_crash_loop", _one_jump(instruments.ENGINE_RESTARTS, model="llama3", **_WORKER), Course(15, 5, 15), 3, 2),
    _trial("replica_lag_high", _one_gauge(instruments.DATABASE_REPLICA_LAG, 0, **_GATEWAY), Course(3, 6, 3), 11, 10),
    _trial("gpu_saturation", _on_a_machine(host_instruments.GPU_USAGE, 0.5, gpu="0"), Course(3, 13, 3), 0.91, 0.9),
    _trial("cpu_high", _on_a_machine(host_instruments.HOST_CPU, 0.5), Course(3, 13, 3), 0.81, 0.8),
    _trial("disk_full", _disk, Course(3, 3, 3), 9, 10),
    _trial("disk_low", _disk, Course(3, 8, 3), 99, 100),
    _trial("nats_reconnects", _one_jump(instruments.NATS_RECONNECTS, **_GATEWAY), Course(20, 5, 20), 4, 3),
    _trial(
        "scrape_failures",
        _one_jump(instruments.SCRAPE_FAILURES, service="auth", node="m", reason="unavailable"),
        Course(15, 5, 15),
        10,
        9,
    ),
    Trial(rule=_rule("spans_lost"), step_seconds=60, course=Course(12, 14, 14), lines=_losing, over=1, under=1, brief=1),
)

# --- scaling --------------------------------------------------------------------------------------------------------

_POOL = {"service": "metrics", "node": "m", "pool": "l4"}
SCALING = (
    _trial("pool_at_maximum", _one_gauge(instruments.DENIED_REPLICAS, 0, **_POOL), Course(3, 8, 3), 1, 0),
    _trial("scale_hook_failing", _one_gauge(instruments.SCALE_HOOK_FAILURES, 0, **_POOL), Course(3, 3, 3), 3, 2),
    _trial("scaling_data_stale", _one_gauge(instruments.SCALING_AGE, 5, **_POOL), Course(3, 4, 3), 61, 60),
    _trial("pools_file_bad", _one_gauge(instruments.POOLS_FILE_BAD, 0, service="metrics", node="m"), Course(3, 4, 3), 1, 0),
)

#: Trials of every rule but the watchdog, which always fires.
ALL = (*BURNING, *REQUESTS, *TRUST, *BACKUPS, *MACHINES, *SCALING)
