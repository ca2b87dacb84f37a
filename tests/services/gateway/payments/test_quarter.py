"""A quarter of 40 customers who pay by Stripe, by Paddle or by invoice, with forged objects, kills and restores, ends with exact books.

It is drawn from QUARTER_SEED: fixed in `make test`, which simulates a month and a half of a few customers, and random at night.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest

from services.gateway.payments import payment_provider, stripe_provider
from services.gateway.payments.billing_store import BillingRows
from shared.api.billing import InvoicePurpose
from shared.api.notices import PaymentLate
from shared.types import MicroCredits, RequestId, TenantId
from tests import tiers
from tests.servers import PostgresServer
from tests.services.gateway.payments import paddle_server, postgres_clock, quarter_judge, stripe_server
from tests.services.gateway.payments.quarter import Quarter, Scale, VirtualTime, Way
from tests.services.gateway.payments.quarter_ways import Manual, Paddle, Stripe, VirtualStripe
from tests.services.gateway.recovery.restoring import RestorableGateway

#: The first months end about the restore.
SHORT = Scale(customers=7, days=46, restores=((34, 38),))
RESTORES = ((34, 38), (63, 68))
QUARTER = {
    "manual": Scale(customers=13, days=92, restores=RESTORES),
    "stripe": Scale(customers=14, days=92, restores=RESTORES),
    "paddle": Scale(customers=13, days=92, restores=RESTORES),
}


@pytest.fixture
def stored(plain_url: str, valkey_url: str, postgres: PostgresServer, tmp_path: Path) -> RestorableGateway:
    return RestorableGateway(plain_url, valkey_url, postgres, tmp_path)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    clock = VirtualTime()
    postgres_clock.patch_sessions(monkeypatch)
    monkeypatch.setattr(stripe_server, "time", clock)
    monkeypatch.setattr(paddle_server, "time", clock)
    monkeypatch.setattr(paddle_server, "datetime", clock.datetimes)
    monkeypatch.setattr(stripe_provider, "datetime", clock.datetimes)
    monkeypatch.setattr(payment_provider, "READ_SECONDS", 1.0)
    monkeypatch.setattr(payment_provider, "WRITE_SECONDS", 1.0)
    return clock


@asynccontextmanager
async def opened(name: str, clock: VirtualTime) -> AsyncIterator[Way]:
    if name == "manual":
        yield Manual()
    elif name == "paddle":
        async with paddle_server.running() as paddle:
            yield Paddle(paddle, clock)
    else:
        async with stripe_server.running(VirtualStripe) as fake:
            yield Stripe(fake, clock)


async def simulate(stored: RestorableGateway, clock: VirtualTime, name: str, scale: Scale, patch: pytest.MonkeyPatch) -> list[str]:
    """Return what is wrong at the end."""
    seed = tiers.seed("QUARTER_SEED")
    print(f"QUARTER_SEED={seed}")
    async with opened(name, clock) as way:
        quarter = Quarter(stored, way, scale, seed, patch, now=clock.set)
        try:
            judged = await quarter.run()
        finally:
            await quarter.stop()
    accounts = judged.accounts.values()
    proved = {
        "kills": quarter.killer.kills, "restores": quarter.restores, "mails": len(quarter.auth.mails),
        "credits": sum(one.kept for one in accounts), "usage": sum(one.owed for one in accounts),
        "tokens": sum(sum(one.paid_tokens.values()) for one in accounts), "taken back": way.taken_back,
    }  # fmt: skip
    print(f"{name}: {proved}, {len(quarter.documents)} documents")
    too_little = (f"there are no {what}: this proves too little" for what, count in proved.items() if not count)
    wrong = [*quarter_judge.violations(judged), *too_little]
    print("\n".join(wrong))
    return wrong


@pytest.mark.parametrize("way", [*QUARTER])
async def test_a_month_of_a_few_customers_is_exact(
    stored: RestorableGateway, clock: VirtualTime, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await simulate(stored, clock, way, SHORT, monkeypatch) == []


@pytest.mark.nightly("long")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("way", [*QUARTER])
async def test_a_quarter_of_forty_customers_is_exact(
    stored: RestorableGateway, clock: VirtualTime, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await simulate(stored, clock, way, QUARTER[way], monkeypatch) == []


# --- the judge sees ----------------------------------------------------------------------------------------------------


def credits_given_twice(patch: pytest.MonkeyPatch) -> None:
    give = BillingRows.give_credit

    async def twice(rows: BillingRows, transfer: RequestId, *args: Any) -> None:
        await give(rows, transfer, *args)
        await give(rows, RequestId(uuid5(transfer, "again")), *args)

    patch.setattr(BillingRows, "give_credit", twice)


def refund_ignored(patch: pytest.MonkeyPatch) -> None:
    give = BillingRows.give_credit

    async def only_give(rows: BillingRows, transfer: RequestId, owner: TenantId, micro: MicroCredits, note: str) -> None:
        if micro > 0:
            await give(rows, transfer, owner, micro, note)

    patch.setattr(BillingRows, "give_credit", only_give)


def period_billed_again(patch: pytest.MonkeyPatch) -> None:
    """Its charge has a new id after a restore."""
    add = BillingRows.add_invoice

    async def anew(*args: Any, order_id: UUID, **more: Any) -> Any:
        return await add(*args, order_id=uuid4() if args[-1] is InvoicePurpose.OVERAGE else order_id, **more)

    patch.setattr(BillingRows, "add_invoice", anew)


def mail_twice(patch: pytest.MonkeyPatch) -> None:
    notify = BillingRows.notify

    async def twice(rows: BillingRows, owner: TenantId, subject: str, notice: PaymentLate) -> None:
        await notify(rows, owner, subject, notice)
        await notify(rows, owner, f"{subject}/again", notice)

    patch.setattr(BillingRows, "notify", twice)


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (credits_given_twice, "credits: "),
        (refund_ignored, "credits: "),
        (period_billed_again, "usage: "),
        (mail_twice, "mails: "),
    ],
)
async def test_the_judge_sees_a_fault(
    stored: RestorableGateway, clock: VirtualTime, fault: Callable[[pytest.MonkeyPatch], None], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    assert [what for what in await simulate(stored, clock, "manual", SHORT, monkeypatch) if seen in what]
