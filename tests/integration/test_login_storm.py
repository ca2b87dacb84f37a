"""500 logins at once: no unexpected answers, no more password comparisons than allowed, and the rest of the mesh keeps working.

Each login comes from its own address, as from a botnet: one address alone has 30 guesses, and all answers would be about that limit.
"""

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from shared.api import auth
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.stacks import RunningStack

pytestmark = pytest.mark.nightly("storms")

LOGINS, ACCOUNTS = 500, 100
#: Hashing all 500 at once would take 10 GB.
MAX_GROWTH_BYTES = 1024**3
#: At the stack's 5 ms a word, the answer takes longer than the logins.
WORDS = 600


@dataclass(frozen=True, slots=True)
class Login:
    username: str
    password: str


@dataclass(frozen=True, slots=True)
class Told:
    status: int
    #: Code of the error; empty if there is none.
    code: str
    #: None if the answer doesn't say when to retry.
    retry_after: str | None


async def _log_in(port: int, login: Login, address: str, begun: asyncio.Event) -> Told:
    body = json.dumps({"username": login.username, "password": login.password})
    lines = ("POST /api/auth/login HTTP/1.1", "host: localhost", "content-type: application/json", f"content-length: {len(body)}")
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    try:
        await begun.wait()
        writer.write(("\r\n".join([*lines, "connection: close"]) + "\r\n\r\n" + body).encode())
        head, _, content = (await reader.read()).decode().partition("\r\n\r\n")
    finally:
        writer.close()
    status, *headers = head.split("\r\n")
    said = httpx.Headers([(name, value.strip()) for name, _, value in (line.partition(":") for line in headers)])
    return Told(int(status.split()[1]), json.loads(content).get("error", {}).get("code", ""), said.get("retry-after"))


async def _at_once(stack: RunningStack, logins: Sequence[Login]) -> list[Told]:
    """Send all logins at once. All of 127/8 is this machine; each storm has other addresses, so that an earlier one doesn't count."""
    port, begun, net = int(stack.environment["GATEWAY_SERVICE_PORT"]), asyncio.Event(), f"127.{100 + secrets.randbelow(100)}"
    third = secrets.randbelow(250)
    async with asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(_log_in(port, login, f"{net}.{third + number // 250}.{1 + number % 250}", begun))
            for number, login in enumerate(logins)
        ]
        begun.set()
    return [task.result() for task in waiting]


async def _status_of(stack: RunningStack, login: Login) -> int:
    (told,) = await _at_once(stack, [login])
    return told.status


async def _memory(stack: RunningStack, line: str) -> int:
    """Return auth's memory in bytes: VmRSS is the current use, VmHWM the peak."""
    pid = (await stack.pids())["auth"]
    return _read_memory(Path(f"/proc/{pid}/status"), line)


def _read_memory(status: Path, line: str) -> int:
    lines = status.read_text(encoding="ascii").splitlines()
    return next(int(each.split()[1]) * 1024 for each in lines if each.startswith(line))


async def _beside_a_stream(stack: RunningStack, reader: Person, logins: Sequence[Login]) -> list[Told]:
    """Return the answers to the logins. A stream that began before must complete, and auth must stay within its memory limit."""
    before = await _memory(stack, "VmRSS")
    prompt = "word " * WORDS
    async with stack.http(reader.key.secret) as http:
        body = asking.chat_body(prompt, stream=True)
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            while '"content":"word' not in (await anext(lines)):
                pass
            storm = asyncio.create_task(_at_once(stack, logins))
            rest = [line async for line in lines]
    assert sum('"content":"' in line for line in rest) >= WORDS - 1
    assert [line for line in rest if line][-1] == "data: [DONE]"
    told = await storm
    assert await _memory(stack, "VmHWM") - before < MAX_GROWTH_BYTES
    return told


def _check_refusals(told: Sequence[Told]) -> None:
    """Check that every login refused for another reason than a wrong password says why and when to retry."""
    refused = [one for one in told if one.status not in {200, 401}]
    assert {(one.status, one.code) for one in refused} <= {(429, "rate_limited"), (503, "overloaded")}, Counter(refused)
    assert all(one.retry_after is not None and int(one.retry_after) >= 1 for one in refused), Counter(refused)


async def test_500_guesses_at_one_account_are_ten(stack: RunningStack, ann: Person, bob: Person) -> None:
    told = await _beside_a_stream(stack, bob, [Login(ann.username, f"guess number {number}") for number in range(LOGINS)])

    assert len(told) == LOGINS
    _check_refusals(told)
    assert Counter(one.status for one in told)[401] == 10
    # Auth no longer compares even the right password: that would be an eleventh guess.
    assert await _status_of(stack, Login(ann.username, ann.password)) == 429
    assert await _status_of(stack, Login(bob.username, bob.password)) == 200
    async with stack.http(ann.key.secret) as http:
        assert (await http.get("/v1/models")).status_code == 200, "keys go on working"


async def test_500_right_logins_of_100_people_are_let_in_or_told_to_come_again(
    stack: RunningStack, api_client: ApiClient, bob: Person
) -> None:
    people = [Login(f"storm{number}-{secrets.token_hex(4)}", secrets.token_urlsafe(18)) for number in range(ACCOUNTS)]
    for one in people:
        await api_client.mesh.rpc.call(
            auth.register_user, auth.RegisterUser(auth.UserData(one.username, f"{one.username}@example.org", one.password))
        )
    told = await _beside_a_stream(stack, bob, people * (LOGINS // ACCOUNTS))

    assert len(told) == LOGINS
    _check_refusals(told)
    statuses = Counter(one.status for one in told)
    assert statuses[401] == 0
    # Logins wait in a queue for at most ten seconds, and are then refused with a retry time.
    assert statuses[200] >= 100
    assert {await _status_of(stack, one) for one in (people[0], people[-1], Login(bob.username, bob.password))} == {200}
