"""RPC methods to read, export and verify the audit log, and to add other services' acts."""

from services.auth import audit_records, name_rules
from services.auth.audit.audit_store import AuditQuery, AuditStore
from services.auth.audit.verification import Verification
from services.auth.audit_trail import AuditTrail
from services.auth.store import AccountTables
from shared.api import audit
from shared.api.method import Nothing
from shared.rpc import RpcCall, StreamCall, serves
from shared.telemetry import logs
from shared.types import UserId

_log = logs.get(part="audit")


class AuditRpc:
    def __init__(self, store: AccountTables, trail: AuditTrail, rows: AuditStore, verification: Verification) -> None:
        self._store = store
        self._trail = trail
        self._rows = rows
        self._verification = verification

    @serves(audit.record_acts)
    async def record_acts(self, request: audit.RecordActs, call: RpcCall) -> Nothing:
        if request.acts:
            async with self._rows.transaction() as transaction:
                await self._rows.append(transaction, request.acts)
        return Nothing()

    @serves(audit.list_audit)
    async def list_audit(self, request: audit.ListAudit, call: RpcCall) -> audit.AuditRows:
        query = AuditQuery(
            chain=request.chain,
            actor=None if request.actor is None else await self._actor(request.actor),
            action=request.action,
            result=request.result,
            since=request.since,
            before=request.before,
        )
        return audit.AuditRows(await self._rows.list_rows(query, request.limit))

    @serves(audit.export_audit)
    async def export_audit(self, request: audit.ExportAudit, stream: StreamCall[audit.AuditRow]) -> Nothing:
        chains = await self._rows.chains() if request.chain is None else (request.chain,)
        async with self._store.transaction() as transaction:
            await self._trail.add(transaction, audit_records.of_mesh("audit.export", stream.principal, target=request.chain or ""))
        _log.info("audit log exported", by=stream.principal.user_id)
        for chain in chains:
            await self._send(chain, request, stream)
        return Nothing()

    @serves(audit.verify_audit)
    async def verify_audit(self, request: audit.VerifyAudit, call: RpcCall) -> audit.AuditReport:
        report = await self._verification.report(request.chain)
        bad = [state for state in report.chains if state.first_bad is not None]
        found = {"found": f"{bad[0].chain} {bad[0].first_bad}"} if bad else {}
        async with self._store.transaction() as transaction:
            await self._trail.add(transaction, audit_records.of_mesh("audit.verify", call.principal, target=request.chain or "", **found))
        return report

    async def _send(self, chain: str, request: audit.ExportAudit, stream: StreamCall[audit.AuditRow]) -> None:
        """Send without gaps, so that it can be verified: from the first row in the period to the newest."""
        until = (await self._rows.end_of(chain)).last_row
        first = 1 if request.since is None else await self._rows.first_since(chain, request.since)
        if first is None:
            return
        async for page in self._rows.read_chain(chain, after=first - 1, until=until):
            for row in page:
                await stream.send(row)

    async def _actor(self, text: str) -> UserId:
        if (user_id := name_rules.find_uuid(text)) is not None:
            return UserId(user_id)
        return (await self._store.get_user_called(text)).id
