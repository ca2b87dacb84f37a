"""Elects the gateway that puts models on machines, and shares what it has learned with the others."""

from collections.abc import AsyncIterator, Iterable, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass

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
#: A machine, and the digest of a version.
Order = tuple[NodeId, str]
_decode = msgspec.json.Decoder(dict[ModelName, dict[NodeId, str]]).decode


@dataclass(frozen=True, slots=True)
class Orders:
    """The versions that machines have, or are to get, as deployments say."""

    all: Set[Order]
    #: Of these: to be written, if they aren't.
    new: Set[Order]
    #: Those that are there.
    machines: Set[NodeId]
    #: What deployments want, also on machines that are away.
    digests: Set[str]


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

    async def write_orders(self, session: DeploymentSession, orders: Orders) -> None:
        """Let machines read what is ordered there, and nothing else. Raises Unavailable."""
        async with session.transaction() as transaction:
            await transaction.run("write_model_orders", *_columns(orders.new))
            await transaction.run("drop_model_orders", *_columns(orders.all), list(orders.machines), list(orders.digests))

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


def _columns(orders: Iterable[Order]) -> tuple[list[NodeId], list[str]]:
    found = sorted(orders)
    return [node for node, _ in found], [digest for _, digest in found]
