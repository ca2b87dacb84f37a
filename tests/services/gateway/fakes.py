"""A fake mesh, fake workers and fake stores, with the interfaces of the real ones."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from services.gateway.billing.ledger import Ledger
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import (
    ExtendedHold,
    GrantedReservation,
    HoldExtension,
    InsufficientCredits,
    OpenReservation,
    ReservationRequest,
    Spending,
    WorkerClaim,
)
from services.gateway.billing.usage_recorder import UsageRecorder
from services.gateway.callers import Callers
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.facts import model_names, policies, tiers
from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.facts.guardrails import Guardrails
from services.gateway.facts.policies import Policies
from services.gateway.facts.request_record import RequestRow, RowsRefused
from services.gateway.facts.tiers import LimitRules
from services.gateway.http_api.http_app import HttpAccess, HttpApp, HttpRoute
from services.gateway.http_api.openapi import Reference
from services.gateway.http_api.rest_accounts import RestAccounts
from services.gateway.http_api.rest_inference import RestInference
from services.gateway.http_api.rest_usage import RestUsage
from services.gateway.http_api.rpc_routes import RpcRoutes
from services.gateway.idempotency.idempotency_keys import HeldKey, IdempotentRequest, KeyState, KeyUse, NewKeyUse
from services.gateway.idempotency.idempotency_store import IdempotencyStore
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from services.gateway.idempotency.recorder import Recorders
from services.gateway.idempotency.response_cache import ResponseCache
from services.gateway.idempotency.stored_items import StoredItems
from services.gateway.limits.quotas import Quotas
from services.gateway.openai_api.background_responses import Background, NoBackground
from services.gateway.openai_api.infill_route import InfillRoute
from services.gateway.openai_api.openai_embeddings import OpenAiEmbeddings
from services.gateway.openai_api.openai_moderations import OpenAiModerations
from services.gateway.openai_api.openai_routes import OpenAiRoutes
from services.gateway.openai_api.rerank_route import RerankRoute
from services.gateway.openai_api.token_routes import TokenRoutes
from services.gateway.requests.observed import RequestObservers
from services.gateway.requests.refused_requests import RefusedRequests
from services.gateway.requests.request_admission import RequestAdmission
from services.gateway.requests.runs import Runs
from services.gateway.requests.target_choice import TargetSearch
from services.gateway.requests.workers import Workers
from services.gateway.scheduling import routing
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.worker_records import WorkerStats
from services.gateway.scheduling.worker_starts import WorkerStarts
from services.gateway.servers import Servers
from shared import errors
from shared.api import auth, events, inference
from shared.api.embedding import Embedded
from shared.api.gateway import KeyBudget, ServedModel
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import Converted, Moderated, Receipt
from shared.api.ledger import MICRO, Account, Allowance, LedgerReport, ModelPrice
from shared.api.usage_report import ListRequests, LoggedRequest, UserUsage
from shared.background.deferred_memory import DeferredMemory
from shared.background.items import BackgroundItems
from shared.config_documents import PolicyDocument
from shared.identity import credentials, node_keys
from shared.identity.trust import Trust
from shared.node import lifecycle
from shared.protocol.directory import Announcement, Directory, ModelOffer, WorkerLoad
from shared.protocol.request_memory import RequestMemory
from shared.rpc import Handler, RpcCall
from shared.telemetry import Metrics
from shared.types import (
    Credential,
    FinishReason,
    KeyId,
    MicroCredits,
    ModelName,
    NodeId,
    Peer,
    RequestId,
    Role,
    TenantId,
    Tier,
    UserId,
    UserRole,
)
from shared.worker_pools import WorkerPool
from tests import feature_parts
from tests.services.gateway.fake_counters import AbsentCache, FakeCounters
from tests.services.gateway.pulled import PulledRuns

#: Their routes that only need what this gateway has.
OF_FEATURES = feature_parts.modules("gateway.fake_routes")
USER = UserId(UUID(int=1))
KEY_ID = KeyId(UUID(int=2))
KEY = Credential(credentials.PREFIX + "x" * 43 + credentials.checksum("x" * 43))
TOKEN = Credential("aaa.eyJleHAiOjk5OTk5OTk5OTl9.ccc")
OWNER = auth.Principal(USER, "ada", UserRole.USER, Tier.FREE, KEY_ID, "laptop")
PERSON = auth.Principal(USER, "ada", UserRole.USER, Tier.FREE)


def rpc_call(principal: auth.Principal) -> RpcCall:
    """Return the call that a handler gets with a request from this user."""
    call = RpcCall(Peer(Role.CLIENT, node_id(1)), deadline=0, credential=None, idempotency_key=None)
    call.found = principal
    return call


def no_servers(live: LiveConfiguration, rpc: Any) -> Servers:
    """Return those of a mesh without workers for them."""
    trust = Trust(node_keys.NodeKey(node_keys.new_seed()), Role.GATEWAY)
    return Servers(live, rpc, trust, "s" * 16)


def node_id(number: int) -> NodeId:
    return NodeId(f"U{number:055d}")


def announcement(
    number: int,
    *models: str,
    load: WorkerLoad | None = None,
    only_embeds: bool = False,
    only_moderates: bool = False,
    context_tokens: int = 2048,
    provider: str = "",
    abilities: tuple[str, ...] = (),
    **more: Any,
) -> Announcement:
    offers = tuple(
        ModelOffer(
            ModelName(name),
            context_tokens,
            only_embeds=only_embeds,
            provider=provider,
            only_moderates=only_moderates,
            abilities=abilities,
        )
        for name in models
    )
    return Announcement(Role.WORKER, node_id(number), "1", datetime(2026, 1, 1, tzinfo=UTC), offers, load or WorkerLoad(slots=4), **more)


_ALL_PROVIDERS = PolicyDocument(external=("*",))
#: Policies that allow everything.
ALLOWING = Policies({"mesh": _ALL_PROVIDERS, "default": _ALL_PROVIDERS})


class FakeDirectory(Directory):
    """The real directory with a stopped clock."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0)

    def worker(self, number: int, *models: str, load: WorkerLoad | None = None, **more: Any) -> None:
        self.apply_announcement(announcement(number, *models, load=load, **more), "nats")


