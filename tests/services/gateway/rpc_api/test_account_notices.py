"""What an account is told is what refuses its next request: a whole gateway that sells, with a stand-in for auth and a worker."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec
import pytest

from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api import auth, gateway, ledger
from shared.api.gateway import AccountNotice, InferenceRequest, NoticeKind, ProcessInferenceRequest
from shared.node import Node
from shared.node.client_node import ClientNode
from shared.rpc import RpcCall, serves
from shared.types import Role
from tests.services.gateway.fakes import PERSON, TOKEN, USER
from tests.services.gateway.test_service import ADMIN_TOKEN, OTHER, StandInAuth, StandInWorker
from tests.stopwatch import HANG_SECONDS
from tests.testnet import MESH, testnet, until

MICRO = ledger.MICRO


class Auth(StandInAuth):
    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.person = PERSON

    @serves(auth.identify)
    async def identify(self, request: auth.Identify, call: RpcCall) -> auth.Principal:
        return await super().identify(request, call) if request.credential == ADMIN_TOKEN else self.person

    @serves(auth.get_user)
    async def get_user(self, request: auth.GetUser, _call: RpcCall) -> auth.User:
        return msgspec.structs.replace(OTHER, id=USER)


@dataclass
class Site:
    client: ClientNode
    auth: Auth
    url: str

    async def ask(self) -> None:
        request = ProcessInferenceRequest(InferenceRequest(prompt="hi", max_tokens=64), fresh=True)
        async with self.client.rpc.stream(gateway.process_inference_request, request, credential=TOKEN) as answer:
            assert [chunk.text async for chunk in answer]

    async def notices(self) -> dict[NoticeKind, AccountNotice]:
        quota = await self.client.rpc.call(gateway.get_user_quota, gateway.GetUserQuota(), credential=TOKEN)
        return {notice.kind: notice for notice in quota.notices}

    async def verify(self) -> None:
        """The person opens the link, and auth tells the gateway."""
        self.auth.person = PERSON
        self.auth.changes.put_nowait(auth.Change(2, USER))
        async with asyncio.timeout(HANG_SECONDS):
            while NoticeKind.UNVERIFIED in await self.notices():
                pass

    async def run_sql(self, text: str, *args: Any) -> None:
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
        try:
            await connection.execute(text, *args)
        finally:
            await connection.close()


@pytest.fixture
async def site(postgres_url: str, valkey_url: str) -> AsyncIterator[Site]:
    async with testnet() as net:
        served, _ = await net.start(Auth), await net.start(StandInWorker)
        settings = GatewaySettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY), database_url=postgres_url,
            redis_url=valkey_url, prompt_hash_secret="s" * 32, money="on", public_url="https://ai.example.org",
            tier_free={"requests_per_minute": "unlimited", "requests_per_hour": "3", "included_tokens": "1000"},
        )  # fmt: skip
        running = await net.start(GatewayService, settings)
        client = await net.client()
        directory = running.node.directory
        await until(lambda: directory.usable(Role.WORKER) and directory.usable(Role.AUTH) and client.directory.usable(Role.GATEWAY))
        assert isinstance(served.service, Auth)
        price = ledger.SetPrice(ledger.ModelPrice(None, 100 * MICRO, 100 * MICRO))
        await client.rpc.call(ledger.set_price, price, credential=ADMIN_TOKEN)
        yield Site(client, served.service, postgres_url)


async def test_notices_are_the_refusals_of_the_next_request(site: Site) -> None:
    site.auth.person = msgspec.structs.replace(PERSON, has_free_tokens=False)
    with pytest.raises(errors.BudgetExhausted, match="your plan's tokens are for verified email addresses") as refused:
        await site.ask()
    notice = (await site.notices())[NoticeKind.UNVERIFIED]
    assert refused.value.message.startswith(f"{notice.message}: ")
    assert notice.hint == refused.value.hint

    await site.verify()
    assert await site.notices() == {}
    await site.run_sql("UPDATE accounts SET allowance_tokens = 0 WHERE owner = $1", USER)
    with pytest.raises(errors.BudgetExhausted, match="your plan has no tokens left") as refused:
        await site.ask()
    notice = (await site.notices())[NoticeKind.CREDITS]
    assert refused.value.message.startswith(f"{notice.message}: ")
    assert notice.hint == refused.value.hint
    assert "https://ai.example.org/billing" in notice.hint

    await site.run_sql("UPDATE accounts SET balance_micro = $2 WHERE owner = $1", USER, 5 * MICRO)
    assert await site.notices() == {}
    with pytest.raises(errors.Limited, match="the free tier's limit of 3 requests per hour is used up") as limited:
        for _ in range(4):
            await site.ask()
    notice = (await site.notices())[NoticeKind.LIMIT]
    assert notice.message == limited.value.message
    assert notice.hint == limited.value.hint
    assert notice.hint.startswith("wait ")
    assert " min, or ask" in notice.hint.replace("1 h,", "60 min,")


async def test_an_account_in_debt_reads_and_asks_for_nothing(site: Site) -> None:
    await site.ask()
    await site.run_sql("UPDATE accounts SET balance_micro = -2500000 WHERE owner = $1", USER)
    quota = await site.client.rpc.call(gateway.get_user_quota, gateway.GetUserQuota(), credential=TOKEN)
    assert quota.account is not None
    assert quota.account.allowance is not None
    assert quota.account.allowance.left
    with pytest.raises(errors.BudgetExhausted, match=r"your account owes 2\.5 credits more than its plan allows") as refused:
        await site.ask()
    notice = (await site.notices())[NoticeKind.CREDITS]
    assert (notice.message, notice.hint) == (refused.value.message, refused.value.hint)
    assert "add credits: https://ai.example.org/billing" in notice.hint
    await site.run_sql("UPDATE accounts SET balance_micro = 0 WHERE owner = $1", USER)
    await site.ask()
    assert NoticeKind.CREDITS not in await site.notices()


async def test_a_late_payment_is_told_before_the_plan_ends(site: Site) -> None:
    await site.run_sql("INSERT INTO subscriptions (owner, plan, provider, is_past_due) VALUES ($1, 'pro@1', 'manual', true)", USER)
    assert await site.notices() == {
        NoticeKind.PAYMENT: AccountNotice(
            NoticeKind.PAYMENT, "a payment for your plan pro is late", "pay it, or your plan ends: https://ai.example.org/billing"
        )
    }


async def test_a_model_that_costs_nothing_needs_no_notice(site: Site) -> None:
    site.auth.person = msgspec.structs.replace(PERSON, has_free_tokens=False)
    await site.client.rpc.call(ledger.set_price, ledger.SetPrice(ledger.ModelPrice(None, 0, 0)), credential=ADMIN_TOKEN)
    assert await site.notices() == {}
    await site.ask()
