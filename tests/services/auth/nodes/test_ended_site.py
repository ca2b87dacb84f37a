"""Revoking the nodes of a replaced site, as `aicli stack promote` does: before auth starts, and without recovery log lines."""

import asyncio
import sys

import msgspec

from services.auth import store
from services.auth.nodes import ended_site
from services.auth.nodes.node_store import NodeStore
from shared.api.membership import MemberState
from shared.types import Role
from tests.services.auth.nodes.test_node_store import new_node, now


async def test_services_are_revoked_even_auth_and_the_list_is_newer(postgres_url: str) -> None:
    nodes = {new_node(): Role.AUTH, new_node(): Role.GATEWAY}
    kept = new_node()
    async with store.opened(postgres_url) as database:
        members = NodeStore(database)
        await members.ensure_vouched(kept, Role.GATEWAY)
        before = await members.read_state(now())
        assert await ended_site.revoke(postgres_url, nodes) == 2
        after = await members.read_state(now())
        assert (set(after.revoked), after.number > before.number) == (set(nodes), True)
        assert await ended_site.revoke(postgres_url, nodes) == 0, "after a crash it runs again"
        assert (await members.read_state(now())).number == after.number
        found = await members.find_node(kept)
        assert found is not None
        assert found.state is MemberState.ACTIVE
        # The log's files may have later lines, with the numbers that these lines would get.
        assert await database.rows("list_recovery_lines", 0, 10) == []


async def test_it_needs_an_address_and_nothing_else(plain_url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.auth.nodes.ended_site", env={"DATABASE_URL": plain_url},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await process.communicate(msgspec.json.encode({new_node(): Role.WEB}))
    assert (process.returncode, said) == (0, b"1\n")
