"""500 logins at once: nobody gets an odd answer, no more passwords are compared than allowed, and the rest of the mesh goes on.

Each login comes from an address of its own, as a botnet's do: one address alone has 30 guesses, and all answers would be about that.
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
#: All 500 hashed at once would be 10 GB.
MOST_GROWTH_BYTES = 1024**3
#: With the stack's 5 ms for each, some seconds: longer than the logins take.
WORDS = 600


@dataclass(frozen=True, slots=True)
class Login:
    username: str
    password: str


@dataclass(frozen=True, slots=True)
class Told:
    status: int
    #: Of the error; empty where there is none.
    code: str
    #: None where it does not say when to come again.
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
    """All of 127/8 is this machine; a second storm comes from elsewhere, so that it is not charged for the first one."""
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
    """Of auth, in bytes: VmRSS is what it holds, VmHWM the most that it ever held."""
    pid = (await stack.pids())["auth"]
    return _read_memory(Path(f"/proc/{pid}/status"), line)


def _read_memory(status: Path, line: str) -> int:
    lines = status.read_text(encoding="ascii").splitlines()
    return next(int(each.split()[1]) * 1024 for each in lines if each.startswith(line))


async def _beside_a_stream(stack: RunningStack, reader: Person, logins: Sequence[Login]) -> list[Told]:
    """What the logins were told; somebody's answer that had begun before came whole, and auth held no more than it may."""
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
    assert await _memory(stack, "VmHWM") - before < MOST_GROWTH_BYTES
    return told


def _check_refusals(told: Sequence[Told]) -> None:
    """Whoever was not let in, and not for a wrong password, hears why and when to come again."""
    refused = [one for one in told if one.status not in {200, 401}]
    assert {(one.status, one.code) for one in refused} <= {(429, "rate_limited"), (503, "overloaded")}, Counter(refused)
    assert all(one.retry_after is not None and int(one.retry_after) >= 1 for one in refused), Counter(refused)


async def test_500_guesses_at_one_account_are_ten(stack: RunningStack, ann: Person, bob: Person) -> None:
    told = await _beside_a_stream(stack, bob, [Login(ann.username, f"guess number {number}") for number in range(LOGINS)])

    assert len(told) == LOGINS
    _check_refusals(told)
    assert Counter(one.status for one in told)[401] == 10
    # The right password is not compared any more, either: an eleventh guess would be one.
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
    # They wait their turn, ten seconds at most, and then are told to come again.
    assert statuses[200] >= 100
    assert {await _status_of(stack, one) for one in (people[0], people[-1], Login(bob.username, bob.password))} == {200}
