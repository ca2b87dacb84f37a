"""Replays the gateway's recovery log at start, and serves it to the backup agent."""

import asyncio
import contextlib
import hmac

from services.gateway.idempotency import cache_keys
from services.gateway.recovery import kinds
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api import recovery
from shared.api.method import Nothing
from shared.audit_anchors import AnchorKeys
from shared.node import Node
from shared.recovery.log_place import LogPlace
from shared.recovery.recovery_log import RecoveryLog
from shared.recovery.recovery_store import RecoveryStore
from shared.recovery.replay import Replay
from shared.recovery.rollback import OpenRestore, RecoveryStart
from shared.rpc import StreamCall, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.stores.cache import Cache


class GatewayRecovery:
    """Call ``begin`` before anything else uses the database or serves, then run ``run``; ``close`` after it has ended.

    The signing key is derived from PROMPT_HASH_SECRET, as that of the ledger's checkpoints: all gateways share it, and the database doesn't
    hold it.
    """

    def __init__(self, settings: GatewaySettings, node: Node, rows: RecoveryStore, cache: Cache) -> None:
        keys = AnchorKeys.of(hmac.digest(settings.prompt_hash_secret.encode(), b"aimesh/recovery-log/1", "sha256"))
        place = LogPlace("gateway", node.id, settings.mesh, keys, settings.recovery_log_dir)
        self._rows = rows
        self._cache = cache
        self._ending = node.drain_started
        self.log = RecoveryLog(rows, place, node.metrics.recovery_log_behind)
        self._start = RecoveryStart(rows, self.log, place, node.metrics.database_restored)
        self._restored: OpenRestore | None = None

    async def begin(self) -> None:
        """Raises BadSettings for a damaged log, and Unavailable."""
        await self._start.begin(Replay(self._rows, kinds.KINDS))
        await self._start.finish(self._end_restore)

    def report(self, audit_reporting: AuditReporting) -> None:
        """Report a restore that ``begin`` has handled to the audit log."""
        if self._restored is not None:
            details = self._restored.details()
            audit_reporting.report_action("database.restored", None, target=self._restored.id, service="gateway", **details)

    async def run(self) -> None:
        """Run until canceled. Raises Internal if the database is replaced meanwhile."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.log.run())
            tasks.create_task(self._start.run())

    async def close(self) -> None:
        with contextlib.suppress(errors.Unavailable):
            await self.log.copy()
            await self._start.write_state()

    @serves(recovery.follow_gateway_log)
    async def follow(self, request: recovery.FollowRecoveryLog, stream: StreamCall[recovery.RecoveryLines]) -> Nothing:
        await self.log.stream(request.after, stream, self._ending)
        return Nothing()

    async def _end_restore(self, restore: OpenRestore) -> None:
        # Answers of the lost window. Rate counters stay, and access to keys is not cached outside of this process.
        await self._cache.delete_matching(f"{cache_keys.PREFIX}*")
        async with self._rows.transaction() as transaction:
            if await self._rows.close_restores(transaction):
                self._restored = restore
