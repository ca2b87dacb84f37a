"""Another site takes over while a gateway is suspended by SIGSTOP: the gateway runs nothing afterwards, and does not start again."""

import signal
from collections.abc import AsyncIterator

import pytest

from tests import stacks
from tests.stacks import RunningStack, until

ASK = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
ENDED = """
    INSERT INTO gateway.site_lease (term, site, state, changed_at, replaced_by, replaced_url)
    VALUES (1, 'oslo', 'ended', now(), 'rome', 'https://rome.example')
"""


@pytest.fixture
async def stack() -> AsyncIterator[RunningStack]:
    async with stacks.stack(INFERENCE_BACKEND="echo", HYPERSWARM="off") as running:
        yield running


@pytest.mark.nightly("long")
@pytest.mark.timeout(400)
async def test_a_stopped_gateway_runs_nothing_after_another_site_took_over(stack: RunningStack) -> None:
    async with stack.http(stack.api_key) as http:
        assert (await http.post("/v1/chat/completions", json=ASK)).status_code == 200
        pid = await stack.signal("gateway", signal.SIGSTOP)
        async with stack.database("gateway") as database:
            await database.execute(ENDED)
        assert await stack.signal("gateway", signal.SIGCONT) == pid
        for verb, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
            answer = await http.request(verb, path, json=ASK)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "site_replaced"), answer.text
            assert "rome (https://rome.example)" in answer.json()["error"]["message"]
    assert (await stack.aicli("stack", "restart", "gateway")).status != 0

    async def is_down() -> bool:
        return (await stack.programs())["gateway"].state == "down"

    await until(is_down, seconds=60, what="the gateway is not started again")
    assert "error: this site was replaced by rome (https://rome.example) at 20" in stack.log("gateway")
