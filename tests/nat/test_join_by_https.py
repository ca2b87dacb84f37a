"""Machines in networks that let nothing out but TCP 443, or only an HTTP proxy with a password: with the commands that users type."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from services.inference.models import model_discovery
from tests import stopwatch
from tests.nat import boxes, topology
from tests.nat.boxes import Box
from tests.nat.topology import PUBLIC_ADDRESSES, House, Internet, Nat
from tests.stacks import until

pytestmark = pytest.mark.timeout(900)

MODEL, JOIN_SECONDS, SERVING_SECONDS, CUT_SECONDS, NOTHING_THERE = "lent", 10.0, 40.0, 5.0, 5
PROXY, PROXY_PORT = PUBLIC_ADDRESSES[1], 3128


async def allow_only(site: House, port: int, to: str) -> None:
    """Drop what leaves the site, without an error, except TCP to this port."""
    for rule in (("-j", "DROP"), ("-p", "tcp", "-d", to, "--dport", str(port), "-j", "ACCEPT")):
        await topology.command("ip", "netns", "exec", site.gate, "iptables", "-w", "-I", "FORWARD", "-i", "in", *rule)


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


async def test_a_worker_with_443_alone_and_a_client_behind_a_proxy_join_answer_and_outlive_web(net: Internet) -> None:
    lab, office = await net.house("lab", Nat.PORT_PRESERVING), await net.house("office", Nat.PORT_PRESERVING)
    mesh = net.public.address
    await allow_only(lab, 443, mesh)
    await allow_only(office, PROXY_PORT, PROXY)
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

        started_at = stopwatch.now()
        worker = await at_lab.start("worker", "--join", await ticket("worker"), "--model", f"{MODEL}={model_discovery.packaged()}")
        await worker.says("certified as worker", seconds=JOIN_SECONDS)
        assert stopwatch.now() - started_at < JOIN_SECONDS
        node = await until(lambda: used_node(house), seconds=SERVING_SECONDS, what="the worker serves")
        assert node["path"] == "web"

        async def ask(tokens: int) -> str:
            answer = await at_office.aicli("infer", "--model", MODEL, "--max-tokens", str(tokens), "Count to one hundred.")
            assert answer.status == 0, answer.err
            assert answer.out.strip()
            return answer.out

        await ask(16)
        examined = await at_lab.aicli("doctor", "--worker", "--json")
        assert any(found["check"] == "NATS" and found["ok"] for found in examined.json())

        answering = asyncio.create_task(ask(400))
        await until(lambda: is_answering(house), seconds=SERVING_SECONDS, what="the worker answers")
        assert not answering.done()
        restarted = await house.aicli("stack", "restart", "web")
        assert restarted.status == 0, restarted.err
        await answering

        revoked = await house.aicli("admin", "nodes", "revoke", node["id"], "--yes")
        assert revoked.status == 0, revoked.err

        async def is_gone() -> bool:
            return await used_node(house) is None

        await until(is_gone, seconds=CUT_SECONDS, what="the worker is gone")
        refused = await at_office.aicli("infer", "--model", MODEL, "Hello?")
        assert refused.status == NOTHING_THERE
        async with asyncio.timeout(stopwatch.HANG_SECONDS):
            assert await worker.process.wait() == 6, worker.text()


async def used_node(house: Box) -> dict[str, object] | None:
    rows = (await house.aicli("nodes", "--json")).json()
    return next((row for row in rows if MODEL in row["models"] and row["usable"]), None)


async def is_answering(house: Box) -> bool:
    found = await used_node(house)
    return found is not None and bool(found["running"])
