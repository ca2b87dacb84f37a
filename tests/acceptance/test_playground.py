"""The playground against a whole stack: an answer grows visibly, and Stop also stops the worker."""

import time

import pytest

from shared.api import gateway
from shared.types import Role
from tests.acceptance.visitor import Visitor
from tests.acceptance.watching import Watch
from tests.people import ApiClient
from tests.stacks import RunningStack, until

#: From the click on Stop until the worker's slot is free.
FREE_SECONDS = 2.0
#: At this stack's speed, these take 12 s.
_WORDS = 600
_ANSWER = "document.querySelector('.chat-messages li:last-child .markdown')"


async def _running(api_client: ApiClient) -> int:
    answer = await api_client.mesh.rpc.call(gateway.list_nodes, gateway.ListNodes(), credential=api_client.admin_key)
    return sum(node.running for node in answer.nodes if node.role is Role.WORKER)


async def test_an_answer_grows_and_stops_when_it_is_told_to(stack: RunningStack, watch: Watch, api_client: ApiClient) -> None:
    ann = Visitor(await watch.open(), stack.url("web"))
    page = ann.page
    await ann.register()
    await page.click("nav.pages a", "Playground")
    await page.fill(message="one **two** three")
    await page.press("[data-chat=send]")
    await page.until(f"{_ANSWER}?.querySelector('strong')?.innerText === 'two'")
    # The usage appears below the answer when it is complete.
    await page.until("document.querySelector('[data-chat=usage]:not([hidden])')?.innerText.includes('tokens')")

    await page.fill(message="word " * _WORDS)
    await page.press("[data-chat=send]")
    length = 0
    for _ in range(4):
        await page.until(f"({_ANSWER}?.innerText.length ?? 0) > {length}")
        length = int(await page.evaluate(f"{_ANSWER}.innerText.length"))
    assert length < _WORDS * 2

    async def is_running() -> bool:
        return await _running(api_client) == 1

    await until(is_running, what="a worker writes it")
    pressed = time.monotonic()
    await page.press("[data-chat-act=stop]")

    async def is_free() -> bool:
        return await _running(api_client) == 0

    await until(is_free, seconds=FREE_SECONDS, what="the slot is free")
    print(f"the slot was free {time.monotonic() - pressed:.2f} s after Stop")
    await page.until("document.querySelector('[data-chat=send]').checkVisibility()")
    stopped = int(await page.evaluate(f"{_ANSWER}.innerText.length"))
    assert stopped < _WORDS * 4
    await ann.sees("Stopped.")

    # The stopped answer is counted up to where it stopped.
    async def logged() -> list[str] | None:
        await ann.goes("/requests")
        rows = await ann.rows()
        return rows if len(rows) == 2 else None

    newest, _ = await until(logged, what="both are in the log")
    assert "Canceled" in newest
    await ann.goes("/usage")
    requests, tokens, *_ = await ann.texts(".numbers .big")
    assert requests == "2"
    assert _WORDS < int(tokens.replace(",", "")) < _WORDS * 2


@pytest.mark.nightly("pages")
async def test_a_thumb_and_the_code_of_a_chat(stack: RunningStack, watch: Watch) -> None:
    ann = Visitor(await watch.open(width=390, dark=True), stack.url("web"))
    page = ann.page
    await ann.register()
    await ann.goes("/playground")
    await page.fill(message="hello <b>there</b>")
    await page.press("[data-chat=send]")
    await page.until("document.querySelector('[data-chat-act=up]')?.checkVisibility()")
    assert not await page.evaluate(f"{_ANSWER}.querySelector('b')")
    await page.press("[data-chat-act=up]")
    await page.until("document.querySelector('[data-chat-act=up]').getAttribute('aria-pressed') === 'true'")

    await page.press("[data-chat-act=code]")
    await page.until("document.querySelector('[data-chat=sample-curl]').innerText.includes('hello')")
    assert f"{ann.origin}/v1/chat/completions" in await page.evaluate("document.querySelector('[data-chat=sample-curl]').innerText")
    await page.press("dialog [data-close]")
    await page.press("[data-chat-act=clear]")
    assert await page.evaluate("document.querySelectorAll('.chat-messages li').length") == 0

    async def rated() -> list[str]:
        await ann.goes("/requests")
        return await ann.texts("td[data-label=Rating] .state")

    assert len(await until(rated, what="the thumb is in the log")) == 1
