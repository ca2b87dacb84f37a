"""What a feature may use of the gateway, and what it may add. Nothing here names one.

If a feature needs more, ``Site`` gets a field. If it must act at another moment, ``Built`` gets a hook whose name says when.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from services.gateway import background_jobs
from services.gateway.facts.request_record import RequestRow
from services.gateway.http_api.answer_delivery import Answering
from services.gateway.http_api.http_app import HttpApp, HttpRoute
from services.gateway.job_rules import JobRules
from services.gateway.openai_api.background_responses import Background, NoBackground
from services.gateway.payments.payment_provider import UsageMeters
from services.gateway.settings import GatewaySettings
from shared import errors, features
from shared.api.auth import Principal
from shared.api.gateway import Check, ServedModel
from shared.api.tenant_events import TenantEvent
from shared.background.items import BackgroundItems
from shared.background.tasks import keep
from shared.node import Node
from shared.rpc.audit_reporting import AuditReporting
from shared.stores.database import Database, Transaction
from shared.types import TenantId

T = TypeVar("T")

#: For what is old, of each feature.
_OLD_SECONDS = 300.0


class RequestRows(Protocol):
    async def write_within(self, transaction: Transaction, rows: Sequence[RequestRow]) -> None:
        """Write rows of requests together with what else the transaction writes. Rows that are there stay."""
        ...


class OnTenantEvent(Protocol):
    async def __call__(self, transaction: Transaction, tenant: TenantId, event: TenantEvent, about: str) -> None:
        """Note that something happened to the object ``about``, in the transaction in which it happens. What this raises ends that."""


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
    #: Of the payment provider; None without one, or without meters there.
    meters: UsageMeters | None
    #: The models that a caller may use, the default first.
    catalogue: Callable[[Principal], tuple[ServedModel, ...]]
    #: Build -> scripted tool calls that it got right, for what the list of models says. See ``model_builds``.
    right_calls: dict[str, int]
    requests: RequestRows
    #: Answers what jobs ask about their owners and models.
    owners: JobRules
    #: Waits until a large text of a tenant may be read.
    take_turn: Callable[[TenantId], AbstractAsyncContextManager[None]]
    #: Returns what serves these paths to lines of jobs. Only once the gateway is whole.
    serve_lines: Callable[[Collection[str]], HttpApp]
    on_tenant_event: OnTenantEvent
    #: Of the features that are built, by type. See ``offered``.
    offers: dict[type, Any] = field(default_factory=dict)

    def offered(self, kind: type[T]) -> T:
        """Return what a feature in ``needs`` offers."""
        found: T = self.offers[kind]
        return found


async def _ignore(transaction: Transaction, tenant: TenantId, event: TenantEvent, about: str) -> None: ...
async def _keep(tenant: TenantId) -> None: ...
async def _no_old() -> None: ...
async def _no_checks() -> tuple[Check, ...]:
    return ()


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
    #: What features that need this one may use.
    offers: Sequence[object] = ()
    #: Tells whether what it depends on works. ``shared.node`` allows 2 s for all checks together.
    checks: Callable[[], Awaitable[tuple[Check, ...]]] = _no_checks
    #: Runs responses that nobody waits for. Of one feature at most.
    background: Background | None = None


def _never(settings: GatewaySettings) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class GatewayPart:
    build: Callable[[Site], Built]
    #: Whether it takes what is settled from `usage_outbox`, which has rows only then. It deletes those that it has had.
    reads_outbox: Callable[[GatewaySettings], bool] = _never


def reads_outbox(settings: GatewaySettings) -> bool:
    return any(part.reads_outbox(settings) for part in features.parts("gateway.part", GatewayPart).values())


class Features:
    """Those of one gateway. Parts that are made before them may hold its methods."""

    def __init__(self) -> None:
        #: Each after those that it needs.
        self._built: dict[str, Built] = {}

    def build(self, site: Site) -> None:
        for name, part in features.parts("gateway.part", GatewayPart).items():
            self._built[name] = built = part.build(site)
            site.offers.update({type(each): each for each in built.offers})

    @property
    def served(self) -> Iterator[object]:
        return (each for built in self._built.values() for each in built.served)

    @property
    def routes(self) -> Iterator[HttpRoute]:
        return (route for built in self._built.values() for route in built.routes)

    @property
    def background(self) -> Background:
        return next((built.background for built in self._built.values() if built.background is not None), NoBackground())

    async def checks(self) -> tuple[Check, ...]:
        found = await asyncio.gather(*(built.checks() for built in self._built.values()))
        return tuple(check for checks in found for check in checks)

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
