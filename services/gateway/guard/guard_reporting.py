"""Counts what guardrails find, and reports it to the audit log. Nothing here sees any of the text."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.gateway.facts.guard_counts import GuardCount
from shared.api.auth import Principal
from shared.config_documents import GuardAction
from shared.rpc.audit_reporting import AuditReporting
from shared.telemetry import Metrics
from shared.types import KeyId, RequestId, TenantId

if TYPE_CHECKING:
    from services.gateway.facts.request_record import RequestRow

FLUSH_SECONDS = 60.0
#: Example requests of one report.
_MAX_REQUESTS = 5
#: Reports that wait for the end of their minute. Beyond that, they end early.
_MAX_WAITING = 5_000


@dataclass(slots=True)
class _Masked:
    """What was masked for one key in a minute."""

    principal: Principal
    matches: int = 0
    requests: int = 0
    examples: list[RequestId] = field(default_factory=list)


class GuardReporting:
    """Reports each refusal at once, and masks once a minute for each key and kind."""

    def __init__(self, metrics: Metrics, audit_reporting: AuditReporting) -> None:
        self._metrics = metrics
        self._audit_reporting = audit_reporting
        self._masked: dict[tuple[TenantId, KeyId | None, str], _Masked] = {}

    async def run(self) -> None:
        """Report once a minute, forever."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self.flush()

    def flush(self) -> None:
        for (tenant, _, kind), found in self._masked.items():
            requests = ", ".join(map(str, found.examples))
            self._audit_reporting.report_action(
                "guard.mask", found.principal, tenant=tenant, target=kind, matches=str(found.matches), requests=str(found.requests),
                examples=requests,
            )  # fmt: skip
        self._masked.clear()

    def record_end(self, row: "RequestRow", principal: Principal, seconds: float) -> None:
        """Count what was found in a request that has ended. ``seconds``: how long guardrails took."""
        self._metrics.guard_seconds.inc(seconds)
        for one in row.guard:
            self._metrics.guard_matches.labels(kind=one.kind, action=one.action, place=one.place).inc(one.matches)
        refused = [one for one in row.guard if one.action is GuardAction.REFUSE]
        if refused:
            self._audit_reporting.report_action(
                "guard.refuse", principal, tenant=row.tenant_id, target=row.id, kinds=_listed(refused), place=refused[0].place
            )
        masked: Counter[str] = Counter()
        for one in row.guard:
            if one.action is GuardAction.MASK:
                masked[one.kind] += one.matches
        for kind, matches in masked.items():
            found = self._masked.setdefault((row.tenant_id, row.api_key_id, kind), _Masked(principal))
            found.matches += matches
            found.requests += 1
            if len(found.examples) < _MAX_REQUESTS:
                found.examples.append(row.id)
        if len(self._masked) >= _MAX_WAITING:
            self.flush()


def _listed(found: Iterable[GuardCount]) -> str:
    return ", ".join(dict.fromkeys(str(one.kind) for one in found))
