"""The tables of alerts, silences and attendance. Only this module of the room talks to PostgreSQL."""

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg
import msgspec

from services.metrics.alarms.attendance import Member
from services.metrics.alarms.changes import Changes
from services.metrics.alarms.desk import MAX_SILENCES, Alarm, Remembered, Silence
from services.metrics.alerts.evaluating import Labels
from services.metrics.alerts.rule import Rule
from services.metrics.history import store as history
from shared import database, errors
from shared.directory import MAX_NODES

#: One task of the room writes and reads.
_POOL_SIZE: Final = 2
#: Of the other replicas, at one reading.
_MAX_OF_OTHERS: Final = 5_000


class _Said(msgspec.Struct, frozen=True):
    """What a silence is, besides its end."""

    name: str
    labels: Labels
    by: str
    why: str


@dataclass(frozen=True, slots=True)
class Silences:
    """Those that the replicas have agreed on."""

    lasting: tuple[Silence, ...]
    #: By somebody, before their time.
    ended: frozenset[str]

    @property
    def ids(self) -> frozenset[str]:
        return self.ended | {silence.id for silence in self.lasting}


class Store:
    """Every method may raise Unavailable. Alerts of rules that there are no more are not read."""

    def __init__(self, opened: database.Database, node: str, rules: Iterable[Rule]) -> None:
        self._database = opened
        self._node = node
        self._rules = tuple(rules)
        #: The history, over the same connections.
        self.history = history.Store(opened)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, node: str, rules: Iterable[Rule]) -> AsyncIterator["Store"]:
        """``node`` is this replica. Raises Unavailable where PostgreSQL is away for 30 s, and BadSettings where it refuses us."""
        package = Path(__file__).parents[1]
        try:
            async with database.Database.open(url, schema="metrics", package=package, pool_size=_POOL_SIZE) as opened:
                yield cls(opened, node, rules)
        except asyncpg.PostgresError as error:
            hint = "DATABASE_URL or METRICS_DATABASE_URL must name a role that may make the schema `metrics`"
            raise errors.BadSettings(f"PostgreSQL refuses the memory of alerts: {error}", hint=hint) from error

    # --- alerts -----------------------------------------------------------------------------------------------------

    async def own(self) -> list[Remembered]:
        """What this replica has written."""
        return self._read(await self._database.rows("list_alarms", self._node))

    async def others(self, held_after: float, ended_after: float) -> list[Remembered]:
        moments = _moment(held_after), _moment(ended_after)
        return self._read(await self._database.rows("list_alarms_of_others", self._node, *moments, _MAX_OF_OTHERS))

    async def write(self, changes: Changes) -> None:
        """All of them or none."""
        gone = [alarm_id for alarm_id, _ in changes.delete], [_moment(since) for _, since in changes.delete]
        async with self._database.transaction() as transaction:
            await transaction.run("delete_alarms", self._node, *gone)
            await transaction.run("write_alarms", self._node, *_columns(changes.write))

    async def touch(self, now: float) -> None:
        """What lasts lasts until now."""
        await self._database.run("touch_alarms", self._node, _moment(now))
        await self._database.run("touch_attendance", self._node, _moment(now))

    async def delete_before(self, moment: float) -> None:
        """Alerts, silences and attendance, of all replicas."""
        await self._database.run("delete_old_alarms", _moment(moment))
        await self._database.run("delete_old_silences", _moment(moment))
        await self._database.run("delete_old_attendance", _moment(moment))

    # --- silences ---------------------------------------------------------------------------------------------------

    async def silences(self, now: float) -> Silences:
        rows = await self._database.rows("list_silences", _moment(now), 10 * MAX_SILENCES)
        ended = frozenset(row["id"] for row in rows if row["ended"])
        return Silences(tuple(_silence(row) for row in rows if not row["ended"]), ended)

    async def write_silences(self, made: Sequence[Silence]) -> None:
        said = [msgspec.json.encode(_Said(one.name, one.labels, one.by, one.why)).decode() for one in made]
        await self._database.run("write_silences", [one.id for one in made], [_moment(one.until) for one in made], said)

    async def end_silences(self, ids: Collection[str], stays_until: float) -> None:
        await self._database.run("end_silences", sorted(ids), _moment(stays_until))

    # --- attendance -------------------------------------------------------------------------------------------------

    async def attendance(self, held_after: float) -> list[Member]:
        """What this replica has written, if it still looked then."""
        rows = await self._database.rows("list_attendance", self._node, _moment(held_after), MAX_NODES)
        return [Member(row["node"], row["path"], row["gone_at"], row["why"]) for row in rows]

    async def write_attendance(self, changed: Sequence[Member], everybody: Collection[str], now: float) -> None:
        """Those that have ``changed``, and nobody besides ``everybody``."""
        columns = (
            [one.node for one in changed],
            [one.path for one in changed],
            [one.gone_at for one in changed],
            [one.why for one in changed],
        )
        async with self._database.transaction() as transaction:
            await transaction.run("delete_attendance", self._node, list(everybody))
            await transaction.run("write_attendance", self._node, _moment(now), *columns)

    # ----------------------------------------------------------------------------------------------------------------

    def _read(self, rows: Iterable[database.Record]) -> list[Remembered]:
        found = []
        for row in rows:
            labels = msgspec.json.decode(row["labels"], type=Labels)
            named = [rule for rule in self._rules if (rule.name, rule.severity) == (row["rule"], row["severity"])]
            rule = next((rule for rule in named if set(rule.labels) <= set(labels)), None)
            if rule is not None:
                found.append(Remembered(_alarm(row, rule, labels), row["told"], row["held_at"].timestamp()))
        return found


def _alarm(row: database.Record, rule: Rule, labels: Labels) -> Alarm:
    return Alarm(
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


def _columns(remembered: Sequence[Remembered]) -> tuple[list[object], ...]:
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
        [None if alarm.seen_at is None else _moment(alarm.seen_at) for alarm in alarms],
        [one.told for one in remembered],
        [_moment(one.held_at) for one in remembered],
    )


def _silence(row: database.Record) -> Silence:
    said = msgspec.json.decode(row["said"], type=_Said)
    return Silence(row["id"], said.name, said.labels, row["until"].timestamp(), said.by, said.why)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
