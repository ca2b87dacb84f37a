"""What the audit log must hear of from here: refusals, and what administrators did. Sent to auth soon, in batches, and kept for it while
it is away, within a bound."""

import asyncio
from collections import OrderedDict
from datetime import UTC, datetime

import msgspec

from services.gateway import mesh
from shared import context, errors
from shared.api import audit
from shared.api.audit import Act, Result
from shared.api.auth import Principal
from shared.telemetry import logs
from shared.types import TenantId, UserId

_EVERY_SECONDS = 1.0
_SEND_SECONDS = 5.0
_AT_ONCE = 200
#: Different ones, equal ones of a while being one; about 1 KB each.
_MOST_KEPT = 5000

_log = logs.get(part="audit")


class Telling:
    """``act`` and ``refused`` never wait; ``run`` is the task that sends."""

    def __init__(self, rpc: mesh.Rpc) -> None:
        self._rpc = rpc
        self._kept: OrderedDict[tuple[str, TenantId | None, UserId | None, str, str, str], Act] = OrderedDict()
        self._dropped = 0

    def act(self, action: str, by: Principal, *, tenant: TenantId | None = None, target: object = "", **details: str) -> None:
        """``by`` did it; ``tenant`` None: it concerns the house."""
        self._keep(_act(action, tenant, by.user_id, str(target), details))

    def refused(self, method: str, by: Principal | None, address: str, error: errors.AimeshError) -> None:
        tenant, actor = (None, None) if by is None else (by.tenant_id, by.user_id)
        act = _act(method, tenant, actor, "", {"why": error.message})
        self._keep(msgspec.structs.replace(act, result=Result.REFUSED, address=address))

    async def run(self) -> None:
        """Send what there is, for ever."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            await self.send()

    async def send(self) -> None:
        """Now; what cannot be sent stays."""
        while self._kept:
            batch = [self._kept.popitem(last=False) for _ in range(min(_AT_ONCE, len(self._kept)))]
            try:
                request = audit.RecordActs(tuple(act for _, act in batch))
                await self._rpc.call(audit.record_acts, request, deadline_seconds=_SEND_SECONDS)
            except errors.AimeshError as error:
                for key, act in reversed(batch):
                    self._kept.setdefault(key, act)
                    self._kept.move_to_end(key, last=False)
                _log.info("the audit log was not told", waiting=len(self._kept), reason=error.message)
                return

    def _keep(self, act: Act) -> None:
        # What was done is one row each; refusals that are equal but for their time are counted.
        distinct = act.request_id if act.result is Result.DONE else act.details.get("why", "")
        key = (act.action, act.tenant_id, act.actor, act.address, act.target, distinct)
        if (before := self._kept.get(key)) is not None:
            self._kept[key] = msgspec.structs.replace(before, times=before.times + 1)
        elif len(self._kept) < _MOST_KEPT or act.result is Result.DONE:
            self._kept[key] = act
        else:
            self._dropped += 1
            if self._dropped % _MOST_KEPT == 1:
                _log.warning("refusals are not told to the audit log", dropped=self._dropped)


def _act(action: str, tenant: TenantId | None, actor: UserId | None, target: str, details: dict[str, str]) -> Act:
    now = context.current.get()
    request_id = str(now.request_id) if now is not None else ""
    return Act(datetime.now(UTC), action, tenant, actor, target=target, request_id=request_id, details=details)
