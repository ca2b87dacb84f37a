"""Read and write the tables of alerts and silences. The only alerting module that talks to PostgreSQL."""

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

import asyncpg
import msgspec

from services.metrics.alerting.alert_state import MAX_SILENCES, OUTAGE_SECONDS, ActiveAlert, AlertSilence, StoredAlertState, moment_of
from services.metrics.alerting.rules.alert_rule import AlertRule
from services.metrics.alerting.rules.evaluation import Labels
from shared import errors
from shared.stores import database

_POOL_SIZE: Final = 2
#: Per query. There are at most 100 active alerts per rule, and 200 resolved ones.
_MAX_ALARMS: Final = 10_000

Leadership = database.Leadership


class State(StrEnum):
    """Other state for the next leader."""

    LEADER = "leader"
    WORKERS = "workers"
    WINDOW = "window"


class _SilenceDetails(msgspec.Struct, frozen=True):
    name: str
    labels: Labels
    by: str
    why: str


@dataclass(frozen=True, slots=True)
class StoredSilences:
    lasting: tuple[AlertSilence, ...]
    ended: frozenset[str]

    @property
    def ids(self) -> frozenset[str]:
        return self.ended | {silence.id for silence in self.lasting}


class AlertStore:
    """Every method can raise Unavailable. Alerts of removed rules are ignored."""

    def __init__(self, opened: database.Database, rules: Iterable[AlertRule]) -> None:
        #: Also for what else the leader stores.
        self.database = opened
        self._rules = tuple(rules)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, rules: Iterable[AlertRule], *, migrate: bool = True) -> AsyncIterator["AlertStore"]:
        """Raises Unavailable if PostgreSQL is down for 30 s, and BadSettings if it denies access."""
        package = Path(__file__).parents[1]
        try:
            async with database.Database.open(url, schema="metrics", package=package, pool_size=_POOL_SIZE, migrate=migrate) as opened:
                yield cls(opened, rules)
        except asyncpg.PostgresError as error:
            hint = "DATABASE_URL or METRICS_DATABASE_URL must name a role that may create the schema `metrics`"
            raise errors.BadSettings(f"PostgreSQL denies access to the alert state: {error}", hint=hint) from error

    def leadership(self) -> AbstractAsyncContextManager[Leadership]:
        return self.database.leadership("alerts")

    async def alerts(self, now: float) -> list[StoredAlertState]:
        return self._read(await self.database.rows("list_alarms", moment_of(now - OUTAGE_SECONDS), _MAX_ALARMS))

    async def write(self, leader: Leadership, changed: Sequence[StoredAlertState], everything: Collection[tuple[str, float]]) -> None:
        """Write the ``changed`` alerts and delete all but ``everything`` (id and start), in one transaction."""
        async with leader.transaction() as transaction:
            await transaction.run("keep_alarms", [one for one, _ in everything], [moment_of(since) for _, since in everything])
            await transaction.run("write_alarms", *_columns(changed))

    async def acknowledge(self, seen: ActiveAlert) -> None:
        await self.database.run("acknowledge", seen.id, seen.seen_by, _seen_at(seen))

    async def state(self, name: State, since: float) -> bytes | None:
        """Return None if it is missing or older than ``since``."""
        row = await self.database.row("read_state", name)
        return row["body"] if row is not None and row["at"].timestamp() >= since else None

    async def write_state(self, leader: Leadership, name: State, body: bytes, now: float) -> None:
        async with leader.transaction() as transaction:
            await transaction.run("write_state", name, moment_of(now), body)

    async def silences(self, now: float) -> StoredSilences:
        rows = await self.database.rows("list_silences", moment_of(now), 10 * MAX_SILENCES)
        ended = frozenset(row["id"] for row in rows if row["ended"])
        return StoredSilences(tuple(_silence(row) for row in rows if not row["ended"]), ended)

    async def write_silences(self, made: Sequence[AlertSilence]) -> None:
        details = [msgspec.json.encode(_SilenceDetails(one.name, one.labels, one.by, one.why)).decode() for one in made]
        await self.database.run("write_silences", [one.id for one in made], [moment_of(one.until) for one in made], details)

    async def end_silences(self, ids: Collection[str], stays_until: float) -> None:
        await self.database.run("end_silences", sorted(ids), moment_of(stays_until))

    async def delete_silences_before(self, moment: float) -> None:
        await self.database.run("delete_old_silences", moment_of(moment))

    def _read(self, rows: Iterable[database.DatabaseRow]) -> list[StoredAlertState]:
        found = []
        for row in rows:
            labels = msgspec.json.decode(row["labels"], type=Labels)
            named = [rule for rule in self._rules if (rule.name, rule.severity) == (row["rule"], row["severity"])]
            rule = next((rule for rule in named if set(rule.labels) <= set(labels)), None)
            if rule is not None:
                found.append(StoredAlertState(_alert(row, rule, labels), row["told"], row["held_at"].timestamp(), tuple(row["owed"])))
        return found


def _alert(row: database.DatabaseRow, rule: AlertRule, labels: Labels) -> ActiveAlert:
    return ActiveAlert(
        id=row["id"],
        rule=rule,
        labels=labels,
        since=row["since"].timestamp(),
        value=row["value"],
        firing=row["firing"],
        ended=_seconds(row["ended"]),
        seen_by=row["seen_by"],
        seen_at=_seconds(row["seen_at"]),
    )


def _columns(remembered: Sequence[StoredAlertState]) -> tuple[list[object], ...]:
    alerts = [one.alert for one in remembered]
    return (
        [alert.id for alert in alerts],
        [moment_of(alert.since) for alert in alerts],
        [alert.rule.name for alert in alerts],
        [str(alert.rule.severity) for alert in alerts],
        [msgspec.json.encode(alert.labels).decode() for alert in alerts],
        [alert.value for alert in alerts],
        [alert.firing for alert in alerts],
        [None if alert.ended is None else moment_of(alert.ended) for alert in alerts],
        [alert.seen_by for alert in alerts],
        [_seen_at(alert) for alert in alerts],
        [one.notified for one in remembered],
        [moment_of(one.held_at) for one in remembered],
        [",".join(one.owed) for one in remembered],
    )


def _seen_at(alert: ActiveAlert) -> datetime | None:
    return None if alert.seen_at is None else moment_of(alert.seen_at)


def _silence(row: database.DatabaseRow) -> AlertSilence:
    details = msgspec.json.decode(row["said"], type=_SilenceDetails)
    return AlertSilence(row["id"], details.name, details.labels, row["until"].timestamp(), details.by, details.why)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
