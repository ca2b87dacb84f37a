"""Replays the gateway's recovery log at start, and serves it to the backup agent."""

import contextlib
import hmac
from collections.abc import AsyncIterator

from services.gateway.idempotency import cache_keys, stored_items
from services.gateway.payments.billing_store import BillingRows
from services.gateway.recovery import kinds
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api import recovery as api
from shared.api.method import Nothing
from shared.audit_anchors import AnchorKeys
from shared.background import tasks as background_tasks
from shared.node import Node, lifecycle
from shared.recovery.log_place import LogPlace
from shared.recovery.recovery_log import RecoveryLog
from shared.recovery.recovery_store import RecoveryStore
from shared.recovery.replay import Replay
from shared.recovery.rollback import OpenRestore, RecoveryStart
from shared.rpc import StreamCall, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.stores.cache import Cache


class GatewayRecovery:
    """Open it before anything else uses the database or serves.

    The signing key is derived from PROMPT_HASH_SECRET, as that of the ledger's checkpoints: all gateways share it, and the database doesn't
    hold it.
    """

    def __init__(self, settings: GatewaySettings, node: Node, rows: RecoveryStore, cache: Cache) -> None:
        keys = AnchorKeys.of(hmac.digest(settings.prompt_hash_secret.encode(), b"aimesh/recovery-log/1", "sha256"))
        place = LogPlace("gateway", node.id, settings.mesh, keys, settings.recovery_log_dir)
        self._rows = rows
        self._cache = cache
        self._seller = settings.seller()
        self._ending = node.drain_started
        self.log = RecoveryLog(rows, place, node.metrics.recovery_log_behind)
        self._start = RecoveryStart(rows, self.log, place, node.metrics.database_restored)
        self._restored: OpenRestore | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: GatewaySettings, node: Node, rows: RecoveryStore, cache: Cache) -> AsyncIterator["GatewayRecovery"]:
        """Replay the log, then copy new lines during the block. Raises BadSettings for a damaged log, Unavailable, and Internal if the
        database is replaced meanwhile."""
        recovery = cls(settings, node, rows, cache)
        await recovery._start.begin(Replay(rows, kinds.KINDS))
        await recovery._start.finish(recovery._end_restore)
        async with lifecycle.background() as tasks:
            tasks.create_task(background_tasks.keep("recovery log", recovery.log.run))
            tasks.create_task(background_tasks.keep("recovery state", recovery._start.run))
            yield recovery
        with contextlib.suppress(errors.Unavailable):
            await recovery.log.copy()
            await recovery._start.write_state()

    def report(self, audit_reporting: AuditReporting) -> None:
        """Report a restore that ``open`` has handled to the audit log."""
        if self._restored is not None:
            details = self._restored.details()
            audit_reporting.report_action("database.restored", None, tenant=None, target=self._restored.id, service="gateway", **details)

    @serves(api.follow_gateway_log)
    async def follow(self, request: api.FollowRecoveryLog, stream: StreamCall[api.RecoveryLines]) -> Nothing:
        await self.log.stream(request.after, stream, self._ending)
        return Nothing()

    async def _end_restore(self, restore: OpenRestore) -> None:
        # Answers of the lost window. Rate counters stay, and access to keys is not cached outside of this process.
        for prefix in (cache_keys.PREFIX, stored_items.PREFIX):
            await self._cache.delete_matching(f"{prefix}*")
        async with self._rows.transaction() as transaction:
            if await self._rows.close_restores(transaction):
                billing = BillingRows(transaction)
                await billing.void_lost(self._seller, f"lost in the restore of {await billing.now():%Y-%m-%d}")
                self._restored = restore