@dataclass
class FakeWorker:
    """Generates its words, one token each; can fail or hang before any of them."""

    words: Sequence[str] = ("Hello", " world", "!")
    prompt_tokens: int = 7
    numerics: str = ""
    fails_with: errors.AimeshError | None = None
    fails_after: int = 0
    hangs_after: int | None = None
    received: list[inference.ProcessPrompt] = field(default_factory=list)
    #: Each call's deadline, in seconds.
    deadlines: list[float] = field(default_factory=list)
    is_hanging: asyncio.Event = field(default_factory=asyncio.Event)
    left_early: int = 0

    async def run(self, prompt: inference.ProcessPrompt | inference.Conversion) -> AsyncIterator[Any]:
        if isinstance(prompt, inference.Conversion):
            yield inference.ConvertedPart()
            yield Converted()
            return
        for position, word in enumerate(self.words):
            if self.fails_with is not None and position == self.fails_after:
                raise self.fails_with
            if self.hangs_after == position:
                self.is_hanging.set()
                await asyncio.Event().wait()
            yield inference.Chunk(word, (position + 1,))
        yield GenerationEnd(FinishReason.STOP, Usage(self.prompt_tokens, len(self.words)))


class _Answer:
    end: Any

    def __init__(
        self,
        items: AsyncIterator[Any],
        accepted: inference.PromptAccepted | None = None,
        ends: tuple[type, ...] = (GenerationEnd, Embedded, Moderated, Converted),
    ) -> None:
        self._items = items
        self._ends = ends
        self.accepted = accepted

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for item in self._items:
            if isinstance(item, self._ends):
                self.end = item
            else:
                yield item


