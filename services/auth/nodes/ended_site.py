"""Revokes the nodes of a site that was replaced: `python -m services.auth.nodes.ended_site` reads DATABASE_URL, and their ids and roles as
JSON on its input. `aicli stack promote` runs it before the services start, because an auth node can't be revoked by another one.
"""

import asyncio
import os
import sys

import msgspec

from services.auth import audit_records, store
from services.auth.audit.audit_store import AuditStore
from services.auth.nodes.node_store import NodeStore
from shared import errors
from shared.types import NodeId, Role

_REASON = "its site was replaced"


async def revoke(url: str, nodes: dict[NodeId, Role]) -> int:
    """Return how many were revoked now. Safe to repeat; raises Unavailable."""
    async with store.opened(url) as database:
        members, acts = NodeStore(database), []
        async with members.transaction() as transaction:
            # Not recorded: the log's files may have further lines, which auth replays when it starts. A restore to an earlier moment gives
            # these nodes back, whose keys it has.
            await transaction.row("lock_recovery")
            for node, role in nodes.items():
                await transaction.run("add_vouched_node", node, role)
                if await members.revoke(transaction, node, _REASON):
                    acts.append(audit_records.of_mesh("node.revoke", None, target=node, role=role))
            if acts:
                # The triggers leave it alone while nothing is recorded.
                await transaction.run("publish_list")
                await AuditStore(database).append(transaction, acts)
    return len(acts)


def main() -> int:
    try:
        nodes = msgspec.json.decode(sys.stdin.buffer.read(), type=dict[NodeId, Role])
        print(asyncio.run(revoke(os.environ["DATABASE_URL"], nodes)))
    except errors.AimeshError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
