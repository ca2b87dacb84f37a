"""Elects the gateway that puts models on machines, and shares what it has learned with the others."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from services.gateway.models.placement_plan import Refusals
from shared import errors
from shared.stores import database
from shared.stores.cache import Cache
from shared.types import ModelName, NodeId

DeploymentSession = database.Leadership

_KEY = "deployments:refusals"
#: Without a leader, old reasons would mislead.
_KEPT_SECONDS = 30.0
_Shared = Mapping[ModelName, Mapping[NodeId, str]]
_decode = msgspec.json.Decoder(dict[ModelName, dict[NodeId, str]]).decode


class DeploymentStore:
    def __init__(self, opened: database.Database, cache: Cache) -> None:
        self._database, self._cache = opened, cache

    @asynccontextmanager
    async def leadership(self) -> AsyncIterator[DeploymentSession]:
        """Open a session for electing a gateway. Raises Unavailable."""
        try:
            async with self._database.leadership("deployments") as session:
                yield session
        except database.Refusal as error:
            # Without the error's text, which may quote a row.
            raise errors.Unavailable(f"PostgreSQL refused a statement: {type(error).__name__}") from error

    async def share(self, refusals: Refusals) -> None:
        """Raises Unavailable."""
        shared: dict[ModelName, dict[NodeId, str]] = {}
        for (node, name), reason in refusals.items():
            shared.setdefault(name, {})[node] = reason
        await self._cache.set(_KEY, msgspec.json.encode(shared), ttl_seconds=_KEPT_SECONDS)

    async def read_refusals(self) -> Refusals:
        """Return what the elected gateway was told. Raises Unavailable."""
        found = await self._cache.get(_KEY)
        shared: _Shared = {} if found is None else _decode(found)
        return {(node, name): reason for name, reasons in shared.items() for node, reason in reasons.items()}
