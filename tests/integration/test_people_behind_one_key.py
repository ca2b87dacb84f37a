"""Two people behind one key at three gateways: their limits, their rows, their jobs, and their end within seconds."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from shared.api import auth
from shared.types import Tier
from tests.integration import asking
from tests.integration.test_revoked_everywhere import client, three_gateways
from tests.people import ApiClient, Key
from tests.stacks import RunningStack, until

pytestmark = pytest.mark.nightly("stacks")

HEADER = "X-OpenWebUI-User-Email"
#: Of changes, at every gateway.
SECONDS = 5.0


class Gateways:
    def __init__(self, clients: list[httpx.AsyncClient]) -> None:
        self._clients = clients

    async def ask(self, email: str) -> list[tuple[int, str]]:
        """Ask all of them for this person, and return the statuses and codes."""
        headers = {HEADER: email} if email else {}
        body = asking.chat_body("hi")
        answers = await asyncio.gather(*(each.post("/v1/chat/completions", json=body, headers=headers) for each in self._clients))
        return [(each.status_code, each.json().get("error", {}).get("aimesh_code", "")) for each in answers]

    async def have_all(self, email: str, status: int, code: str = "") -> None:
        async def has() -> bool:
            return await self.ask(email) == [(status, code)] * len(self._clients)

        await until(has, seconds=SECONDS, what=f"every gateway answers {status} {code}")


@pytest.fixture
async def key(api_client: ApiClient) -> Key:
    return await api_client.make_naming_key("webui")


@pytest.fixture
async def gateways(stack: RunningStack, key: Key, tmp_path: Path) -> AsyncIterator[Gateways]:
    async with AsyncExitStack() as entered:
        urls = await entered.enter_async_context(three_gateways(stack, tmp_path))
        yield Gateways([await entered.enter_async_context(client(url, key.secret)) for url in urls])


async def test_people_behind_one_key(stack: RunningStack, api_client: ApiClient, key: Key, gateways: Gateways) -> None:
    ann, ben = [await api_client.register(name, Tier.PRO, is_added=True) for name in ("ann", "ben")]
    for person in (ann, ben):
        assert await gateways.ask(person.email.upper()) == [(200, "")] * 3
    for nobody in ("nobody@example.org", ""):
        assert await gateways.ask(nobody) == [(403, "person_refused")] * 3
    for person in (ann, ben):
        await stack.recorded(person.id, 3)
    async with stack.database("gateway") as database:
        rows = await database.fetch("SELECT user_id, tenant_id FROM request_logs WHERE api_key_id = $1 AND status = 'success'", key.id)
    assert sorted(row["user_id"] for row in rows) == sorted(row["tenant_id"] for row in rows) == sorted([ann.id] * 3 + [ben.id] * 3)

    # The free tier's limit per minute, which all gateways count together, is ann's alone.
    await api_client.mesh.rpc.call(auth.set_tier, auth.SetTier(ann.username, Tier.FREE), credential=api_client.admin_key)
    await gateways.have_all(ann.email, 429, "rate_limited")
    assert await gateways.ask(ben.email) == [(200, "")] * 3
    await api_client.mesh.rpc.call(auth.set_tier, auth.SetTier(ann.username, Tier.PRO), credential=api_client.admin_key)
    await gateways.have_all(ann.email, 200)

    await api_client.mesh.rpc.call(auth.set_active, auth.SetActive(ben.username, is_active=False), credential=api_client.admin_key)
    await gateways.have_all(ben.email, 403, "person_refused")
    cat = await api_client.register("cat", Tier.PRO, is_added=True)
    await gateways.have_all(cat.email, 200)
    assert (await stack.aicli("keys", "revoke", str(key.id))).status == 0
    await gateways.have_all(ann.email, 401, "not_authenticated")


async def test_jobs_and_files_belong_to_who_made_them(stack: RunningStack, api_client: ApiClient, key: Key) -> None:
    ann, ben = [await api_client.register(name, Tier.PRO, is_added=True) for name in ("ann", "ben")]
    asked = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": asking.chat_body("hi")}
    async with stack.http(key.secret) as http, stack.http(ann.key.secret) as as_ann, stack.http(ben.key.secret) as as_ben:
        of_ann = {HEADER: ann.email}
        files = {"purpose": (None, "batch"), "file": ("lines.jsonl", json.dumps(asked))}
        file = (await http.post("/v1/files", files=files, headers=of_ann)).json()
        wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = (await http.post("/v1/batches", json=wanted, headers=of_ann)).json()

        async def is_done() -> bool:
            return (await as_ann.get(f"/v1/batches/{batch['id']}")).json()["status"] == "completed"

        await until(is_done, seconds=60, what="the batch is completed")
        assert (await as_ben.get(f"/v1/batches/{batch['id']}")).status_code == 404
        assert (await http.get(f"/v1/batches/{batch['id']}", headers={HEADER: ben.email})).status_code == 404
    await stack.recorded(ann.id, 1)
    async with stack.database("gateway") as database:
        rows = await database.fetch("SELECT user_id, tenant_id FROM request_logs WHERE api_key_id = $1", key.id)
    assert [(row["user_id"], row["tenant_id"]) for row in rows] == [(ann.id, ann.id)]
