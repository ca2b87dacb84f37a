"""Webhooks on a whole stack, whose gateway is killed while a server has an event in hand."""

import asyncio

import pytest

from tests import stacks
from tests.features.webhooks.gateway.receiver import receiving
from tests.testnet import until


@pytest.mark.nightly("stacks")
@pytest.mark.timeout(180)
async def test_an_event_in_flight_is_sent_again_with_the_same_id_after_kill_9() -> None:
    async with stacks.stack(WEBHOOK_ALLOWED_HOSTS="127.0.0.0/8") as stack, receiving() as receiver:
        url = f"http://127.0.0.1:{receiver.port}/hook"
        assert (await stack.aicli("webhooks", "create", url)).status == 0
        (made,) = (await stack.aicli("webhooks", "list", "--json")).json()
        assert (await stack.aicli("webhooks", "test", made["id"])).out == "Delivered: returned 204.\n"
        receiver.open.clear()
        testing = asyncio.create_task(stack.aicli("webhooks", "test", made["id"]))
        await until(lambda: len(receiver.delivered) == 2, seconds=20)
        pid = await stack.kill("gateway")
        receiver.open.set()
        await stack.restarted("gateway", pid)
        async with stack.database("gateway") as database:
            # Its lease ends after a minute.
            await database.execute("UPDATE gateway.webhook_deliveries SET lease_until = now() WHERE ended_at IS NULL")
        await until(lambda: len(receiver.delivered) == 3, seconds=20)
        await testing
        ids = [each.headers["webhook-id"] for each in receiver.delivered]
        assert ids[1] == ids[2] != ids[0]
        refused = await stack.aicli("webhooks", "create", "https://169.254.169.254/latest")
        assert "never gets webhooks" in refused.err