class FakeRpc:
    """Answers calls with ``answers`` by method name, and prompts with ``workers`` by node."""

    def __init__(self) -> None:
        self.workers: dict[NodeId, FakeWorker] = {}
        self.answers: dict[str, Callable[[Any], Awaitable[Any]]] = {}
        #: Streams other than prompts, by method name; the last item is the end.
        self.streams: dict[str, Callable[[Any], AsyncIterator[Any]]] = {}
        self.called: list[str] = []
        self.credentials: list[Credential | None] = []
        self.asked_nodes: list[NodeId | None] = []
        self.changes: asyncio.Queue[auth.Change | errors.AimeshError] = asyncio.Queue()

    async def call(
        self, method: Any, request: Any, *, to: NodeId | None = None, deadline_seconds: float = 10, credential: Credential | None = None
    ) -> Any:
        self.called.append(method.name)
        self.credentials.append(credential)
        self.asked_nodes.append(to)
        if method.name not in self.answers:
            raise errors.NotReachable(f"nobody serves {method.name}")
        return await self.answers[method.name](request)

    @asynccontextmanager
    async def stream(
        self, method: Any, request: Any, *, to: NodeId | None = None, deadline_seconds: float = 300, credential: Credential | None = None
    ) -> AsyncIterator[Any]:
        if method is auth.watch_changes:
            yield _Answer(self._changes())
            return
        if method.name in self.streams:
            self.called.append(method.name)
            self.credentials.append(credential)
            yield _Answer(self.streams[method.name](request), ends=(method.end,))
            return
        if to is None:
            raise errors.NotReachable(f"nobody serves {method.name}")
        assert credential is None, "a worker never sees whose prompt it runs"
        worker = self.workers[to]
        worker.received.append(request)
        worker.deadlines.append(deadline_seconds)
        answer = _Answer(worker.run(request), inference.PromptAccepted(worker.prompt_tokens, worker.numerics))
        try:
            yield answer
        finally:
            worker.left_early += not hasattr(answer, "end")

    async def _changes(self) -> AsyncIterator[auth.Change]:
        while True:
            change = await self.changes.get()
            if isinstance(change, errors.AimeshError):
                raise change
            yield change


class FakeLedgerStore(LedgerStore):
    """Grants what the gateway requests; can refuse, or grant less."""

    def __init__(self) -> None:
        self.reserved: list[ReservationRequest] = []
        self.extended: list[HoldExtension] = []
        #: What running requests hold.
        self.held_micro = MicroCredits(0)
        #: The most tokens to grant per answer.
        self.most_tokens: int | None = None
        #: Extensions wait until it is set.
        self.may_extend = asyncio.Event()
        self.may_extend.set()
        self.refuses: InsufficientCredits | None = None
        self.away = False
        self.claims: list[WorkerClaim] = []
        self.over_ceiling: frozenset[str] = frozenset()
        self.clock_is_ahead = timedelta()
        self.prices: tuple[Price, ...] = (Price(1, ModelPrice(None, MicroCredits(MICRO), MicroCredits(2 * MICRO))),)

    async def record_claims(self, claims: Sequence[WorkerClaim]) -> set[RequestId]:
        if self.away:
            raise errors.Unavailable("PostgreSQL does not answer")
        self.claims += claims
        return {claim.request_id for claim in claims}

    async def read_clock(self) -> datetime:
        return datetime.now(UTC) + self.clock_is_ahead

    async def list_prices(self, *, history: bool = False) -> tuple[Price, ...]:
        return self.prices

    async def verify(self, *, grace_seconds: float, full: bool = False) -> LedgerReport:
        return LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(0), 0, 0, 0, 0)

    async def extend_leases(self, requests: Sequence[RequestId], seconds: float) -> None:
        """Do nothing: on a slow machine, a test may run until the first heartbeat."""

    async def read_account(self, owner: TenantId, spending: Spending) -> Account:
        return Account(self.held_micro, self.held_micro, spending.overage_micro)

    async def read_key_spending(self, owner: TenantId, key: KeyId) -> tuple[MicroCredits, MicroCredits]:
        return MicroCredits(0), self.held_micro

    async def drop_lost_attempts(self, *, grace_seconds: float, most: int) -> None: ...

    async def list_overdue(self, *, grace_seconds: float, most: int) -> tuple[OpenReservation, ...]:
        return ()

    async def reserve(
        self, wanted: Sequence[ReservationRequest], *, gateway: NodeId, lease_seconds: float
    ) -> list[GrantedReservation | InsufficientCredits]:
        if self.away:
            raise errors.Unavailable("PostgreSQL does not answer")
        self.reserved += wanted
        return [
            self.refuses or GrantedReservation(min(one.max_tokens, self.most_tokens or one.max_tokens), over_ceiling=self.over_ceiling)
            for one in wanted
        ]

    async def extend_holds(self, extensions: Sequence[HoldExtension]) -> list[ExtendedHold]:
        self.extended += extensions
        await self.may_extend.wait()
        if self.away:
            raise errors.Unavailable("PostgreSQL does not answer")
        return [ExtendedHold(min(one.max_tokens, self.most_tokens or one.max_tokens)) for one in extensions]


