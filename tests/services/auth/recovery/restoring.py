"""An auth service whose database is copied while it is stopped, and later replaced by that older copy."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import msgspec

from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared.identity import node_keys
from shared.node import membership_file
from tests.servers import PostgresServer
from tests.services.auth.surroundings import Surroundings


class RestorableAuth:
    """Each ``running`` is one run of the service."""

    def __init__(self, settings: AuthSettings, postgres: PostgresServer, folder: Path) -> None:
        self.log_dir = folder / "recovery_log"
        self.settings = msgspec.structs.replace(settings, recovery_log_dir=self.log_dir, audit_anchor_file=folder / "anchors.jsonl")
        self.seed = node_keys.new_seed()
        self.state_file = folder / "auth.mesh"
        self._postgres = postgres

    @property
    def file(self) -> Path:
        (file,) = self.log_dir.glob("auth-*.jsonl")
        return file

    @asynccontextmanager
    async def running(self, seed: bytes | None = None) -> AsyncIterator[Surroundings]:
        """Run the service. With ``seed``, run it as another replica."""
        world = Surroundings(key=node_keys.NodeKey(seed or self.seed), state_file=self.state_file)
        if (kept := membership_file.load(self.state_file)) is not None:
            membership_file.load_into(world.trust, kept)
        async with AuthService.open(self.settings, world.as_node()) as service:
            world.service = service
            yield world

    async def copy_database(self) -> AuthSettings:
        """Return settings for a copy of the database. Nothing may be connected to the database."""
        url = await self._postgres.copy(self.settings.database_url)
        return msgspec.structs.replace(self.settings, database_url=url)

    async def execute(self, statement: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.settings.database_url, server_settings={"search_path": "auth", "aimesh.tenant": "*"})
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()
