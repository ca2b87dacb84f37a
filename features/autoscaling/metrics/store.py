"""Reads and writes the decisions about pools and the calls of their hooks. The only module of autoscaling that talks to PostgreSQL."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec

from features.autoscaling.rules.autoscaler import PoolDecision
from features.autoscaling.rules.hook_plan import ScaleCall
from services.metrics import leader_state
from services.metrics.leader_state import Database, DatabaseRow, Leadership, moment_of

#: The row of the leader's state.
STATE = "scaling"
_KEPT_SECONDS = 90 * 86_400.0
_Decisions = dict[str, PoolDecision]


class ScaleStore:
    """Every method can raise Unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def decisions(self) -> _Decisions:
        """Return none if another version wrote them in another shape."""
        body = await leader_state.read(self._database, STATE)
        with suppress(msgspec.DecodeError):
            return {} if body is None else msgspec.json.decode(body, type=_Decisions)
        return {}

    async def write_decisions(self, leader: Leadership, decisions: Mapping[str, PoolDecision], now: float) -> None:
        await leader_state.write(leader, STATE, msgspec.json.encode(decisions), now)

    async def last_calls(self, pools: Sequence[str]) -> dict[str, ScaleCall]:
        return {row["pool"]: _call(row) for row in await self._database.rows("list_last_scale_calls", list(pools))}

    async def calls(self, pool: str | None, most: int) -> list[ScaleCall]:
        """Return the newest first."""
        return [_call(row) for row in await self._database.rows("list_scale_calls", pool, most)]

    async def begin(self, leader: Leadership, call: ScaleCall) -> None:
        """Write an attempt before it is made, which succeeds only for the leader."""
        async with leader.transaction() as transaction:
            await transaction.run("delete_old_scale_calls", moment_of(call.began_at - _KEPT_SECONDS))
            await transaction.run(
                "write_scale_call", call.key, call.pool, moment_of(call.began_at), call.current, call.wanted, call.reason, call.attempts,
                moment_of(call.tried_at), call.failures,
            )  # fmt: skip

    async def end(self, call: ScaleCall, now: float, problem: str) -> None:
        await self._database.run("end_scale_call", call.key, call.attempts, moment_of(now), problem)


def _call(row: DatabaseRow) -> ScaleCall:
    return ScaleCall(**{name: row[name] for name in ScaleCall.__struct_fields__})
