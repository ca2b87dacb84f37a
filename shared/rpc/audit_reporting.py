"""Reports refusals and administrators' actions to auth's audit log, in batches. While auth is down they are kept, up to a limit."""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from shared import context, errors
from shared.api import audit
from shared.api.audit import AuditedAct, Result
from shared.api.auth import Principal
from shared.api.method import MethodCaller
from shared.telemetry import logs
from shared.types import TenantId, UserId

_EVERY_SECONDS = 1.0
_SEND_SECONDS = 5.0
_AT_ONCE = 200
_MAX_KEPT = 5000

_log = logs.get(part="audit")

#: Identical refusals become one row: method, tenant, actor, address, target and reason. Completed actions each have their own row, so
#: they have a number instead of a reason. The request id would not do, because callers choose it.
_Key = tuple[str, TenantId | None, UserId | None, str, str, str | int]


class AuditReporting:
    """``report_action`` and ``report_refusal`` never wait. ``run`` sends."""

    def __init__(self, rpc: MethodCaller, on_act: Callable[[str], None] = lambda action: None) -> None:
        self._rpc = rpc
        #: Called with each action that is reported.
        self._on_act = on_act
        self._pending: OrderedDict[_Key, AuditedAct] = OrderedDict()
        self._numbers = itertools.count()
        self._dropped = 0
        # One batch at a time: the last ``send`` before a stop must know whether the batch in flight was sent.
        self._sending = asyncio.Lock()

    def report_action(
        self, action: str, by: Principal | None, *, tenant: TenantId | None = None, target: object = "", **details: str
    ) -> None:
        """Report an action of the user ``by``, or of the service itself. ``tenant`` is None if it concerns the platform."""
        self._on_act(action)
        self._add(_act(action, tenant, None if by is None else by.user_id, str(target), details))

    def report_refusal(self, method: str, by: Principal | None, address: str, error: errors.AimeshError) -> None:
        tenant, actor = (None, None) if by is None else (by.tenant_id, by.user_id)
        act = _act(method, tenant, actor, "", {"why": error.message})
        self._add(msgspec.structs.replace(act, result=Result.REFUSED, address=address))

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            await self.send()

    async def send(self) -> None:
        """Send all reports. What could not be sent is kept, also on cancellation."""
        async with self._sending:
            while self._pending:
                batch = [self._pending.popitem(last=False) for _ in range(min(_AT_ONCE, len(self._pending)))]
                try:
                    request = audit.RecordActs(tuple(act for _, act in batch))
                    await self._rpc.call(audit.record_acts, request, deadline_seconds=_SEND_SECONDS)
                except errors.AimeshError as error:
                    self._requeue(batch)
                    _log.info("reports to the audit log were delayed", waiting=len(self._pending), reason=error.message)
                    return
                except asyncio.CancelledError:
                    self._requeue(batch)
                    raise

    def _requeue(self, batch: Sequence[tuple[_Key, AuditedAct]]) -> None:
        """Put the batch back in front. Identical reports may have been added in the meantime."""
        for key, act in reversed(batch):
            since = self._pending.get(key)
            self._pending[key] = act if since is None else msgspec.structs.replace(act, times=act.times + since.times)
            self._pending.move_to_end(key, last=False)

    def _add(self, act: AuditedAct) -> None:
        distinct = next(self._numbers) if act.result is Result.DONE else act.details.get("why", "")
        key = (act.action, act.tenant_id, act.actor, act.address, act.target, distinct)
        if (before := self._pending.get(key)) is not None:
            self._pending[key] = msgspec.structs.replace(before, times=before.times + 1)
        elif len(self._pending) < _MAX_KEPT or act.result is Result.DONE:
            self._pending[key] = act
        else:
            self._dropped += 1
            if self._dropped % _MAX_KEPT == 1:
                _log.warning("refusals are missing from the audit log", dropped=self._dropped)


def _act(action: str, tenant: TenantId | None, actor: UserId | None, target: str, details: dict[str, str]) -> AuditedAct:
    now = context.current.get()
    request_id = str(now.request_id) if now is not None else ""
    return AuditedAct(datetime.now(UTC), action, tenant, actor, target=target, request_id=request_id, details=details)
