"""Keeps how many scripted tool calls each build of a model got right."""

from collections.abc import Collection

from shared.stores.database import Database


class CheckStore:
    """Every method may raise Unavailable."""

    def __init__(self, opened: Database) -> None:
        self._database = opened

    async def record(self, builds: Collection[str], right_calls: int) -> None:
        await self._database.run("record_model_check", [*builds], right_calls)

    async def read(self) -> dict[str, int]:
        return {row["build"]: row["right_calls"] for row in await self._database.rows("list_model_checks")}
