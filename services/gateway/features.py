"""What a feature may use of the gateway, and what it may add. Nothing here names one.

If a feature needs more, ``Site`` gets a field. If it must act at another moment, ``Built`` gets a hook whose name says when.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from services.gateway import background_jobs
from services.gateway.http_api.answer_delivery import Answering
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.settings import GatewaySettings
from shared import errors, features
from shared.api.auth import Principal
from shared.api.gateway import ServedModel
from shared.api.tenant_events import TenantEvent
from shared.background.items import BackgroundItems
from shared.background.tasks import keep
from shared.node import Node
from shared.rpc.audit_reporting import AuditReporting
from shared.stores.database import Database, Transaction
from shared.types import TenantId

#: For what is old, of each feature.
_OLD_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What every feature may use."""

    settings: GatewaySettings
    node: Node
    database: Database
    items: BackgroundItems
    audit_reporting: AuditReporting
    #: PostgreSQL's time.
    now: Callable[[], datetime]
    runs: Answering
    #: The models that a caller may use, the default first.
    catalogue: Callable[[Principal], tuple[ServedModel, ...]]


class OnTenantEvent(Protocol):
    async def __call__(self, transaction: Transaction, tenant: TenantId, event: TenantEvent, about: str) -> None:
        """Note that something happened to the object ``about``, in the transaction in which it happens. What this raises ends that."""


async def _ignore(transaction: Transaction, tenant: TenantId, event: TenantEvent, about: str) -> None: ...
async def _keep(tenant: TenantId) -> None: ...
async def _no_old() -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a feature adds."""

    #: Objects whose methods are marked with ``serves``.
    served: Sequence[object] = ()
    routes: Sequence[HttpRoute] = ()
    #: Each runs as long as the gateway, and starts again if it fails.
    tasks: Mapping[str, Callable[[], Coroutine[Any, Any, Any]]] = field(default_factory=dict)
    #: Deletes what is old, each hour.
    delete_old: Callable[[], Awaitable[object]] = _no_old
    #: Deletes what it stores of a tenant that is erased, before the features that it needs do. Again, if it or a later one fails.
    erase: Callable[[TenantId], Awaitable[None]] = _keep
    on_tenant_event: OnTenantEvent = _ignore


@dataclass(frozen=True, slots=True)
class GatewayPart:
    build: Callable[[Site], Built]


class Features:
    """Those of one gateway. Parts that are made before them may hold its methods."""

    def __init__(self) -> None:
        #: Each after those that it needs.
        self._built: dict[str, Built] = {}

    def build(self, site: Site) -> None:
        self._built = {name: part.build(site) for name, part in features.parts("gateway.part", GatewayPart).items()}

    @property
    def served(self) -> Iterator[object]:
        return (each for built in self._built.values() for each in built.served)

    @property
    def routes(self) -> Iterator[HttpRoute]:
        return (route for built in self._built.values() for route in built.routes)

    def tasks(self) -> Iterator[Coroutine[Any, Any, Any]]:
        return (keep(name, task) for built in self._built.values() for name, task in built.tasks.items())

    async def delete_old(self) -> None:
        """Raises Unavailable after all, if one was not done in its time."""
        late = []
        for name, built in self._built.items():
            if not await background_jobs.attempt(f"retention of {name}", partial(_within, _OLD_SECONDS, built.delete_old)):
                late.append(name)
        if late:
            raise errors.Unavailable(f"what is old of {', '.join(late)} is not deleted yet")

    async def erase(self, tenant: TenantId, feature: str) -> None:
        """Raises UnknownMethod if this gateway lacks the feature."""
        if feature not in features.known():
            raise errors.UnknownMethod(f"this gateway has no feature {feature}")
        if (built := self._built.get(feature)) is not None:
            await built.erase(tenant)

    async def on_tenant_event(self, transaction: Transaction, tenant: TenantId, event: TenantEvent, about: str) -> None:
        for built in self._built.values():
            await built.on_tenant_event(transaction, tenant, event, about)


async def _within(seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work()
    except TimeoutError:
        raise errors.DeadlineExceeded(f"not done in {seconds:.0f} s") from None
