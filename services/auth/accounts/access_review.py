"""The RPC method by which an administrator sees what nobody uses any more: keys, people, nodes."""

import asyncio

from services.auth.dependencies import Dependencies
from services.auth.nodes.node_store import NodeStore
from shared import errors
from shared.api import privacy
from shared.rpc import RpcCall, serves

_MOST_DAYS = 3650


class AccessReviews:
    """A handler; all state is in PostgreSQL."""

    def __init__(self, parts: Dependencies, members: NodeStore) -> None:
        self._store = parts.store
        self._members = members

    @serves(privacy.review_access)
    async def review_access(self, request: privacy.ReviewAccess, call: RpcCall) -> privacy.AccessReview:
        if not 1 <= request.days <= _MOST_DAYS:
            raise errors.BadRequest(f"days: from 1 to {_MOST_DAYS}", hint="90 is a good beginning")
        keys, users, nodes = await asyncio.gather(
            self._store.list_stale_keys(request.days),
            self._store.list_stale_users(request.days),
            self._members.list_idle_nodes(request.days),
        )
        return privacy.AccessReview(keys, users, nodes)
