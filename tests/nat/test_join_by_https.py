"""Machines in networks that let nothing out but TCP 443, or only an HTTP proxy with a password: with the commands that users type."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from services.inference.models import model_discovery
from tests import stopwatch
from tests.nat import boxes
from tests.nat.boxes import Box, Running
from tests.nat.topology import PUBLIC_ADDRESSES, Internet, Nat
from tests.stacks import until

pytestmark = pytest.mark.timeout(900)

MODEL, JOIN_SECONDS, SERVING_SECONDS, CUT_SECONDS, NOTHING_THERE = "lent", 10.0, 40.0, 5.0, 5
PROXY, PROXY_PORT = PUBLIC_ADDRESSES[1], 3128


@asynccontextmanager
async def http_proxy(net: Internet) -> AsyncIterator[None]:
    process = await net.public.start(sys.executable, "-m", "tests.nat.http_proxy", PROXY, str(PROXY_PORT), "ann:s@cret")
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"listening\n"
        yield
    finally:
        with suppress(ProcessLookupError):  # the machine's other programs end first, and all of them
            process.kill()
        await process.wait()


async def test_machines_with_443_alone_or_a_proxy_join_answer_and_outlive_web(net: Internet) -> None:
    lab, office = await net.house("lab", Nat.PORT_PRESERVING), await net.house("office", Nat.PORT_PRESERVING)
    mesh = net.public.address
    await lab.allow_only(443, mesh)
    await office.allow_only(PROXY_PORT, PROXY)
    stack = boxes.house(net.public, INFERENCE_BACKEND="echo", LAN=mesh, WEB_SERVICE_PORT="443")
    async with http_proxy(net), boxes.box(lab) as at_lab, boxes.box(office) as at_office, stack as house:

        async def ticket(role: str) -> str:
            return str((await house.aicli("admin", "tickets", "create", "--role", role, "--json")).json()["ticket"])

        invitation = await ticket("client")
        at_office.variables["HTTPS_PROXY"] = f"http://{PROXY}:{PROXY_PORT}"
        refused_by_proxy = await at_office.start("mesh", "connect", invitation)
        await refused_by_proxy.says(f"the HTTP proxy at {PROXY}:{PROXY_PORT} asks for user and password", seconds=JOIN_SECONDS)
        await refused_by_proxy.kill()
        at_office.variables["HTTPS_PROXY"] = f"http://ann:s%40cret@{PROXY}:{PROXY_PORT}"
        key = (await house.aicli("keys", "create", "office", "--json")).json()["key"]
        connected = await at_office.aicli("mesh", "connect", invitation, "--api-key-stdin", stdin=f"{key}\n")
        assert connected.status == 0, connected.err

        worker = await join(at_lab, await ticket("worker"), "with 443 alone")
        node = await until(lambda: used_node(house), seconds=SERVING_SECONDS, what="the worker serves")
        assert node["path"] == "web"

        async def ask() -> None:
            answer = await at_office.aicli("infer", "--model", MODEL, "--max-tokens", "16", "Count to one hundred.")
            assert answer.status == 0, answer.err
            assert answer.out.strip()

        await ask()
        examined = await at_lab.aicli("doctor", "--worker", "--json")
        assert any(found["check"] == "NATS" and found["ok"] for found in examined.json())

        # It has no end.
        (at_office.home / "letters.gbnf").write_text("root ::= [a-z ] root", encoding="ascii")
        long = ("--max-tokens", "500", "--format", str(at_office.home / "letters.gbnf"), "Count to one hundred.")
        answering = await at_office.start("infer", "--model", MODEL, *long)
        await until(lambda: has_said(answering), seconds=SERVING_SECONDS, what="the answer begins")
        restarted = await house.aicli("stack", "restart", "web")
        assert restarted.status == 0, restarted.err
        async with asyncio.timeout(stopwatch.HANG_SECONDS):
            assert await answering.process.wait() == 0, answering.text()

        revoked = await house.aicli("admin", "nodes", "revoke", node["id"], "--yes")
        assert revoked.status == 0, revoked.err

        async def is_gone() -> bool:
            return await used_node(house) is None

        await until(is_gone, seconds=CUT_SECONDS, what="the worker is gone")
        refused = await at_office.aicli("infer", "--model", MODEL, "Hello?")
        assert refused.status == NOTHING_THERE
        async with asyncio.timeout(stopwatch.HANG_SECONDS):
            assert await worker.process.wait() == 6, worker.text()

        await join(at_office, await ticket("worker"), "through an HTTP proxy with a password")
        node = await until(lambda: used_node(house), seconds=SERVING_SECONDS, what="the worker behind the proxy serves")
        assert node["path"] == "web"
        await ask()


async def join(box: Box, ticket: str, how: str) -> Running:
    """Type a worker's line, and wait until the mesh has admitted it."""
    started_at = stopwatch.now()
    worker = await box.start("worker", "--join", ticket, "--model", f"{MODEL}={model_discovery.packaged()}")
    await worker.says("certified as worker", seconds=JOIN_SECONDS)
    print(f"REACH a worker joined {how} in {stopwatch.now() - started_at:.1f} s")
    return worker


async def used_node(house: Box) -> dict[str, Any] | None:
    rows = (await house.aicli("nodes", "--json")).json()
    return next((row for row in rows if MODEL in row["models"] and row["usable"]), None)


async def has_said(answer: Running) -> bool:
    return bool(answer.text())
