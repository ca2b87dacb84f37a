"""An administrator adds a server of another program on the page and in the terminal, until its model answers, and removes it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests import people, stacks
from tests.acceptance.chromium import Browser
from tests.acceptance.visitor import administrator
from tests.acceptance.watching import Watch, expected
from tests.services.inference.fake_http import Answer, serving
from tests.stacks import RunningStack, until

pytestmark = pytest.mark.nightly("long")

BUILD = Path(__file__).parents[4] / "build/screenshots"
KEY = "sk-very-secret-0123456789"
MODELS = Answer(['{"data": [{"id": "gpt-x"}]}'])
CHAT = [
    'data: {"choices": [{"delta": {"content": "Hello from the rack"}}]}\n\n',
    'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n',
    'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}}\n\ndata: [DONE]\n\n',
]


@pytest.fixture
async def stack() -> AsyncIterator[RunningStack]:
    async with stacks.stack(INFERENCE_BACKEND="echo", HYPERSWARM="off", REMOTE_MODEL_HOSTS="127.0.0.1,169.254.169.254") as running:
        yield running


def answers() -> dict[str, Any]:
    return {"/v1/models": MODELS, "/v1/chat/completions": lambda _: Answer(CHAT)}


async def test_a_server_is_added_used_and_removed(stack: RunningStack, chrome: Browser) -> None:
    async def is_served() -> bool:
        return "gpt-x" in (await stack.aicli("models")).out

    async def is_gone() -> bool:
        return not await is_served()

    async def is_taken() -> bool:
        return "no worker takes servers" not in (await stack.aicli("models", "add-server", "far", "http://169.254.169.254/v1")).err

    async with serving(answers()) as server, people.api_client(stack) as api_client:
        await until(is_taken, seconds=30)
        watch = Watch(chrome, stack.url("web"))
        ada = await administrator(await watch.open(width=375), stack.url("web"), api_client)
        await ada.goes("/models")
        await ada.page.fill(**{"server-name": "rack", "server-url": "http://10.0.0.1/v1", "server-key": KEY})
        with expected(ada.page, "status of 403"):
            await ada.page.click("#server button", "Add")
            await ada.sees("doesn't have the host 10.0.0.1")
        await ada.page.fill(**{"server-url": f"{server.url}/v1", "server-key": KEY})
        await ada.page.click("#server button", "Add")
        await ada.sees("Server saved.")
        await until(is_served, seconds=30)
        BUILD.mkdir(parents=True, exist_ok=True)
        for width in (1280, 375):
            await ada.page.look(width=width, dark=False)
            await ada.goes("/models")
            await ada.sees("rack", "gpt-x")
            (BUILD / f"models-servers-{width}.png").write_bytes(await ada.page.screenshot())
            assert await ada.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert (await stack.aicli("infer", "--model", "gpt-x", "hello")).out == "Hello from the rack\n"
        assert (await stack.aicli("usage", "--json")).json()["days"][0]["tokens_used"] == 11
        async with stack.http(stack.api_key) as http:
            assert "gpt-x" in [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
        await ada.page.press("button[aria-label='Remove rack']")
        await ada.page.click("dialog button.danger")
        await ada.sees("Server removed.")
        await until(is_gone, seconds=30)
        await watch.check()
    holders = [path for path in stack.home.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert holders == [], "the key is encrypted wherever it is"
