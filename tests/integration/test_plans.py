"""Tokens that a plan includes, and the credits beyond them, on a stack with MONEY=on."""

import re

import httpx
import pytest

from shared.types import Tier
from tests import people, stacks
from tests.integration import asking
from tests.integration.test_money import ASK
from tests.shared.mail.mail_server import MailServer, serving


@pytest.mark.nightly("stacks")
async def test_a_plan_pays_first_then_the_balance_and_then_nobody() -> None:
    numbers = "included_tokens=10000,requests_per_minute=unlimited,requests_per_hour=unlimited"
    mails = MailServer()
    async with (
        serving(mails),
        stacks.stack(AIMESH_ECHO="1", MONEY="on", TIER_FREE=numbers, SMTP_URL=f"smtp://localhost:{mails.port}") as stack,
        people.api_client(stack) as api,
    ):
        ann = await api.register("ann", Tier.FREE)
        key = ann.key.secret
        body = asking.chat_body("one two three", max_tokens=16)
        async with stack.http(key) as http:
            answer = await http.post("/v1/chat/completions", json=body)
            assert asking.problem(answer, 429, "budget_exhausted")["code"] == "insufficient_quota"
            assert "verify your address" in answer.text
            await mails.wait_for(1)
            (code,) = set(re.findall(r"\b\w{43}\b", mails.mails[0][2].get_content()))
            assert (await stack.aicli("billing", "verify", code, AICLI_API_KEY=key)).out == "Verified.\n"
            # The gateway forgets what it has cached of the caller.
            await stacks.until(lambda: _is_included(http), seconds=10, what="the tokens of the plan")
            answer = await http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            await stack.recorded(ann.id, 1)
            quota = (await http.get("/api/quota")).json()
            assert quota["allowance"]["used"] == answer.json()["usage"]["total_tokens"] > 0
            assert (quota["allowance"]["included"], quota["credits"]["balance"], quota["credits"]["available"]) == (10_000, "0", "0")
            # A prompt reserves more tokens than it has, so that small ones still fit after large ones.
            for prompt in ("one two three " * 60, "one two three"):
                while (answer := await http.post("/v1/chat/completions", json=asking.chat_body(prompt, max_tokens=400))).status_code == 200:
                    pass
            assert asking.problem(answer, 429, "budget_exhausted")["code"] == "insufficient_quota"
            assert answer.headers["x-should-retry"] == "false"
            asking.problem(await http.post("/api/inference", json={**ASK, "prompt": "a b c " * 60}), 402, "budget_exhausted")
            for command in ("quota", "usage"):
                assert "tokens left   " in (await stack.aicli(command, AICLI_API_KEY=key)).out
            assert (await stack.aicli("admin", "credits", ann.username, "1")).status == 0
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 200

        async def told() -> bool:
            return "The allowance is used up" in [mail["Subject"] for _, _, mail in mails.mails]

        # The gateway tells auth within 30 seconds, and auth mails it within 30 more.
        await stacks.until(told, seconds=90, what="the mail that the plan's tokens are used up")
        done = await stack.aicli("admin", "ledger", "verify")
        assert done.status == 0, done.out


async def _is_included(http: httpx.AsyncClient) -> bool:
    return bool((await http.get("/api/quota")).json()["allowance"]["included"] == 10_000)
