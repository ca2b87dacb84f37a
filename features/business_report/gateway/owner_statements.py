"""Monthly statements of node owners: the gateway's count of their requests, and the energy of their nodes."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

from features.business_report import contract as api
from features.business_report.contract import OwnerStatement
from services.gateway.usage_store import DaysStore
from shared import access_table, errors
from shared.api import business, membership, metrics
from shared.api.business import BusinessGrouping, BusinessReport, BusinessSum
from shared.api.membership import Member
from shared.api.metrics import NodeEnergy
from shared.rpc import RpcCall, serves
from shared.rpc.calling import RpcClient
from shared.telemetry.instrument import node_label
from shared.types import Permission, UserId

_MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")
#: The metrics service reads a month of hours.
_ENERGY_SECONDS = 20.0


class OwnerStatements:
    def __init__(self, store: DaysStore, rpc: RpcClient) -> None:
        self._store = store
        self._rpc = rpc

    @serves(api.get_owner_statements)
    async def get_owner_statements(self, request: api.GetOwnerStatements, call: RpcCall) -> api.OwnerStatements:
        caller, is_admin = call.principal, access_table.may(call.principal, Permission.EVERYTHING)
        since, until = days_of(request.month, datetime.now(UTC).date())
        report = await self._store.report(business.GetBusinessReport(since, until, BusinessGrouping.OWNER))
        members = (await self._rpc.call(membership.list_members, membership.ListMembers(), credential=call.credential)).members
        names = {str(caller.user_id): caller.username}
        if is_admin and (ids := tuple(UserId(UUID(row.name)) for row in report.rows if row.name)):
            names |= (await self._rpc.call(business.name_users, business.NameUsers(ids), credential=call.credential)).names
        energy: tuple[NodeEnergy, ...] = ()
        missing = ""
        try:
            wanted = metrics.GetEnergy(_midnight(since), _midnight(until))
            energy = (await self._rpc.call(metrics.get_energy, wanted, deadline_seconds=_ENERGY_SECONDS)).nodes
        except errors.AimeshError as error:
            # Such as without a history; the requests are known all the same.
            missing = error.message
        rows = join(report, members, energy, names)
        if not is_admin:
            # The share would tell what the whole mesh earns.
            rows = tuple(row.without_share() for row in rows if row.owner == caller.username)
        return api.OwnerStatements(request.month, rows, missing)


def days_of(month: str, today: date) -> tuple[date, date]:
    """Return the first day of a month, and of the next one. Raises BadRequest."""
    if not _MONTH.fullmatch(month) or month > f"{today:%Y-%m}" or month < "2000":
        raise errors.BadRequest(f"{month[:20]!r} is not a month up to this one", hint="write it like 2026-11")
    first = date.fromisoformat(f"{month}-01")
    return first, (first + timedelta(days=31)).replace(day=1)


def join(
    report: BusinessReport, members: Iterable[Member], energy: Iterable[NodeEnergy], names: Mapping[str, str]
) -> tuple[OwnerStatement, ...]:
    """Return the owners' statements, highest earnings first; that of nodes without an owner has none. Pure."""
    owners = {node_label(member.id): member.owner or None for member in members}
    used: dict[str | None, NodeEnergy] = {}
    for found in energy:
        owner = owners.get(found.node)
        used[owner] = used[owner] + found if owner in used else found
    sums = {None if row.name is None else names.get(row.name, row.name): row.sum for row in report.rows}
    sums |= {owner: BusinessSum() for owner in used if owner not in sums}
    total = report.total.cost_micro
    return tuple(
        OwnerStatement(
            owner=owner,
            requests=one.requests,
            prompt_tokens=one.prompt_tokens,
            completion_tokens=one.completion_tokens,
            earned_micro=one.cost_micro,
            earned_share=one.cost_micro / total if total else None,
            kwh=round(used[owner].joules / metrics.JOULES_PER_KWH, 6) if owner in used else None,
            measured_by=used[owner].sources if owner in used else (),
            energy_cost=round(cost, 6) if owner in used and (cost := used[owner].cost) is not None else None,
        )
        for owner, one in sums.items()
    )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
