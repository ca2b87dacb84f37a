"""A gateway of the previous release beside this one, forward and back: every policy stays as it was, and no gateway answers a request under
a policy that it can't read."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.types import Tier
from tests import people, replicas
from tests.integration import asking
from tests.people import Person
from tests.replicas import Replica
from tests.rolling import previous_release
from tests.rolling.test_way_back import Fleet, Traffic, pending_post, servers_of
from tests.stacks import HEAD, RunningStack, stack, until

SETTINGS = {"INFERENCE_BACKEND": "echo", "HYPERSWARM": "off", "DEFAULT_RATE_LIMIT": "1000000", "TIER_ENTERPRISE": "concurrency=1000"}
#: Requests to each gateway.
REQUESTS = 20
EMAIL = "write to ann@example.org"
#: What the previous release reads, and what it doesn't.
READABLE: dict[str, Any] = {
    "policies": {"mesh": {"machines": "internal", "guard": {"prompt": {"email": "refuse"}}}},
    "plans": {"free": {"requests_per_minute": 77}},
    "model_limits": {"echo": {"concurrency": 99}},
    "routes": {"assistant": {"targets": [{"name": "main", "model": "echo"}]}},
}


def restricted(ann: Person) -> dict[str, Any]:
    """The same with policies of this release: for everybody, and of ann's key."""
    mesh = READABLE["policies"]["mesh"] | {"flex": "never"}
    key = {"models": ["assistant", "echo"], "flex": "never"}
    return {**READABLE, "policies": {"mesh": mesh, f"key:{ann.key.id}": key}}


def readable_again(ann: Person) -> dict[str, Any]:
    return {**READABLE, "policies": READABLE["policies"] | {f"key:{ann.key.id}": None}}


class Mesh:
    def __init__(self, running: RunningStack, ann: Person) -> None:
        self.running = running
        self.ann = ann

    async def apply(self, url: str, documents: dict[str, Any]) -> list[str]:
        async with self.running.http(self.running.api_key) as http:
            done = await http.post(f"{url}/rpc/gateway.applyConfig", json={"text": json.dumps(documents)})
        assert done.status_code == 200, done.text
        return list(done.json()["warnings"])

    async def documents(self) -> dict[str, tuple[Any, str]]:
        """Return the body and origin of each current document."""
        async with self.running.database("gateway") as database:
            rows = await database.fetch(
                "select kind, name, body, origin from config_current join config_versions using (kind, name, version) order by kind, name"
            )
        return {f"{row['kind']}/{row['name']}": (json.loads(row["body"] or "null"), row["origin"]) for row in rows}

    async def ask(self, url: str, prompt: str = "hi") -> int:
        """Return the status of a request; 0 without an answer."""
        async with self.running.http(self.ann.key.secret) as http:
            try:
                answer = await http.post(f"{url}/v1/chat/completions", json=asking.chat_body(prompt), timeout=20)
            except httpx.HTTPError:
                return 0
        return answer.status_code

    async def answers(self, url: str) -> None:
        """Check that a gateway answers, and applies the guardrail."""
        for _ in range(REQUESTS):
            assert await self.ask(url) == 200
        assert await self.ask(url, EMAIL) == 400, "its policy refuses addresses"

    async def is_silent(self, url: str) -> None:
        """Wait until a gateway is cut off, then check that it answers nothing."""

        async def refuses() -> bool:
            return await self.ask(url) != 200

        await until(refuses, seconds=30, what="the gateway refuses")
        for _ in range(REQUESTS):
            assert await self.ask(url) != 200


@pytest.mark.timeout(600)
async def test_the_previous_gateway_keeps_every_policy_and_answers_under_none_that_it_cannot_read(tmp_path: Path) -> None:
    previous = await asyncio.to_thread(previous_release.find)
    async with stack(previous, **SETTINGS) as old, people.api_client(old) as api_client:
        mesh = Mesh(old, await api_client.register("ann", Tier.ENTERPRISE))
        assert (await old.aicli("stack", "down")).status == 0
        new = RunningStack(old.home, old.environment, HEAD)
        fleet, traffic = Fleet(old, tmp_path), Traffic()
        async with servers_of(old.place):
            try:
                # Forward.
                for service in replicas.ROLES:
                    await fleet.start(service, HEAD, traffic)
                url = traffic.url
                warnings = await mesh.apply(url, restricted(mesh.ann))
                assert any("policy mesh: gateways of releases before 0.4.0 can't read it" in warning for warning in warnings), warnings
                before = await mesh.documents()
                await mesh.answers(url)
                # One of the previous release starts beside it.
                async with replicas.replica(old, "gateway", folder=tmp_path, name="beside", release=previous) as beside:
                    await check_refused(mesh, beside)
                    assert await mesh.documents() == before
                    # What it can't read goes, so it may answer; what comes back ends that.
                    await mesh.apply(url, readable_again(mesh.ann))
                    await beside.restart()
                    readable = await mesh.documents()
                    for each in (url, beside.url):
                        await mesh.answers(each)
                    assert any(beside.node[:12] in warning for warning in await mesh.apply(url, restricted(mesh.ann)))
                    await mesh.is_silent(beside.url)
                    await mesh.answers(url)
                    assert await mesh.documents() == before
                # Back, as the page says: first what keeps the previous release out.
                shown = await new.aicli("admin", "config", "show", "--json")
                needs = {f"{row['kind']}/{row['name']}": row["needs_release"] for row in shown.json()}
                assert {key for key, release in needs.items() if release != "0.3.0"} == {"policy/mesh", f"policy/key:{mesh.ann.key.id}"}
                await mesh.apply(url, readable_again(mesh.ann))
                for service in reversed(list(replicas.ROLES)):
                    await fleet.start(service, previous, traffic)
                await mesh.answers(traffic.url)
                assert await mesh.documents() == readable, "its start writes over nothing"
                # Forward for good.
                for service in replicas.ROLES:
                    await fleet.start(service, HEAD, traffic)
                await mesh.answers(traffic.url)
                assert await mesh.documents() == readable
                assert pending_post(await new.aicli("stack", "migrate", "--post", "--json")) == []
            finally:
                await fleet.close()


async def check_refused(mesh: Mesh, beside: Replica) -> None:
    """Check that auth refuses its login, which ends it, and that it answers nothing until then."""
    while beside.process.poll() is None:
        assert await mesh.ask(beside.url) != 200
        await asyncio.sleep(0.05)
    assert "refused this node's key" in beside.log
    refusals = await mesh.running.aicli("admin", "nodes", "refusals")
    assert "gateways of releases before 0.4.0 can't read the configuration" in refusals.out, refusals.out
