"""A stock NATS client (nats-py) with the operator's key: it finds the five services and calls them."""

import asyncio
import json
import re
import sys

import msgpack  # type: ignore[import-untyped]
import nats.errors
import pytest
from nats.aio.client import Client as NatsClient

from shared.types import SERVICE_ROLES
from tests.people import Person
from tests.stacks import MESH, REPOSITORY, RunningStack, until

PAGE = REPOSITORY / "docs" / "protocol.md"
#: Longer than the program's own deadlines, so that the program says what it waited for.
SECONDS = 110


async def _ping(connection: NatsClient, subject: str) -> list[dict[str, str]]:
    """Return all answers. Their number is unknown, so read the inbox until it is quiet."""
    inbox = connection.new_inbox()
    subscription = await connection.subscribe(inbox)
    await connection.publish(subject, reply=inbox)
    found = []
    try:
        while True:
            found.append(json.loads((await subscription.next_msg(timeout=1)).data))
    except nats.errors.TimeoutError:
        return found
    finally:
        await subscription.unsubscribe()


async def test_the_five_services_are_found_by_a_ping(stack: RunningStack) -> None:
    async with stack.operator() as connection:

        async def all_answer() -> bool:
            return {one["name"] for one in await _ping(connection, "$SRV.PING")} == set(SERVICE_ROLES)

        await until(all_answer, what="all five answer")

        async def both_workers() -> list[dict[str, str]] | None:
            found = await _ping(connection, "$SRV.PING.worker")
            return found if len(found) == 2 else None

        workers = await until(both_workers, what="both workers answer")
        assert len({one["id"] for one in workers}) == 2
        assert all(one["type"] == "io.nats.micro.v1.ping_response" for one in workers)


async def test_info_names_the_endpoints_and_stats_counts_their_calls(stack: RunningStack, ann: Person) -> None:
    async with stack.operator() as connection:
        info = json.loads((await connection.request("$SRV.INFO.auth", timeout=30)).data)
        subjects = {one["name"]: one["subject"] for one in info["endpoints"]}

        async def calls() -> int:
            stats = json.loads((await connection.request("$SRV.STATS.auth", timeout=30)).data)
            return int(next(one["num_requests"] for one in stats["endpoints"] if one["name"] == "validateApiKey"))

        before = await calls()
        await connection.request(subjects["validateApiKey"], msgpack.packb({"apiKey": ann.key.secret}), timeout=30)
        assert await calls() == before + 1


async def test_validate_api_key_by_msgpack_and_by_json(stack: RunningStack, ann: Person) -> None:
    subject = f"aimesh.{MESH}.rpc.auth.validateApiKey"
    request = {"apiKey": ann.key.secret}
    async with stack.operator() as connection:
        packed = await connection.request(subject, msgpack.packb(request), timeout=30)
        plain = await connection.request(subject, json.dumps(request).encode(), timeout=30, headers={"content-type": "application/json"})
    found = msgpack.unpackb(packed.data)
    assert found["username"] == ann.username
    assert found["tier"] == "pro"
    assert json.loads(plain.data)["userId"] == str(ann.id)
    assert json.loads(plain.data)["keyId"] == str(ann.key.id)


@pytest.mark.parametrize(("key", "status"), [("aip_live_" + "0" * 49, "401"), ("", "401"), ("nonsense", "401"), (5, "400"), (None, "400")])
async def test_a_bad_key_is_an_error_of_the_micro_protocol(stack: RunningStack, key: object, status: str) -> None:
    async with stack.operator() as connection:
        answer = await connection.request(f"aimesh.{MESH}.rpc.auth.validateApiKey", msgpack.packb({"apiKey": key}), timeout=30)
    assert answer.headers is not None
    assert answer.headers["Nats-Service-Error-Code"] == status
    assert json.loads(answer.data)["error"]["code"] in {"not_authenticated", "bad_request"}


async def test_the_program_of_the_documentation_runs_inference(stack: RunningStack, ann: Person) -> None:
    [program] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert f"aimesh.{MESH}.rpc." in program
    variables = {
        "AICLI_API_KEY": ann.key.secret,
        "NATS_URL": f"nats://127.0.0.1:{stack.environment['NATS_PORT']}",
        "OPERATOR_KEY_FILE": str(stack.place.key("operator")),
    }
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=variables, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(SECONDS):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    texts, _, last = out.decode().rstrip().rpartition("\n ")
    assert texts.strip()
    headers, _, end = last.partition("} ")
    assert "'stream': 'end'" in headers
    await stack.recorded(ann.id, 2)
    async with stack.database("gateway") as database:
        query = "SELECT status, completion_tokens FROM gateway.request_logs WHERE user_id = $1 ORDER BY id"
        (first, _), (second, tokens) = await database.fetch(query, ann.id)
    assert (first, second, tokens) == ("success", "success", json.loads(end)["usage"]["completionTokens"]), "each was billed once"


async def test_an_operator_cannot_listen_to_the_mesh(stack: RunningStack) -> None:
    refused: list[Exception] = []

    async def note(error: Exception) -> None:
        refused.append(error)

    url = f"nats://127.0.0.1:{stack.environment['NATS_PORT']}"
    connection = await nats.connect(url, nkeys_seed=str(stack.place.key("operator")), allow_reconnect=False, error_cb=note)
    try:
        for subject in (f"aimesh.{MESH}.gateway.>", f"aimesh.{MESH}.event.>", ">"):
            await connection.subscribe(subject)
        await connection.flush()

        async def all_refused() -> bool:
            return len(refused) == 3

        await until(all_refused, what="all three are refused")
    finally:
        await connection.close()
        await asyncio.sleep(0)
    assert all("permissions violation" in str(error).lower() for error in refused)
