"""Every table has row-level security, or is listed here with the reason why the service's own checks are enough."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import asyncpg
import pytest

from services.auth import store as auth
from services.gateway import store as gateway
from shared.stores.database import Database
from tests import feature_parts

#: Schema -> how to open it -> table -> why only the service itself reads its rows.
OPEN: dict[str, tuple[Callable[[str], AbstractAsyncContextManager[Database]], dict[str, str]]] = {
    "auth": (
        auth.opened,
        {
            "users": "found by name before anybody is known; members of one organisation see each other",
            "former_key_hashes": "found by a secret alone, before anybody is known; its key is behind the wall",
            "changes": "ids for the caches of other services",
            "tickets": "of the house",
            "nodes": "of the house",
            "mesh_state": "of the house",
            "gateway_release": "of the house",
            "audit_heads": "numbers and digests, so that a chain grows in order",
            "audit_anchors": "numbers and digests, signed",
            "signing_keys": "of the house",
            "colleague_invitations": "to the house, by its administrators; found by a secret before anybody is known",
            "setup_facts": "of the house",
            "deferred_items": "ids of items of background work that failed",
            "recovery_log": "ids and digests",
            "database_restores": "of the house",
            "backup_reports": "of the house",
            "notice_scans": "how far the keys were searched",
        },
    ),
    "gateway": (
        gateway.opened,
        {
            "prices": "of the house",
            "model_orders": "ids of nodes and digests",
            "usage_rolls": "days",
            "worker_strikes": "ids of nodes",
            "config_versions": "of the house, written by its administrators",
            "config_current": "of the house",
            "config_revision": "of the house",
            "rollouts": "of the house",
            "rollout_events": "of the house",
            "rollout_points": "sums over all owners",
            "rollout_outcomes": "ids and numbers of requests until a gateway has counted them",
            "rollout_ratings": "ids of requests while their rollout is open",
            "target_spending": "sums of days over all owners",
            "target_holds": "ids of running requests",
            "partitions": "names and bounds of tables",
            "ledger_checkpoints": "sums of days over all owners, signed",
            "invoice_numbers": "counters",
            "file_store": "of the house",
            "usage_sinks": "how far each sink of the usage export is",
            "usage_sink_days": "sums of days over all owners",
            "webhook_events": "ids of events and of objects at the payment provider",
            "entry_keys": "ids of transfers alone, so that none is made twice",
            "deferred_items": "ids of items of background work that failed",
            "recovery_log": "ids and digests",
            "database_restores": "of the house",
            "site_lease": "of the house, until migrate --post",
        },
    ),
}
_TABLES = """
SELECT relname, relrowsecurity AND relforcerowsecurity AND EXISTS (SELECT FROM pg_policy WHERE polrelid = pg_class.oid)
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = $1 AND relkind IN ('r', 'p') AND relname NOT IN ('migrations', 'feature_migrations')
"""


@pytest.mark.parametrize("schema", OPEN)
async def test_a_table_is_behind_the_wall_or_says_why_not(postgres_url: str, schema: str) -> None:
    opened, reasons = OPEN[schema]
    of_features = [table for part in feature_parts.modules("second_wall") for table in part.OPEN.get(schema, {})]
    async with opened(postgres_url):
        connection = await asyncpg.connect(postgres_url)
        try:
            walls = dict(await connection.fetch(_TABLES, schema))
        finally:
            await connection.close()
    assert {table for table, has_wall in walls.items() if not has_wall} == {*reasons, *of_features}
    assert sum(walls.values()) >= 4
