"""Ends access after auth's database was replaced by an older one, and counts the rows of the audit log that are lost."""

from datetime import datetime

from services.auth import audit_records
from services.auth.accounts.account_store import AccountStore
from services.auth.audit.anchoring import Anchoring
from services.auth.audit.audit_store import AuditStore
from services.auth.audit_trail import AuditTrail
from services.auth.nodes.node_store import NodeStore
from services.auth.sessions.active_keys import ActiveKeys
from shared import audit_anchors, errors
from shared.audit_anchors import Anchor
from shared.identity.trust import Trust
from shared.recovery.recovery_store import RecoveryStore
from shared.recovery.rollback import OpenRestore
from shared.stores.cache import Cache

#: Everything that grants access. Counters of requests and failed logins stay.
SESSION_KEYS = (
    *("auth:session:*", "auth:session_family:*", "auth:sessions_of:*", "auth:halfway_of:*", "auth:link*", "auth:oidc:*"),
    # In a cluster.
    *("{auth}:session*", "{auth}:halfway_of:*", "{auth}:link*"),
)


class RestoredAccess:
    """``handle`` may run twice for the same restore."""

    def __init__(self, rows: RecoveryStore, ending: "AccessEnding", lost_rows: "LostRows", trail: AuditTrail) -> None:
        self._rows = rows
        self._ending = ending
        self._lost_rows = lost_rows
        self._trail = trail

    async def handle(self, restore: OpenRestore) -> None:
        """Raises BadSettings if the audit log differs from its anchors, and Unavailable."""
        await self._ending.end_everything(restore.facts.epoch)
        lost = await self._lost_rows.count(restore.since)
        async with self._rows.transaction() as transaction:
            if await self._rows.close_restores(transaction):
                act = audit_records.of_mesh("database.restored", None, target=restore.id, **restore.details(), lost_rows=str(lost))
                await self._trail.add(transaction, act)


class AccessEnding:
    """Ends what the restored database, or Valkey, would still accept. Every step may run twice."""

    def __init__(self, accounts: AccountStore, members: NodeStore, signers: ActiveKeys, cache: Cache, published: Trust) -> None:
        self._accounts = accounts
        self._members = members
        self._signers = signers
        self._cache = cache
        self._published = published

    async def end_everything(self, epoch: int) -> None:
        """``epoch``: the highest signing epoch in the recovery log. Raises Unavailable."""
        async with self._signers.rotating(at_once=True, above=epoch):
            pass
        for pattern in SESSION_KEYS:
            await self._cache.delete_matching(pattern)
        await self._accounts.drop_password_resets()
        seen = max((each for each, _ in self._published.topics), default=0)
        await self._members.raise_list(self._published.number, seen)


class LostRows:
    """Compares the audit log with its anchors."""

    def __init__(self, audit: AuditStore, anchoring: Anchoring) -> None:
        self._audit = audit
        self._anchoring = anchoring

    async def count(self, since: datetime | None) -> int:
        """Return how many rows the anchors know and the database lacks. ``since``: the last restore; older anchors may be of rows that were
        lost then. Raises BadSettings if a row differs from its anchor, which no restore causes, and Unavailable."""
        by_chain: dict[str, list[Anchor]] = {}
        for anchor in (await self._anchoring.read())[0]:
            if since is None or anchor.at > since:
                by_chain.setdefault(anchor.chain, []).append(anchor)
        return sum([await self._count(chain, anchors) for chain, anchors in by_chain.items()])

    async def are_some_ahead(self, since: datetime | None) -> bool:
        """Return whether one of the newest anchors knows a row that the database lacks. Raises Unavailable."""
        newest = await self._anchoring.read_newest()
        recent = {anchor.chain: anchor for anchor in newest if since is None or anchor.at > since}
        good = audit_anchors.check(recent.values(), self._anchoring.keys.ids).good
        ends = [(anchor, await self._audit.end_of(anchor.chain)) for anchor in good]
        return any(anchor.sequence > end.last_row for anchor, end in ends)

    async def _count(self, chain: str, anchors: list[Anchor]) -> int:
        last = (await self._audit.end_of(chain)).last_row
        newest = self._newest(anchors)
        kept = self._newest([anchor for anchor in anchors if anchor.sequence <= last])
        if kept is not None:
            async for row, *_ in self._audit.read_chain(chain, after=kept.sequence - 1, until=kept.sequence):
                if row.hash != kept.hash:
                    raise errors.BadSettings(
                        f"the audit log was changed: row {kept.sequence} of the chain {chain} differs from its anchor",
                        hint="treat it as a break-in (docs/runbooks/audit_chain_broken.md)",
                    )
        return 0 if newest is None else max(0, newest.sequence - last)

    def _newest(self, anchors: list[Anchor]) -> Anchor | None:
        """Return the one with the highest number that is signed. Its hash covers all rows before it, so the others need no check."""
        by_number = sorted(anchors, key=lambda anchor: anchor.sequence, reverse=True)
        return next((anchor for anchor in by_number if audit_anchors.check([anchor], self._anchoring.keys.ids).good), None)