@dataclass
class FixedConfig:
    config: ConfigSnapshot = field(default_factory=ConfigSnapshot)


@dataclass
class FakeJournal:
    """A journal in memory; can be full."""

    rows: list[RequestRow] = field(default_factory=list)
    full: bool = False

    def read(self) -> list[RequestRow]:
        return list(self.rows)

    def append(self, rows: Sequence[RequestRow]) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.rows += rows

    def clear(self) -> None:
        self.rows.clear()

    def probe(self) -> None:
        self.append(())


@dataclass
class FakeStore:
    """Keeps rows like PostgreSQL; can be unavailable."""

    rows: dict[UUID, RequestRow] = field(default_factory=dict)
    away: bool = False
    #: A statement with one of these rows fails.
    refuses: set[UUID] = field(default_factory=set)
    writes: int = 0
    #: Writes hang until it is set.
    stalled: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.stalled.set()

    async def write_requests(self, rows: Sequence[RequestRow]) -> None:
        self.writes += 1
        await asyncio.sleep(0)
        await self.stalled.wait()
        if self.away:
            raise errors.Unavailable("PostgreSQL does not answer")
        if self.refuses & {row.id for row in rows}:
            raise RowsRefused("CheckViolationError (23514)")
        for row in rows:
            self.rows.setdefault(row.id, row)

    async def read_usage(self, user_id: UserId) -> UserUsage:
        mine = [row for row in self.rows.values() if row.user_id == user_id]
        return UserUsage(user_id, len(mine), sum(row.tokens_used for row in mine))

    @property
    def only_row(self) -> RequestRow:
        (row,) = self.rows.values()
        return row


class FakeReports:
    """The request log of one caller."""

    def __init__(self) -> None:
        self.rows: tuple[LoggedRequest, ...] = ()
        self.received: list[ListRequests] = []
        self.ratings: dict[RequestId, int] = {}

    async def requests(self, caller: auth.Principal, request: ListRequests) -> tuple[LoggedRequest, ...]:
        self.received.append(request)
        return tuple(row for row in self.rows if row.user_id == caller.user_id)

    async def rate(self, caller: auth.Principal, request: RequestId, rating: int) -> None:
        if not any(row.id == request and row.user_id == caller.user_id for row in self.rows):
            raise errors.NotFound("you have no answered request with this id")
        self.ratings[request] = rating


class FakeAccounts:
    """Credits and budgets that a test sets."""

    def __init__(self) -> None:
        allowance = Allowance(100_000, 2_500, 500, datetime(2026, 4, 1, tzinfo=UTC))
        self.account = Account(MicroCredits(12_500_000), MicroCredits(500_000), MicroCredits(0), allowance)
        self.budget: KeyBudget | None = None
        self.away = False

    async def account_of(self, caller: auth.Principal) -> Account:
        if self.away:
            raise errors.Unavailable("PostgreSQL is down", hint="try again")
        return self.account

    async def find_key_budget(self, caller: auth.Principal) -> KeyBudget | None:
        return self.budget


