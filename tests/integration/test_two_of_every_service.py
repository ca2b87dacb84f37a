"""Two of every service on one mesh: all become ready, both gateways answer, and NATS refuses no node's request."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from shared import errors
from tests import replicas
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, until


@pytest.mark.nightly("stacks")
async def test_two_of_every_service_run_and_nats_refuses_nothing(
    stack: RunningStack, api_client: ApiClient, ann: Person, tmp_path: Path
) -> None:
    before = replicas.refusals(stack, [])
    async with AsyncExitStack() as running:
        seconds = [await running.enter_async_context(replicas.replica(stack, service, folder=tmp_path)) for service in replicas.ROLES]
        for second in seconds:
            await second.ready()
        for _ in range(8):  # each at a random gateway
            assert (await asking.rpc(api_client.mesh, ann.key.secret, "hi")).text == "hi"

        # Announcements carry the new revocation list, and replicas of one role receive each other's.
        worker = next(second for second in seconds if second.service == "inference")
        done = await stack.aicli("admin", "nodes", "revoke", worker.node, "--reason", "a new list for all", "--yes")
        assert done.status == 0, done.err

        async def left_out() -> bool:
            rows = {row["id"]: row for row in (await stack.aicli("nodes", "--json")).json()}
            return not rows.get(worker.node, {"usable": False})["usable"]

        await until(left_out, seconds=30, what="every gateway knows the new list", ignoring=(errors.AimeshError,))
        assert replicas.refusals(stack, seconds)[len(before) :] == []
