"""A machine in a network that lets nothing out but TCP 443, to the entry of a mesh: deploy/proxy/haproxy.cfg, where web has /mesh."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests import capabilities
from tests.deploy.proxies.acme_server import running
from tests.deploy.proxies.programs import NOBODY, SITE, Backends, HAProxy
from tests.deploy.real import stream_load
from tests.nat import boxes, topology
from tests.nat.topology import CommandFailed, Machine, Nat
from tests.shared.transports.nats import test_tls
from tests.stacks import until

JOIN_SECONDS, SERVING_SECONDS, CUT_SECONDS = 10.0, 40.0, 10.0
#: Of a machine whose key was revoked.
REVOKED = 6
AT_ONCE = 6


class Entry(HAProxy):
    """It listens on a machine with a public address, and reaches web and the gateway on this one."""

    def __init__(self, folder: Path, public: Machine, *, web: int, gateway: int) -> None:
        super().__init__(folder, Backends((gateway, gateway), web, web, web))
        self._public = public

    def write(self, operators: str = NOBODY) -> None:
        super().write(operators)
        file = self.folder / "haproxy.cfg"
        text, here = file.read_text(encoding="utf-8"), f"bind 127.0.0.1:{self.port} "
        assert here in text
        file.write_text(text.replace(here, f"bind {self._public.address}:443 namespace {self._public.place} "), encoding="utf-8")


def make_certificate(folder: Path) -> Path:
    """Write the entry's certificate, which no authority has signed, and return its path."""
    test_tls.make_certificate(folder, SITE)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    (folder / "site.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
    return certificate


async def prove_that_a_worker_joins(
    folder: Path, aicli: Callable[..., Awaitable[str]], *, web: int, gateway: int, key: str, serves_script: bool = False, **variables: str
) -> None:
    """Let a worker join with a new ticket, answer while the entry restarts, and end when it is revoked.

    ``folder`` has the certificate, and ``aicli`` runs an administrator's command. ``serves_script``: web has the packages for the script
    of the printed line; the script itself has tests of its own.
    """
    for name in ("nat", "haproxy"):
        capabilities.require(name)

    async def get() -> str:
        return await lab.run("sh", "-c", get_script)

    async def find_worker() -> dict[str, Any] | None:
        rows = json.loads(await aicli("nodes", "--json"))
        return next((row for row in rows if "echo" in row["models"] and row["usable"]), None)

    async def is_busy() -> bool:
        found = await find_worker()
        return found is not None and found["running"] == AT_ONCE

    made = json.loads(await aicli("admin", "tickets", "create", "--role", "worker", "--json"))
    get_script, _, run_script = made["install"].partition(" | ")
    assert f"https://{SITE}/install.sh" in get_script
    assert run_script == f"sh -s -- {made['ticket']}"
    async with topology.internet() as net:
        lab = await net.house("lab", Nat.PORT_PRESERVING)
        net.point(SITE, net.public.address)
        await lab.allow_only(443, net.public.address)
        entry = Entry(folder, net.public, web=web, gateway=gateway)
        entry.write()
        command = (entry.command(), folder / "proxy.log")
        async with boxes.box(lab, ECHO_TOKEN_MS="250", **variables) as box:
            with ExitStack() as opened:
                before = opened.enter_context(ExitStack())
                before.enter_context(running(*command))
                if serves_script:
                    assert "aip_join_" in await until(get, what="the entry has the script", ignoring=(CommandFailed,))
                worker = await box.start("worker", "--join", made["ticket"], "--backend", "echo")
                await worker.says("certified as worker", seconds=JOIN_SECONDS)
                node = await until(find_worker, seconds=SERVING_SECONDS, what="the worker serves")
                assert node["path"] == "web"
                async with stream_load.streams(f"http://127.0.0.1:{gateway}", key, "echo", AT_ONCE) as load:
                    await until(is_busy, seconds=SERVING_SECONDS, what="the worker answers")
                    before.close()
                    opened.enter_context(running(*command))
                    await load.wait_for(more=2 * AT_ONCE)
                assert not load.failed, load.failed
                await aicli("admin", "nodes", "revoke", node["id"], "--yes")
                async with asyncio.timeout(CUT_SECONDS):
                    assert await worker.process.wait() == REVOKED, worker.text()
