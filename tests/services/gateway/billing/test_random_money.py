"""Random targets, failures, callers who leave, and gateways that die: the ledger balances, and counts what providers charged."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg

from services.gateway import store
from services.gateway.billing.ledger import Ledger
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import OpenReservation
from services.gateway.facts import model_names, model_routes, upstream_prices
from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.idempotency.recorder import Recorders
from services.gateway.store import GatewayStore
from shared import context, errors
from shared.api import inference
from shared.api.gateway import InferenceRequest
from shared.api.generation import GenerationEnd
from shared.api.inference import Receipt
from shared.config_documents import RouteDocument, TargetDocument, UpstreamPriceDocument
from shared.node import lifecycle
from shared.stores.database import Database
from shared.telemetry import Metrics
from shared.types import ModelName, RequestId
from tests import tiers
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, FakeLedgerStore, FakeStore, FakeWorker, FixedConfig, RunningService, node_id

MODELS = ("local", "cloud", "other")
#: A request costs 1,000 micro-credits, and each token 5.
PRICE = upstream_prices.compiled(UpstreamPriceDocument(input=0, output=5, request="0.001"))
#: Without lost workers: the gateway would wait for them.
FAILURES = (None, None, None, errors.ModelCrashed("segfault"), errors.Unavailable("refused"), errors.Overloaded("full"))


class Stub(FakeWorker):
    """Counts what its provider charges."""

    asked_micro = 0

    def __init__(self) -> None:
        super().__init__()
        #: Tokens sent, by request.
        self.sent: dict[RequestId, int] = {}

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        self.asked_micro += 1_000
        async for item in super().run(prompt):
            if isinstance(item, inference.Chunk):
                self.asked_micro += 5
                self.sent[prompt.request_id] = self.sent.get(prompt.request_id, 0) + 1
            yield item


@dataclass
class Gateway:
    service: RunningService
    database: Database
    url: str
    stubs: dict[str, Stub]

    def use(self, rng: random.Random) -> None:
        """Configure a random route, and give the stubs random failures."""
        models = rng.sample(MODELS, rng.randint(1, 3))
        targets = tuple(
            TargetDocument(name=f"to-{model}", model=model, share=None if number else 100, order=number or None, daily_ceiling="50")
            for number, model in enumerate(models)
        )
        route = RouteDocument(targets=targets, price=rng.choice(["route", "target"]))
        names = model_names.ModelNames({}, None, routes={"assistant": model_routes.compile_route("assistant", 1, route)})
        config = self.service.config
        prices = {ModelName(model): PRICE for model in MODELS}
        self.service.config = ConfigSnapshot(names=names, limits=config.limits, policies=config.policies, upstream_prices=prices)
        for stub in self.stubs.values():
            stub.fails_with, stub.fails_after = rng.choice(FAILURES), rng.randint(0, 4)

    async def ask(self, *, leaves_after: int | None, dies_after: int | None, streamed: bool) -> None:
        """Read an answer. The caller may leave, or the gateway may die, before its end."""
        context.start()
        request = InferenceRequest(prompt="hi", model=ModelName("assistant"), max_tokens=50)
        dies = dies_after is not None
        read = 0
        # A gateway that dies writes no row.
        more: dict[str, Any] = {"streamed": streamed, "continues_elsewhere": lambda: dies}
        with suppress(errors.AimeshError, asyncio.CancelledError):
            async with self.service.pulled.run(OWNER, request, seconds=10, **more) as running:
                async for _ in running:
                    read += 1
                    if read == dies_after:
                        await self._wait_for_claim(running.request_id)
                        raise asyncio.CancelledError
                    if read == leaves_after:
                        return

    async def _wait_for_claim(self, request: RequestId) -> None:
        """Wait until the ledger knows which worker runs the request."""
        claimed = f"SELECT count(*) FROM reservations WHERE request_id = '{request}' AND cardinality(workers) > 0"
        while not await self.number(claimed):  # noqa: ASYNC110 - another task writes it
            await asyncio.sleep(0.01)

    async def number(self, sql: str) -> int:
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
        try:
            return int(await connection.fetchval(sql) or 0)
        finally:
            await connection.close()

    async def settle_dead_requests(self) -> None:
        """Settle them as the next gateway does, with the workers' receipts."""
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
        try:
            await connection.execute("UPDATE reservations SET lease_until = now() - interval '1 h' WHERE state = 'reserved'")
        finally:
            await connection.close()
        ledger = self.service.admission.search.ledger
        ledger._healthy_since = 0.0
        while await self.number("SELECT count(*) FROM reservations WHERE state = 'reserved'"):
            # Each sweep settles one batch.
            await ledger.sweep(GatewayStore(self.database).write_requests, self._find_receipts)

    async def _find_receipts(self, overdue: Sequence[OpenReservation]) -> dict[RequestId, Receipt]:
        found = {}
        for request in (reservation.request_id for reservation in overdue):
            sent = sum(stub.sent.get(request, 0) for stub in self.stubs.values())
            found[request] = Receipt(request, 7, 0, sent, "cancelled", datetime.now(UTC), 0.1, credited_tokens=sent)
        return found


@asynccontextmanager
async def running_gateway(url: str) -> AsyncIterator[Gateway]:
    async with store.opened(url) as database:
        requests, ledger_store = GatewayStore(database), LedgerStore(database)
        await ledger_store.ensure_default_price(1_000_000, 2_000_000)
        ledger = Ledger(ledger_store, FixedConfig(), node_id(99), Metrics("gateway"), items=fakes.new_items())
        async with (
            fakes.new_recorder(requests).running() as recorder,
            ledger.running(recorder, requests.write_requests, fakes._no_receipts),
            Recorders().running() as recorders,
            lifecycle.background() as tasks,
        ):
            service = RunningService(recorder, FakeStore(), ledger, FakeLedgerStore(), recorders, tasks=tasks, free=10**9)
            ledger._source = service
            stubs = {model: Stub() for model in MODELS}
            for number, (model, stub) in enumerate(stubs.items()):
                service.add_worker(30 + number, stub, model, provider="" if model == "local" else "acme")
            yield Gateway(service, database, url, stubs)


async def test_upstream_money_is_what_the_providers_counted_and_the_ledger_adds_up(plain_url: str) -> None:
    rng, rounds = random.Random(tiers.seed("MONEY_SEED")), tiers.volume(1_000)
    async with running_gateway(plain_url) as gateway:
        for _ in range(rounds):
            gateway.use(rng)
            dies_after = rng.choice([None, None, None, 1, 2])
            if dies_after is not None:
                for stub in gateway.stubs.values():
                    stub.fails_with = None
            await gateway.ask(
                leaves_after=rng.choice([None, None, 1, 2]), dies_after=dies_after, streamed=dies_after is not None or rng.random() < 0.5
            )
        await gateway.settle_dead_requests()
        ledger = gateway.service.admission.search.ledger
        report = await ledger.verify(full=True)
        assert (report.findings, report.drift_micro, report.sum_micro, report.reserved_drift_micro) == ((), 0, 0, 0)
        assert await gateway.number("SELECT count(*) FROM request_logs") == rounds, "one row for each, also of a dead gateway"
        asked = sum(stub.asked_micro for model, stub in gateway.stubs.items() if model != "local")
        assert await gateway.number("SELECT sum(upstream_micro) FROM request_logs") == asked
        assert await gateway.number("SELECT sum(spent_micro) FROM target_spending") == asked
        assert await gateway.number("SELECT sum(reserved_micro) FROM target_spending") == 0
        assert asked > 1_000 * rounds // 5
