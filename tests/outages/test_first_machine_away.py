"""Replicas made by `aicli stack replica` serve without the first machine, also after a restart of NATS, and none starts incomplete."""

import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from shared import api, errors
from shared.types import Role
from stack.servers import replica_tickets
from tests import people, replicas
from tests.stacks import RunningStack, until

#: As often as the review of the issue tried.
REGISTRATIONS, TICKETS = 10, 8


@asynccontextmanager
async def without_its_auth(stack: RunningStack) -> AsyncIterator[None]:
    """End the stack's own auth for the block: without its key, the supervisor doesn't start it again."""
    key = stack.place.secrets / "data_key"
    hidden = key.rename(key.with_suffix(".hidden"))
    try:
        await stack.kill("auth")

        async def is_down() -> bool:
            return (await stack.programs())["auth"].state == "down"

        await until(is_down, seconds=60, what="the first auth stays down")
        yield
    finally:
        hidden.rename(key)
        assert (await stack.aicli("stack", "restart", "auth")).status == 0


@pytest.mark.timeout(300)
async def test_replicas_serve_without_the_first_auth_after_nats_restarted(stack: RunningStack, tmp_path: Path) -> None:
    async with AsyncExitStack() as opened:
        seconds = [
            await opened.enter_async_context(replicas.replica(stack, service, folder=tmp_path, name=name))
            for service, name in (("auth", "auth-2"), ("auth", "auth-3"), ("metrics", "metrics-2"))
        ]
        for second in seconds:
            await second.ready()
        async with without_its_auth(stack):
            killed_at = time.monotonic()
            await stack.restarted("nats", await stack.kill("nats"))
            async with people.api_client(stack) as client:

                async def registers() -> bool:
                    return bool(await client.register("probe"))

                await until(registers, seconds=30, what="somebody can register", ignoring=(errors.AimeshError,))
                print(f"OUTAGE nats, without the first auth: {time.monotonic() - killed_at:.1f} s until somebody can register")
                for number in range(REGISTRATIONS):
                    await client.register(f"ann{number}")
                for _ in range(TICKETS):
                    wanted = api.membership.CreateTicket(Role.GATEWAY, active_most=1, networks=replica_tickets.PRIVATE_IPV4_NETWORKS)
                    assert (await client.mesh.rpc.call(api.membership.create_ticket, wanted, credential=client.admin_key)).ticket
            done = await stack.aicli("infer", "hello")
            assert (done.status, done.out.strip()) == (0, "hello"), done.err
        logs = "".join([stack.log("metrics"), seconds[-1].log])
        assert len(re.findall("became leader for alerts", logs)) == 1 + len(re.findall("no longer leader for alerts", logs))


@pytest.mark.parametrize(
    ("service", "lacking"),
    [
        ("auth", ("NATS_ISSUER_KEY_FILE", "NATS_CALLOUT_KEY_FILE", "NATS_SYS_KEY_FILE")),
        ("auth", ("OPEN_REGISTRATION", "PUBLIC_URL")),
        ("auth", ("MESH_CA_KEY_FILE",)),
        ("auth", ("DATA_KEY_FILE",)),
        ("gateway", ("DHT_BOOTSTRAP",)),
        ("metrics", ("DATABASE_URL_FILE",)),
        ("web", ("WEB_HOP_SECRET_FILE",)),
    ],
)
async def test_an_incomplete_replica_does_not_start(stack: RunningStack, tmp_path: Path, service: str, lacking: tuple[str, ...]) -> None:
    async with replicas.replica(stack, service, folder=tmp_path, settings=dict.fromkeys(lacking, "")) as second:
        assert await second.ended() == 2, second.log
    assert f"aicli stack replica {service}" in second.log
    for name in lacking:
        assert re.search(rf"\b{name.removesuffix('_FILE')}", second.log)
    assert "Traceback" not in second.log