class FakeKeys(IdempotencyStore):
    """Idempotency keys of a single gateway that never dies."""

    def __init__(self) -> None:
        self.held: dict[tuple[UserId, str], HeldKey] = {}

    async def claim(
        self, request: IdempotentRequest, fingerprint: bytes, node: NodeId, *, lease_seconds: float, dead: RequestId | None = None
    ) -> KeyUse | None:
        if (request.owner, request.key) in self.held:
            return None
        self.held[request.owner, request.key] = HeldKey(fingerprint, request.request_id, KeyState.RUNNING, None, node)
        return NewKeyUse(request.seed)

    async def find(self, owner: UserId, key: str) -> HeldKey | None:
        return self.held.get((owner, key))

    async def end(self, request_id: RequestId, state: KeyState, answer: bytes | None) -> None:
        self.held |= {at: replace(one, state=state, answer=answer) for at, one in self.held.items() if one.request_id == request_id}

    async def free(self, request_id: RequestId) -> None:
        self.held = {at: one for at, one in self.held.items() if one.request_id != request_id}

    async def abandon(self, request_id: RequestId) -> None:
        """Not needed: this gateway never dies."""

    async def withdraw(self, owner: UserId, key: str) -> None:
        """Not needed: there is no other gateway to notify."""


class RunningService:
    """A whole gateway with a fake mesh and store, and one worker that serves smollm2."""

    _reference: ClassVar[tuple[HttpRoute, ...]] = ()

    def __init__(
        self,
        recorder: UsageRecorder,
        store: FakeStore,
        ledger: Ledger,
        books: FakeLedgerStore,
        recorders: Recorders,
        *,
        tasks: asyncio.TaskGroup,
        free: int = 100,
    ) -> None:
        self.ledger = ledger
        self.books = books
        self.store = store
        self.recorder = recorder
        self.rpc = FakeRpc()
        self.directory = FakeDirectory()
        self.worker = FakeWorker()
        self.add_worker(1, self.worker, "smollm2")
        self.metrics = Metrics("gateway")
        self.published: list[events.Event] = []
        self.counters = FakeCounters()
        self.names = model_names.ModelNames({"llama3": "smollm2"}, None)
        per_hour = {Tier.FREE: free, Tier.PRO: 1000}
        plans = {tier: replace(tiers.NO_LIMITS, requests_per_hour=most) for tier, most in per_hour.items()}
        self.config = ConfigSnapshot(names=self.names, limits=LimitRules(plans), policies=ALLOWING)
        self.quotas = Quotas(self.counters, lambda: self.config.limits, self.metrics)
        self.pools: tuple[WorkerPool, ...] = ()
        self.dispatch = Dispatch(
            self.directory, random.Random(1), metrics=self.metrics, worker_stats=WorkerStats(starts=WorkerStarts(self))
        )
        self.workers = Workers(self.rpc, self.dispatch)
        self.callers = Callers(self.rpc)
        self.reports = FakeReports()
        self.accounts = FakeAccounts()
        self.memory = RequestMemory()
        search = TargetSearch(
            ledger=ledger,
            dispatch=self.dispatch,
            directory=self.directory,
            source=self,
            prompt_hash_secret="s" * 16,
        )
        self.admission = RequestAdmission(
            search=search, quotas=self.quotas, tasks=tasks, read_guardrails=_no_guardrails, metrics=self.metrics
        )
        self.recorders = recorders
        self.idempotency = IdempotentRequests(FakeKeys(), recorders, node_id(99), items=new_items(), secret="s" * 16, most_seconds=30)
        self.runs = self.new_runs()
        self.background: Background = NoBackground()
        self.items = StoredItems(AbsentCache(), self, secret="s" * 16, most_bytes=2**20)
        #: The gateway's own methods, by name.
        self.own: dict[str, Handler] = {}
        #: Called with each of their replies.
        self.finish: Callable[[Any], Awaitable[Any]] = _unchanged
        self.rpc.answers |= {"auth.validateApiKey": self._validate, "auth.identify": self._identify}

    @property
    def pulled(self) -> PulledRuns:
        return PulledRuns(self.runs)

    def new_runs(
        self,
        admission: RequestAdmission | None = None,
        workers: Workers | None = None,
        responses: ResponseCache | None = None,
        idempotency: IdempotentRequests | None = None,
        **observers: Any,
    ) -> Runs:
        following = RequestObservers(publish=self.published.append, **observers)
        return Runs(
            admission or self.admission,
            workers or self.workers,
            self.recorder,
            following,
            idempotency or self.idempotency,
            most_seconds=30,
            responses=responses,
        )

    def add_worker(self, number: int, worker: FakeWorker, *models: str, load: WorkerLoad | None = None, **more: Any) -> None:
        self.rpc.workers[node_id(number)] = worker
        self.directory.worker(number, *models, load=load, **more)

    def app(self, **access: Any) -> HttpApp:
        parts = (
            RestAccounts(self.rpc),
            RestInference(self.runs),
            RestUsage(self.store, self.reports, self.quotas, self.accounts),
            OpenAiRoutes(self.runs, self._served, self.items, self.background),
            OpenAiModerations(self.runs),
            TokenRoutes(self.runs, self.items),
            RerankRoute(self.runs),
            *(kind(self.runs) for kind in (InfillRoute, OpenAiEmbeddings)),
        )
        of_features = (route for part in OF_FEATURES for route in part.routes(self.runs, self._served))
        routes = (*(route for part in parts for route in part.routes()), *of_features)
        rpc_routes = RpcRoutes(self.rpc, lambda name, _caller: self.own[name], node_id(99), self._finish).routes()
        # Rendering the reference takes 50 ms, and it is the same for all services.
        if not RunningService._reference:
            RunningService._reference = Reference(routes).routes()
        every = (*routes, *rpc_routes, *RunningService._reference)
        refused = RefusedRequests(self.recorder, self.quotas, self.metrics, self.ledger.database_clock.now)
        access = {"identify_person": self.callers.identify_person} | access
        allowed = HttpAccess(identify=self.callers.identify, quotas=self.quotas, refused=refused, **access)
        return HttpApp(every, allowed, self.metrics, memory=self.memory)

    async def _finish(self, reply: Any) -> Any:
        return await self.finish(reply)

    def _served(self, caller: auth.Principal) -> tuple[ServedModel, ...]:
        return routing.catalogue(policies.open_to(caller.tenant_id, policies.Policy(), self.directory.usable(Role.WORKER)), self.names)

    @staticmethod
    async def _validate(request: auth.ValidateApiKey) -> auth.Principal:
        if request.api_key != KEY:
            raise errors.NotAuthenticated("unknown key")
        return OWNER

    @staticmethod
    async def _identify(request: auth.Identify) -> auth.Principal:
        if request.credential != TOKEN:
            raise errors.NotAuthenticated("unknown token")
        return PERSON


def new_items() -> BackgroundItems:
    return BackgroundItems(DeferredMemory(), Metrics("gateway"))


def new_recorder(store: Any, journal: FakeJournal | None = None, **more: int) -> UsageRecorder:
    metrics = Metrics("gateway")
    return UsageRecorder(store, journal or FakeJournal(), metrics.usage_queue_rows, metrics.settle_failures, **more)


@asynccontextmanager
async def running_service(**more: Any) -> AsyncIterator[RunningService]:
    store = FakeStore()
    books = FakeLedgerStore()
    ledger = Ledger(books, FixedConfig(), node_id(99), Metrics("gateway"), items=new_items())
    async with (
        new_recorder(store).running() as recorder,
        ledger.running(recorder, store.write_requests, _no_receipts),
        Recorders().running() as recorders,
        lifecycle.background() as tasks,
    ):
        yield RunningService(recorder, store, ledger, books, recorders, tasks=tasks, **more)


async def _no_guardrails(_revision: int, _caller: auth.Principal) -> Guardrails:
    raise AssertionError("the configuration of these gateways has one revision")


async def _no_receipts(_reservations: Sequence[OpenReservation]) -> dict[RequestId, Receipt]:
    return {}


async def _unchanged(reply: Any) -> Any:
    return reply
