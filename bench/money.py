"""Measure how many webhooks of a payment provider a gateway handles. The provider answers at once."""

import asyncio
import random
import statistics
import time
from functools import partial
from uuid import uuid4

from bench import report
from bench.report import Options, Rows
from services.gateway import store
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from shared.types import TenantId
from tests.servers import PostgresServer, running
from tests.services.gateway.payments import shop as shops
from tests.services.gateway.payments.memory_provider import MemoryProvider
from tests.services.gateway.payments.shop import Shop

EVENTS, AT_ONCE = 1000, 10


async def _measure_webhooks(rows: Rows, _shared: None, _options: Options) -> None:
    with running(partial(PostgresServer, durable=True)) as postgres:
        async with postgres.plain_role(postgres.url()) as url, store.opened(url) as opened:
            live, provider = LiveConfiguration(ConfigStore(opened)), MemoryProvider()
            await live.reload()
            async with shops.selling(Shop(opened, live, url), "stripe", provider) as shop:
                kept, handled = [], []
                for _ in range(3):
                    sent = await _paid_credits(shop, provider)
                    began = time.perf_counter()
                    for at in range(0, len(sent), AT_ONCE):
                        await asyncio.gather(*(shops.deliver(shop, signed) for signed in sent[at : at + AT_ONCE]))
                    kept.append(len(sent) / (time.perf_counter() - began))
                    began = time.perf_counter()
                    await shop.billing.work()
                    handled.append(EVENTS / (time.perf_counter() - began))
                assert (await shop.ledger.verify(grace_seconds=1)).findings == ()
                credited = await shop.fetch("SELECT sum(balance_micro)::bigint FROM accounts")
    assert credited == 3 * EVENTS * 25_000_000, f"{credited} micro-credits"
    rows.alone("webhooks verified and kept, 10 % of them repeats", statistics.median(kept), "events/s", at_least=100)
    rows.alone("events out of order, each of another payment, handled", statistics.median(handled), "events/s", at_least=100)


async def _paid_credits(shop: Shop, provider: MemoryProvider) -> list[tuple[bytes, str]]:
    """Return an event for each of many payments, and some again, in any order."""
    sessions = [shops.session_of(await shops.top_up(shop, TenantId(uuid4()))) for _ in range(EVENTS)]
    for session in sessions:
        provider.pay(session)
    signed = [provider.signed(session) for session in sessions]
    sent = [*signed, *random.sample(signed, EVENTS // 10)]
    random.shuffle(sent)
    return sent


if __name__ == "__main__":
    report.run(__doc__, {"webhooks": _measure_webhooks}, limits=(300.0, 90.0), seconds=(8.0, 3.0))
