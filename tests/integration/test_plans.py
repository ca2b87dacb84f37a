"""Tokens that a plan includes, and the credits beyond them, on a stack with MONEY=on."""

import pytest

from shared.types import Tier
from tests import people, stacks
from tests.integration import asking
from tests.integration.test_money import ASK


@pytest.mark.nightly("stacks")
async def test_a_plan_pays_first_then_the_balance_and_then_nobody() -> None:
    numbers = "included_tokens=350,requests_per_minute=unlimited"
    async with stacks.stack(AIMESH_ECHO="1", MONEY="on", TIER_FREE=numbers) as stack, people.api_client(stack) as api:
        ann = await api.register("ann", Tier.FREE)
        key = ann.key.secret
        body = asking.chat_body("one two three", max_tokens=16)
        async with stack.http(key) as http:
            answer = await http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            await stack.recorded(ann.id, 1)
            quota = (await http.get("/api/quota")).json()
            assert quota["allowance"]["used"] == answer.json()["usage"]["total_tokens"] > 0
            assert (quota["allowance"]["included"], quota["credits"]["balance"], quota["credits"]["available"]) == (350, "0", "0")
            while answer.status_code == 200:
                answer = await http.post("/v1/chat/completions", json=body)
            assert asking.problem(answer, 429, "budget_exhausted")["code"] == "insufficient_quota"
            assert answer.headers["x-should-retry"] == "false"
            asking.problem(await http.post("/api/inference", json={**ASK, "prompt": "a b c " * 60}), 402, "budget_exhausted")
            for command in ("quota", "usage"):
                assert "tokens left   " in (await stack.aicli(command, AICLI_API_KEY=key)).out
            assert (await stack.aicli("admin", "credits", ann.username, "1")).status == 0
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
        done = await stack.aicli("admin", "ledger", "verify")
        assert done.status == 0, done.out
