"""An administrator pulls a model on a worker: in the terminal, on the Models page, and until the model answers."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.inference.models import model_discovery
from tests import people, stacks
from tests.acceptance.chromium import Browser
from tests.acceptance.visitor import administrator
from tests.acceptance.watching import Watch
from tests.services.inference.models import ranged_server
from tests.stacks import RunningStack, until

pytestmark = pytest.mark.nightly("long")

BUILD = Path(__file__).parents[2] / "build/screenshots"


@pytest.fixture
async def stack() -> AsyncIterator[RunningStack]:
    async with stacks.stack() as running:
        yield running


async def read_until(process: asyncio.subprocess.Process, word: str) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(120):
        while word.encode() not in (line := await process.stderr.readline()):
            assert line, f"it ended without {word!r}"


async def test_model_is_pulled_on_a_worker_by_an_administrator(stack: RunningStack, chrome: Browser) -> None:
    body = model_discovery.installed().read_bytes()
    nodes = (await stack.aicli("nodes", "--json")).json()
    (worker,) = [node["id"] for node in nodes if node["role"] == "worker"]
    with ranged_server.serving(body, pause_at=40_000_000) as server:
        server.gate.clear()
        order = ("models", "pull", server.url, "--name", "other", "--node", worker[:12])
        first = await stack.start_aicli(*order)
        await read_until(first, "downloading")
        second = await stack.start_aicli(*order)
        await read_until(second, "waiting for another download")
        async with people.api_client(stack) as api_client:
            user = await api_client.register("user")
            refused = await stack.aicli(*order, AICLI_API_KEY=user.key.secret)
            assert "is no administrator" in refused.err

            watch = Watch(chrome, stack.url("web"))
            ada = await administrator(await watch.open(), stack.url("web"), api_client)
            await ada.goes("/models")
            await ada.page.until("document.querySelector('[data-live-list=pulls] tr')?.innerText.includes('38.1 MiB of ')", seconds=30)
            assert any("other" in row and "%" in row for row in await ada.rows("[data-live-list=pulls] tr"))
            BUILD.mkdir(parents=True, exist_ok=True)
            for width in (1280, 375):
                await ada.page.look(width=width, dark=False)
                (BUILD / f"models-pulling-{width}.png").write_bytes(await ada.page.screenshot())
                assert await ada.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

            # Ctrl-C in the terminal stops the first order's program on the worker; the second order continues.
            first.send_signal(signal.SIGINT)
            await asyncio.wait_for(first.communicate(), 60)
            assert first.returncode == 130
            server.gate.set()
            out, err = await asyncio.wait_for(second.communicate(), 120)
            assert b"other is stored" in out, err
            assert server.ranges()[-1] not in (None, "bytes=0-"), "it was resumed"
            assert server.sent_bytes < len(body) + 1_000_000, "it was one download"
            await ada.page.until("!document.querySelector('[data-live-list=pulls] tr')", seconds=30)
            await watch.check()
    again = (*order[:2], f"{server.url}#sha256={server.digest}", *order[3:])
    over_https = {"AIMESH_URL": stack.url("gateway"), "AIMESH_API_KEY": stack.api_key, "XDG_CONFIG_HOME": str(stack.home / "none")}
    assert "other is up to date" in (await stack.aicli(*again, **over_https)).out

    async def is_audited() -> bool:
        acts = [row["act"] for row in (await stack.aicli("admin", "audit", "list", "--json")).json()]
        return any((act["action"], act["target"]) == ("model.pull", server.url) for act in acts)

    await until(is_audited, seconds=30)

    async def answers() -> bool:
        return (await stack.aicli("infer", "--model", "other", "--max-tokens", "3", "hello")).status == 0

    await until(answers, seconds=30)
