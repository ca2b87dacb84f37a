"""A service's table deferred_items. Every method may raise Unavailable."""

from collections.abc import Sequence
from pathlib import Path

from shared.api.deferral import DeferredItem
from shared.stores import database

#: The folder of the queries that a service's database needs for this store.
QUERIES = Path(__file__).parent


class DeferredRows:
    def __init__(self, opened: database.Database, service: str) -> None:
        self._database = opened
        self._service = service

    async def find_waiting(self, kind: str, ids: Sequence[str]) -> tuple[set[str], set[str]]:
        """Return those of the items that must wait, and those that were put aside and are due, which this caller now has for 10 minutes."""
        rows = await self._database.rows("find_waiting_items", kind, list(ids))
        claimed = {row["id"] for row in rows if row["is_claimed"]}
        return {row["id"] for row in rows} - claimed, claimed

    async def take_due(self, kind: str) -> str | None:
        """Return an item that was put aside and is due, which this caller now has for 10 minutes."""
        found: str | None = await self._database.value("take_due_item", kind)
        return found

    async def defer(self, kind: str, item_id: str, error: str, max_tries: int) -> int:
        """Return how often the item has failed."""
        return int(await self._database.value("defer_item", kind, item_id, error, max_tries))

    async def forget(self, kind: str, ids: Sequence[str]) -> None:
        await self._database.run("forget_deferred", kind, list(ids))

    async def count_stuck(self, money: Sequence[str]) -> dict[str, int]:
        """Count the items that rest, and all of these kinds. Forget those that don't exist any more."""
        await self._database.run("forget_gone_items")
        return {row["kind"]: row["items"] for row in await self._database.rows("count_stuck_items", list(money))}

    async def list(self, kind: str | None, most: int) -> tuple[DeferredItem, ...]:
        rows = await self._database.rows("list_deferred_items", kind, most)
        return tuple(
            DeferredItem(self._service, row["kind"], row["id"], row["tries"], row["next_at"], row["error"], row["since"]) for row in rows
        )

    async def retry(self, kind: str | None, item_id: str | None) -> int:
        """Return how many items are tried again."""
        return await self._database.run("retry_deferred_items", kind, item_id)
