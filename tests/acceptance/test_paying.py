"""A user who has used up the tokens of their plan buys credits and a larger plan, and an administrator gets the money."""

import re

import pytest

from tests import people, stacks
from tests.acceptance.chromium import Browser
from tests.acceptance.visitor import Visitor, administrator
from tests.acceptance.watching import Watch
from tests.integration import asking
from tests.stacks import RunningStack

SETTINGS = {
    "INFERENCE_BACKEND": "echo",
    "HYPERSWARM": "off",
    "MONEY": "on",
    "PRICING_PAGE": "on",
    "TIER_FREE": "included_tokens=400,requests_per_minute=unlimited",
}


@pytest.mark.nightly("pages")
@pytest.mark.timeout(180)
async def test_a_user_pays_for_more(chrome: Browser) -> None:
    async with stacks.stack(**SETTINGS) as stack, people.api_client(stack) as api_client:
        watch = Watch(chrome, stack.url("web"))
        ann = Visitor(await watch.open(), stack.url("web"))
        await ann.goes("/pricing")
        await ann.sees("Pricing", "pro", "1,000,000 tokens a month", "Default")
        await ann.register()
        key = await ann.create_key("laptop")
        refused = await _use_up(stack, key)
        assert re.search(r"renews on \d{4}-\d\d-\d\d", refused)

        await ann.page.press("header .account summary")
        await ann.page.click("header .menu a", "Billing")
        await ann.sees("of 400 used; renews", "No usage in the 7 days before today.")
        await ann.page.fill(amount="25")
        await ann.page.click("button", "Order")
        await ann.sees("Order placed.", "TEST-INV-", "Prepaid credits", "25.00 USD", "This is a test")

        ada = await administrator(await watch.open(), stack.url("web"), api_client)
        await ada.goes("/admin/money?show=open")
        await ada.sees("Sales", "Nothing was paid", ann.name)
        await _pay(ada)
        await ann.goes("/billing")
        await ann.sees("Paid", "wire 17")
        assert (await _ask(stack, key))[0] == 200

        await ann.page.press("button", "Choose pro")
        await ann.page.click("dialog button", "Choose pro")
        await ann.sees("Order placed.", "Plan pro, a month", "29.00 USD")
        await ada.goes("/admin/money?show=open")
        await _pay(ada)
        await ann.goes("/billing")
        await ann.sees("of 1,000,000 used")
        await ada.goes("/admin/money")
        await ada.page.press("summary", "Show table")
        await ada.sees("54.00 USD", ann.name, "Active")
        await watch.check()


async def _pay(ada: Visitor) -> None:
    """Mark the newest open invoice as paid."""
    await ada.page.click("main a code")
    await ada.page.fill(reference="wire 17")
    await ada.page.press("button", "Mark as paid")
    await ada.page.click("dialog button", "Mark as paid")
    await ada.sees("Invoice paid.")


async def _ask(stack: RunningStack, key: str) -> tuple[int, str]:
    async with stack.http(key, service="web") as http:
        answer = await http.post("/v1/chat/completions", json=asking.chat_body("one two three", max_tokens=16))
    return answer.status_code, answer.text


async def _use_up(stack: RunningStack, key: str) -> str:
    """Ask until the plan is used up. Return the refusal."""
    while True:
        status, text = await _ask(stack, key)
        if status != 200:
            assert (status, "insufficient_quota" in text) == (429, True), text
            return text
