"""What settlements and reminders add to the outbox of notices, and how auth learns of it; on a real PostgreSQL.

A token costs 1 micro-credit here.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from services.gateway import store
from services.gateway.billing.reservations import NO_PLAN, GrantedReservation, InsufficientCredits, Spending
from services.gateway.payments.billing_store import BillingStore
from services.gateway.payments.notice_outbox import NoticeOutbox
from shared import errors
from shared.api import notices as api
from shared.api.auth import Budget, Every
from shared.api.method import Nothing
from shared.api.notices import AddNotice, LimitUsed, PaymentLate
from shared.background.deferred_rows import DeferredRows
from shared.background.items import BackgroundItems
from shared.telemetry import Metrics
from shared.types import KeyId, MicroCredits, RequestId, UserId
from tests.cases import case
from tests.services.gateway.billing.test_ledger_store import Books, books, new_owner, new_request, row
from tests.services.gateway.fakes import FakeRpc

__all__ = ["books"]

PLAN = Spending(1000, MicroCredits(0), has_plan=True)


class Office:
    """The outbox of one gateway, and what auth was told."""

    def __init__(self, opened: Any, *, sells: bool = True) -> None:
        self.database, self.told = opened, list[AddNotice]()
        self.failing = 0
        self.deferred = DeferredRows(opened, "gateway")
        self.rpc = FakeRpc()
        self.rpc.answers[api.add_notice.name] = self._add
        self.outbox = NoticeOutbox(BillingStore(opened), self.rpc, BackgroundItems(self.deferred, Metrics("gateway")), "EUR", sells=sells)

    async def _add(self, request: AddNotice) -> Nothing:
        await asyncio.sleep(0)
        if self.failing:
            self.failing -= 1
            raise errors.Unavailable("auth does not answer")
        self.told.append(request)
        return Nothing()

    async def work(self) -> list[tuple[str, int, int, int]]:
        """Return what auth is told now."""
        self.told.clear()
        await self.outbox.work()
        limits = [each.notice for each in self.told if isinstance(each.notice, LimitUsed)]
        return sorted((f"key {limit.of}" if limit.key else limit.of, limit.percent, limit.used, limit.most) for limit in limits)


@pytest.fixture
async def office(books: Books) -> AsyncIterator[Office]:
    async with store.opened(books.url) as opened:
        yield Office(opened)


def spending(key: int | None = None, owner: int | None = None, every: Every | None = None, base: Spending = NO_PLAN) -> Spending:
    budgets = [None if micro is None else Budget(MicroCredits(micro), every) for micro in (key, owner)]
    return msgspec.structs.replace(base, key_budget=budgets[0], owner_budget=budgets[1])


async def use(books: Books, owner: UserId, tokens: int, terms: Spending, key: KeyId | None = None, *, others: int = 0) -> RequestId:
    """Reserve and settle so many tokens; with ``others``, in a batch with so many requests of other owners."""
    requests = [new_request() for _ in range(1 + others)]
    owners = [owner, *(new_owner() for _ in range(others))]
    rows = []
    for request, who in zip(requests, owners, strict=True):
        mine = who == owner
        # The prompt is free, and covered by plans: it isn't counted here.
        more = {"prompt_tokens": 0, "spending": terms if mine else PLAN, "key_id": key if mine else None}
        granted = await books.reserve(who, tokens=tokens, request=request, **more)
        assert isinstance(granted, GrantedReservation)
        one = row(who, request, tokens - granted.plan_tokens, key if mine else None)
        rows.append(msgspec.structs.replace(one, covered_tokens=granted.plan_tokens))
    await books.requests.write_requests(rows)
    return requests[0]


@pytest.mark.parametrize("others", [0, 2], ids=["alone", "in a batch"])
async def test_each_threshold_of_an_allowance_is_told_once(books: Books, office: Office, others: int) -> None:
    ada = new_owner()
    for tokens, told in ((799, []), (1, [("allowance", 80, 800, 1000)]), (199, []), (1, [("allowance", 100, 1000, 1000)])):
        with case(tokens):
            await use(books, ada, tokens, PLAN, others=0 if tokens == 799 else others)
            assert await office.work() == told
    assert office.told[0].owner == ada
    assert office.told[0].currency == "EUR"
    notice = office.told[0].notice
    assert isinstance(notice, LimitUsed)
    assert notice.renews_at == (await books.ledger.read_account(ada, PLAN)).allowance.renews_at  # type: ignore[union-attr]


@pytest.mark.parametrize("others", [0, 2], ids=["alone", "in a batch"])
async def test_a_jump_over_both_thresholds_tells_the_higher_one(books: Books, office: Office, others: int) -> None:
    ada, key = new_owner(), KeyId(new_request())
    await use(books, ada, 500, spending(500, 500, Every.DAY), key, others=others)
    assert await office.work() == [("budget", 100, 500, 500), ("key budget", 100, 500, 500)]
    subjects = sorted(told.subject.split("/")[1] for told in office.told)
    assert subjects == sorted([str(ada), str(key)])


async def test_a_refund_and_the_same_use_again_have_the_same_subject(books: Books, office: Office) -> None:
    ada = new_owner()
    request = await use(books, ada, 900, spending(owner=1000))
    assert await office.work() == [("budget", 80, 900, 1000)]
    (before,) = [told.subject for told in office.told]
    await books.ledger.revert(request, "a mistake")
    assert await office.work() == [], "less is used"
    await use(books, ada, 900, spending(owner=1000))
    await office.work()
    assert [told.subject for told in office.told] == [before]


async def test_a_raised_budget_and_a_new_period_have_thresholds_of_their_own(books: Books, office: Office) -> None:
    ada = new_owner()
    subjects = set()
    for terms, tokens, told in (
        (spending(owner=100, every=Every.DAY), 80, [("budget", 80, 80, 100)]),
        (spending(owner=200, every=Every.DAY), 80, [("budget", 80, 160, 200)]),
        (spending(owner=200, every=Every.DAY), 10, []),
        (None, 0, []),  # a day passes
        (spending(owner=200, every=Every.DAY), 150, []),
        (spending(owner=200, every=Every.DAY), 10, [("budget", 80, 160, 200)]),
    ):
        if terms is None:
            await books.execute("UPDATE accounts SET since = since - 1")
            continue
        await use(books, ada, tokens, terms)
        assert await office.work() == told, terms
        for one in office.told:
            subjects.add(one.subject)
            assert isinstance(one.notice, LimitUsed)
            assert one.notice.renews_at == datetime.fromtimestamp(float(one.subject.split("/")[2]), UTC) + timedelta(days=1)
    assert len(subjects) == 2, "by period and limit; both periods are of today"


async def test_a_request_that_ends_after_midnight_counts_in_the_new_period_alone(books: Books, office: Office) -> None:
    ada, key, request = new_owner(), KeyId(new_request()), new_request()
    terms = spending(100, 100, Every.DAY)
    await use(books, ada, 70, terms, key)
    await books.reserve(ada, tokens=30, request=request, prompt_tokens=0, spending=terms, key_id=key)
    await books.execute("UPDATE accounts SET since = since - 1; UPDATE key_spending SET since = since - 1")
    await books.settle(ada, (request, 30), key=key)
    assert await office.work() == []


async def test_each_key_has_thresholds(books: Books, office: Office) -> None:
    ada, keys = new_owner(), [KeyId(new_request()) for _ in range(3)]
    for key, budget in zip(keys, (100, 200, None), strict=True):
        await use(books, ada, 100, spending(budget), key)
    assert await office.work() == [("key budget", 100, 100, 100)]
    await use(books, ada, 60, spending(200), keys[1])
    assert await office.work() == [("key budget", 80, 160, 200)]
    await use(books, ada, 60, spending(), keys[1])
    assert await office.work() == [], "it has no budget any more"


async def test_what_refuses_a_request_is_used_up(books: Books, office: Office) -> None:
    """16 tokens at least must fit, so that the last ones are never used."""
    ada, key = new_owner(), KeyId(new_request())
    for terms, told in (
        (PLAN, ("allowance", 100, 990, 1000)),
        (spending(owner=1000), ("budget", 100, 990, 1000)),
        (spending(1000), ("key budget", 100, 990, 1000)),
    ):
        ada, key = new_owner(), KeyId(new_request())
        await use(books, ada, 990, terms, key)
        await office.work()
        for _ in range(2):
            refused = await books.reserve(ada, tokens=16, prompt_tokens=0, spending=terms, key_id=key)
            assert isinstance(refused, InsufficientCredits)
        assert await office.work() == [told]
        ada, key = new_owner(), KeyId(new_request())
        await use(books, ada, 100, terms, key)
        assert isinstance(await books.reserve(ada, tokens=5000, least_tokens=5000, spending=terms, key_id=key), InsufficientCredits)
        assert await office.work() == [], "much is left"


async def test_a_refusal_by_a_model_that_plans_dont_cover_ends_no_allowance(books: Books, office: Office) -> None:
    ada = new_owner()
    await use(books, ada, 900, PLAN)
    await office.work()
    assert isinstance(await books.reserve(ada, tokens=16, allowance_weight=0, spending=PLAN), InsufficientCredits)
    await office.work()
    assert {told.notice.percent for told in office.told if isinstance(told.notice, LimitUsed)} <= {80}


async def test_a_balance_is_low_below_a_tenth_of_the_last_top_up(books: Books, office: Office) -> None:
    ada, prepaid = new_owner(), Spending(0, MicroCredits(0), has_plan=True)
    await use(books, ada, 300, msgspec.structs.replace(prepaid, overage_micro=None))
    assert await office.work() == [], "nothing was ever bought"
    subjects = []
    for _ in range(2):
        await books.ledger.top_up(new_request(), ada, MicroCredits(1300), "", prepaid)
        (balance, _) = await books.account(ada)
        await use(books, ada, balance - 131, prepaid)
        assert await office.work() == []
        await use(books, ada, 1, prepaid)
        assert await office.work() == [("balance", 90, 1170, 1300)]
        subjects.append(office.told[0].subject)
    assert len(set(subjects)) == 2


async def test_without_plans_only_budgets_are_told(books: Books) -> None:
    ada, key = new_owner(), KeyId(new_request())
    async with store.opened(books.url) as opened:
        office = Office(opened, sells=False)
        await use(books, ada, 900, PLAN, key)
        await use(books, ada, 900, spending(1000, 1100), key)
        async with BillingStore(opened).transaction() as rows:
            await rows.notify(ada, "INV-2026-000001/1", PaymentLate())
        assert await office.work() == [("budget", 80, 900, 1100), ("key budget", 80, 900, 1000)]
        assert len(office.told) == 2
        assert await books.count("threshold_notices", "*") == 0


async def test_a_notice_is_kept_until_auth_has_it(books: Books, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    await use(books, new_owner(), 90, spending(owner=100))
    office.failing = 2
    for _ in range(2):
        with pytest.raises(errors.Unavailable):
            await office.outbox.work()
        assert await books.count("threshold_notices", "*") == 1

    # Killed between auth's answer and the commit: auth is told again, with the same subject.
    async def answer_and_die(request: AddNotice) -> Nothing:
        office.told.append(request)
        raise asyncio.CancelledError

    office.rpc.answers[api.add_notice.name] = answer_and_die
    with pytest.raises(asyncio.CancelledError):
        await office.outbox.work()
    assert await books.count("threshold_notices", "*") == 1
    (first,) = office.told
    office.rpc.answers[api.add_notice.name] = office._add
    assert await office.work() == [("budget", 80, 90, 100)]
    assert office.told == [first]
    assert await books.count("threshold_notices", "*") == 0


@pytest.mark.parametrize("refusal", [errors.BadRequest("Invalid value 'payment'"), errors.UnknownMethod("there is no method")])
async def test_a_notice_that_an_older_auth_refuses_stays_and_holds_up_no_other(books: Books, office: Office, refusal: Exception) -> None:
    ada = new_owner()
    async with BillingStore(office.database).transaction() as rows:
        await rows.notify(ada, "card", PaymentLate())
    # Also one that this gateway doesn't know, because a newer one wrote it.
    await books.execute("INSERT INTO threshold_notices (owner, subject, notice) VALUES (gen_random_uuid(), 'x', '{\"kind\": \"news\"}')")
    await use(books, ada, 90, spending(owner=100))

    async def refuse_payments(request: AddNotice) -> Nothing:
        if isinstance(request.notice, PaymentLate):
            raise refusal
        return await office._add(request)

    office.rpc.answers[api.add_notice.name] = refuse_payments
    for told in (1, 0):
        office.told.clear()
        await office.outbox.work()
        assert (len(office.told), await books.count("threshold_notices", "*")) == (told, 2)
    assert len(await office.deferred.list("notice", 10)) == 2
    office.rpc.answers[api.add_notice.name] = office._add
    await office.deferred.retry("notice", None)
    await office.work()
    assert [told.notice for told in office.told] == [PaymentLate()]
    assert await books.count("threshold_notices", "*") == 1


async def test_two_gateways_tell_each_notice_once_and_dont_wait_for_each_other(books: Books, office: Office) -> None:
    for _ in range(20):
        await use(books, new_owner(), 90, spending(owner=100))
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def answer_later(request: AddNotice) -> Nothing:
        asked.set()
        await may_answer.wait()
        return await office._add(request)

    async with store.opened(books.url) as opened, asyncio.TaskGroup() as tasks:
        other = Office(opened)
        office.rpc.answers[api.add_notice.name] = answer_later
        tasks.create_task(office.outbox.work())
        await asked.wait()
        async with asyncio.timeout(3):
            assert len(await other.work()) == 19
        may_answer.set()
    owners = {told.owner for told in (*office.told, *other.told)}
    assert (len(office.told), len(owners)) == (1, 20)
