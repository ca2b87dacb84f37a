"""A whole gateway sells through Stripe, and is killed between the charge and its webhook."""

import asyncio
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api import billing as api
from shared.api.billing import AccountName, OrderTopUp
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves
from shared.types import Credential, RequestId, Role
from tests.services.gateway.fakes import TOKEN
from tests.services.gateway.payments import stripe_server
from tests.services.gateway.payments.stripe_server import StripeServer
from tests.services.gateway.test_service import StandInAuth
from tests.stopwatch import HANG_SECONDS
from tests.testnet import MESH, RunningNode, testnet, until

MICRO = 1_000_000


class SellingAuth(StandInAuth):
    @serves(api.describe_account)
    async def describe(self, request: api.DescribeAccount, _call: RpcCall) -> AccountName:
        return AccountName("ada", "ada@example.org", "free")

    @serves(api.apply_plan)
    async def apply(self, request: api.ApplyPlan, _call: RpcCall) -> Nothing:
        return Nothing()


async def test_credits_arrive_although_the_gateway_was_killed_after_the_charge(
    postgres_url: str, valkey_url: str, stripe: StripeServer, tmp_path: Path
) -> None:
    key, hook = tmp_path / "key", tmp_path / "hook"
    key.write_text(stripe_server.KEY, encoding="ascii")
    hook.write_text(stripe_server.SECRET, encoding="ascii")
    async with testnet() as net:
        settings = GatewaySettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY), database_url=postgres_url,
            redis_url=valkey_url, prompt_hash_secret="s" * 32, money="on", payments="stripe", stripe_secret_key_file=key,
            stripe_webhook_secret_file=hook, stripe_api_url=stripe.url,
        )  # fmt: skip
        await net.start(SellingAuth)
        first, client = await net.start(GatewayService, settings), await net.client()
        await until(lambda: first.node.directory.usable(Role.AUTH) and client.directory.usable(Role.GATEWAY))
        order = await client.rpc.call(api.order_top_up, OrderTopUp("25", RequestId(uuid4())), credential=TOKEN)
        assert order.url is not None
        session = order.url.rpartition("/")[2]
        await stripe.pay(session)
        await first.cut()
        second = await net.start(GatewayService, settings)
        await until(lambda: second.node.directory.usable(Role.AUTH))
        body, signature = stripe.signed(session)
        async with _http(second) as http:
            assert (await http.post("/webhooks/stripe", content=body, headers={"stripe-signature": signature})).status_code == 200
            assert (await http.post("/webhooks/stripe", content=body)).status_code == 400
            assert (await http.post("/webhooks/paddle", content=body)).status_code == 404
        # The first client may still know the killed gateway.
        client = await net.client()
        await until(lambda: client.directory.usable(Role.GATEWAY))

        async def balance(credential: Credential) -> int:
            return (await client.rpc.call(api.read_billing, api.ReadBilling(), credential=credential)).account.balance_micro

        async with asyncio.timeout(HANG_SECONDS):
            while await balance(TOKEN) == 0:
                pass
        found = await client.rpc.call(api.read_billing, api.ReadBilling(), credential=TOKEN)
        assert (found.account.balance_micro, found.provider, found.portal) == (25 * MICRO, "stripe", True)
        portal = await client.rpc.call(api.open_portal, api.OpenPortal(), credential=TOKEN)
        assert portal.url.startswith("https://portal.test/cus_")
        with pytest.raises(errors.BadRequest, match=r"the amount must be 5\.00 USD to 10,000\.00 USD"):
            await client.rpc.call(api.order_top_up, OrderTopUp("4", RequestId(uuid4())), credential=TOKEN)


def _http(gateway: RunningNode) -> httpx.AsyncClient:
    asgi = gateway.service.asgi()
    assert asgi is not None
    return httpx.AsyncClient(transport=httpx.ASGITransport(asgi), base_url="http://gateway")
