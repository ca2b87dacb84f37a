"""Build the audit log's rows for auth's own methods. Pure but for the clock."""

from datetime import UTC, datetime
from itertools import islice

import msgspec

from shared import context, plan_names
from shared.api.audit import AuditedAct, Result
from shared.api.auth import Principal
from shared.types import TenantId, UserId

_MAX_NAME = 100
_MAX_TEXT = 500
_MAX_DETAILS = 20
#: The largest integer of PostgreSQL.
_MAX_TIMES = 2**31 - 1


def done(action: str, by: Principal, *, tenant: TenantId | None = None, target: object = "", **details: str) -> AuditedAct:
    """Record that ``by`` did it. ``tenant`` owns the chain, if ``by`` acts for another tenant."""
    return _act(action, by.tenant_id if tenant is None else tenant, by.user_id, target, details)


def done_by(action: str, user: UserId, *, target: object = "", address: str = "", **details: str) -> AuditedAct:
    """Record an act of a user without a credential, such as a login."""
    return _act(action, TenantId(user), user, target, details, address=address)


def of_mesh(action: str, by: Principal | None, *, target: object = "", **details: str) -> AuditedAct:
    """Record what concerns the whole mesh and no single tenant: nodes, tickets, prices."""
    return _act(action, None, None if by is None else by.user_id, target, details)


def refused(action: str, by: Principal | None, why: str, *, target: object = "", address: str = "") -> AuditedAct:
    tenant, actor = (None, None) if by is None else (by.tenant_id, by.user_id)
    return _act(action, tenant, actor, target, {"why": why}, address=address, result=Result.REFUSED)


def overflow(times: int) -> AuditedAct:
    """Record how many refusals were dropped because they could not be written."""
    return msgspec.structs.replace(_act("audit.overflow", None, None, "", {}, result=Result.FAILED), times=times)


def fitted(act: AuditedAct) -> AuditedAct:
    """Cut an act to the sizes of the log and to characters that PostgreSQL can store. Nothing is refused for its form."""
    return msgspec.structs.replace(
        act,
        at=act.at if act.at.tzinfo is not None else act.at.replace(tzinfo=UTC),
        action=_cut(act.action, _MAX_NAME),
        target=_cut(act.target, _MAX_TEXT),
        address=_cut(act.address, _MAX_NAME),
        request_id=_cut(act.request_id, _MAX_NAME),
        details={_cut(name, _MAX_NAME): _cut(value, _MAX_TEXT) for name, value in islice(act.details.items(), _MAX_DETAILS)},
        times=min(max(act.times, 1), _MAX_TIMES),
    )


def _cut(text: str, longest: int) -> str:
    return text[:longest].replace("\0", "").encode("utf-8", "replace").decode()


def _act(
    action: str,
    tenant: TenantId | None,
    actor: UserId | None,
    target: object,
    details: dict[str, str],
    *,
    address: str = "",
    result: Result = Result.DONE,
) -> AuditedAct:
    now = context.current.get()
    if action.endswith(".tier"):
        details |= {name: plan_names.name_of(details[name]) for name in ("before", "after") if name in details}
    return AuditedAct(
        at=datetime.now(UTC),
        action=action,
        tenant_id=tenant,
        actor=actor,
        result=result,
        target=str(target),
        address=address,
        request_id=str(now.request_id) if now is not None else "",
        details=details,
    )
