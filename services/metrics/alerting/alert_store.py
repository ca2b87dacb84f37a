"""The tables of alerts and silences, and who leads. Only this module of the room talks to PostgreSQL."""

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

import asyncpg
import msgspec

from services.metrics.alerting.alert_state import MAX_SILENCES, OUTAGE_SECONDS, ActiveAlert, AlertSilence, StoredAlertState
from services.metrics.alerting.rules.alert_rule import AlertRule
from services.metrics.alerting.rules.evaluation import Labels
from shared import errors
from shared.stores import database

#: One task of the room writes and reads.
_POOL_SIZE: Final = 2
#: At one reading. There are at most 100 of a rule that last, and 200 that are over.
_MAX_ALARMS: Final = 10_000

Leadership = database.Leadership


class State(StrEnum):
    """What else the next leader goes on with."""

    #: Which process led last.
    LEADER = "leader"
    #: Those that were there.
    WORKERS = "workers"
    #: How counters grew.
    WINDOW = "window"


class _AlertNotification(msgspec.Struct, frozen=True):
    """What a silence is, besides its end."""

    name: str
    labels: Labels
    by: str
    why: str


@dataclass(frozen=True, slots=True)
class StoredSilences:
    """Those that the replicas have agreed on."""

    lasting: tuple[AlertSilence, ...]
    #: By somebody, before their time.
    ended: frozenset[str]

    @property
    def ids(self) -> frozenset[str]:
        return self.ended | {silence.id for silence in self.lasting}


class AlertStore:
    """Every method may raise Unavailable. Alerts of rules that there are no more are not read."""

    def __init__(self, opened: database.Database, rules: Iterable[AlertRule]) -> None:
        self._database = opened
        self._rules = tuple(rules)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, rules: Iterable[AlertRule]) -> AsyncIterator["AlertStore"]:
        """Raises Unavailable where PostgreSQL is away for 30 s, and BadSettings where it refuses us."""
        package = Path(__file__).parents[1]
        try:
            async with database.Database.open(url, schema="metrics", package=package, pool_size=_POOL_SIZE) as opened:
                yield cls(opened, rules)
        except asyncpg.PostgresError as error:
            hint = "DATABASE_URL or METRICS_DATABASE_URL must name a role that may make the schema `metrics`"
            raise errors.BadSettings(f"PostgreSQL refuses the memory of alerts: {error}", hint=hint) from error

    def leadership(self) -> AbstractAsyncContextManager[Leadership]:
        return self._database.leadership("alerts")

    # --- alerts -----------------------------------------------------------------------------------------------------

    async def alarms(self, now: float) -> list[StoredAlertState]:
        return self._read(await self._database.rows("list_alarms", _moment(now - OUTAGE_SECONDS), _MAX_ALARMS))

    async def write(self, leader: Leadership, changed: Sequence[StoredAlertState], everything: Collection[tuple[str, float]]) -> None:
        """All of it or none: those that have ``changed``, and none besides ``everything``, ids with the moment since when."""
        async with leader.transaction() as transaction:
            await transaction.run("keep_alarms", [one for one, _ in everything], [_moment(since) for _, since in everything])
            await transaction.run("write_alarms", *_columns(changed))

    async def acknowledge(self, seen: ActiveAlert) -> None:
        await self._database.run("acknowledge", seen.id, seen.seen_by, _seen_at(seen))

    # --- what else the next leader goes on with ---------------------------------------------------------------------

    async def state(self, name: State, since: float) -> bytes | None:
        """None where there is none from since then."""
        row = await self._database.row("read_state", name)
        return row["body"] if row is not None and row["at"].timestamp() >= since else None

    async def write_state(self, leader: Leadership, name: State, body: bytes, now: float) -> None:
        async with leader.transaction() as transaction:
            await transaction.run("write_state", name, _moment(now), body)

    # --- silences ---------------------------------------------------------------------------------------------------

    async def silences(self, now: float) -> StoredSilences:
        rows = await self._database.rows("list_silences", _moment(now), 10 * MAX_SILENCES)
        ended = frozenset(row["id"] for row in rows if row["ended"])
        return StoredSilences(tuple(_silence(row) for row in rows if not row["ended"]), ended)

    async def write_silences(self, made: Sequence[AlertSilence]) -> None:
        said = [msgspec.json.encode(_AlertNotification(one.name, one.labels, one.by, one.why)).decode() for one in made]
        await self._database.run("write_silences", [one.id for one in made], [_moment(one.until) for one in made], said)

    async def end_silences(self, ids: Collection[str], stays_until: float) -> None:
        await self._database.run("end_silences", sorted(ids), _moment(stays_until))

    async def delete_silences_before(self, moment: float) -> None:
        await self._database.run("delete_old_silences", _moment(moment))

    # ----------------------------------------------------------------------------------------------------------------

    def _read(self, rows: Iterable[database.DatabaseRow]) -> list[StoredAlertState]:
        found = []
        for row in rows:
            labels = msgspec.json.decode(row["labels"], type=Labels)
            named = [rule for rule in self._rules if (rule.name, rule.severity) == (row["rule"], row["severity"])]
            rule = next((rule for rule in named if set(rule.labels) <= set(labels)), None)
            if rule is not None:
                found.append(StoredAlertState(_alarm(row, rule, labels), row["told"], row["held_at"].timestamp(), tuple(row["owed"])))
        return found


def _alarm(row: database.DatabaseRow, rule: AlertRule, labels: Labels) -> ActiveAlert:
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
    """In the order of `write_alarms`."""
    alarms = [one.alarm for one in remembered]
    return (
        [alarm.id for alarm in alarms],
        [_moment(alarm.since) for alarm in alarms],
        [alarm.rule.name for alarm in alarms],
        [str(alarm.rule.severity) for alarm in alarms],
        [msgspec.json.encode(alarm.labels).decode() for alarm in alarms],
        [alarm.value for alarm in alarms],
        [alarm.firing for alarm in alarms],
        [None if alarm.ended is None else _moment(alarm.ended) for alarm in alarms],
        [alarm.seen_by for alarm in alarms],
        [_seen_at(alarm) for alarm in alarms],
        [one.told for one in remembered],
        [_moment(one.held_at) for one in remembered],
        [",".join(one.owed) for one in remembered],
    )


def _seen_at(alarm: ActiveAlert) -> datetime | None:
    return None if alarm.seen_at is None else _moment(alarm.seen_at)


def _silence(row: database.DatabaseRow) -> AlertSilence:
    said = msgspec.json.decode(row["said"], type=_AlertNotification)
    return AlertSilence(row["id"], said.name, said.labels, row["until"].timestamp(), said.by, said.why)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
