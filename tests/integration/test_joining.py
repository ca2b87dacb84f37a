"""External machines at a whole stack: they join with a ticket, serve, send requests, are paused, and are revoked."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.output.exit_codes import ExitCode
from shared import errors
from shared.api.membership import Membership
from shared.identity import node_keys, tickets
from shared.identity.node_keys import NodeKey
from shared.node import enrollment
from shared.node.enrollment import EnrollingNode, EnrollmentOptions
from shared.types import Role
from tests import outside, slow_model
from tests.outside import Machine, Running
from tests.people import Person
from tests.slow_model import SlowModel
from tests.stacks import RunningStack, until

CUT_SECONDS = 5.0
LONG = "word " * 3000


@pytest.fixture
async def model() -> AsyncIterator[SlowModel]:
    """A model that only the external machine has."""
    async with slow_model.serving(f"lent-{secrets.token_hex(3)}") as found:
        yield found


@pytest.fixture
async def box() -> AsyncIterator[Machine]:
    with outside.machine() as machine:
        yield machine


@pytest.fixture
async def cafe() -> AsyncIterator[Machine]:
    with outside.machine() as machine:
        yield machine


def serve(box: Machine, model: SlowModel, *arguments: str) -> Running:
    return box.start_worker(*arguments, "--backend", "openai", OPENAI_BASE_URL=model.url, OPENAI_API_KEY="none")


async def row_of(stack: RunningStack, model: SlowModel, *, usable: bool = True) -> dict[str, Any]:
    """Return the node of that model in `aicli nodes`, as soon as it is usable, or isn't."""

    async def find() -> dict[str, Any] | None:
        rows = (await stack.aicli("nodes", "--json")).json()
        return next((row for row in rows if model.name in row["models"] and row["usable"] is usable), None)

    return await until(find, seconds=20 if usable else CUT_SECONDS, what=f"{model.name} is usable: {usable}")


@asynccontextmanager
async def streaming(stack: RunningStack, person: Person, model: SlowModel, prompt: str = LONG) -> AsyncIterator[AsyncIterator[str]]:
    """Yield the lines of a streamed answer."""
    body = {"model": model.name, "messages": [{"role": "user", "content": prompt}], "stream": True}
    async with stack.http(person.key.secret) as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield answer.aiter_lines()


async def whole(lines: AsyncIterator[str]) -> list[Any]:
    """Return every event, including [DONE]."""
    found = [line.removeprefix("data: ") async for line in lines if line.startswith("data: ")]
    return [event if event == "[DONE]" else json.loads(event) for event in found]


async def refusal(ticket: tickets.Ticket, key: NodeKey | None = None, *, find_seconds: float = 60) -> errors.AimeshError:
    with pytest.raises(errors.AimeshError) as raised:
        await enroll(ticket, key, find_seconds=find_seconds)
    return raised.value


async def enroll(ticket: tickets.Ticket, key: NodeKey | None = None, role: Role = Role.WORKER, *, find_seconds: float = 60) -> Membership:
    means = EnrollmentOptions(find_seconds=find_seconds, poll_seconds=0.2)
    return await enrollment.enroll(ticket, key or new_key(), EnrollingNode(role, "test"), lambda line: None, means)


def new_key() -> NodeKey:
    return NodeKey(node_keys.new_seed())


@pytest.mark.nightly("long")
async def test_a_machine_joins_serves_is_paused_and_revoked_in_mid_stream(
    stack: RunningStack, ann: Person, box: Machine, cafe: Machine, model: SlowModel
) -> None:
    text = await outside.ticket(stack, "worker")
    worker = serve(box, model, "--join", text, "--label", "gpu=none")
    await worker.says(f"serving 1 model: {model.name}")
    row = await row_of(stack, model)
    assert (row["path"], row["role"], row["labels"]) == ("direct", "worker", {"gpu": "none"})

    # Requests from inside and from outside.
    async with streaming(stack, ann, model, "one two three") as lines:
        *_, last = await whole(lines)
    assert last == "[DONE]"
    await cafe.connect(stack, ann.key.secret)
    answered = await cafe.aicli("infer", "-m", model.name, "one two three")
    assert (answered.status, answered.out.split()) == (0, ["one", "two", "three"])

    # The owner pauses the worker: the running answer still completes.
    async with streaming(stack, ann, model, "word " * 60) as lines:
        await anext(lines)
        paused = await box.aicli("worker", "pause", "--state", str(box.state))
        assert paused.status == 0, paused.err
        row = await row_of(stack, model, usable=False)
        assert row["why_not"] == "paused by its owner"
        assert (await whole(lines))[-1] == "[DONE]"
    assert (await box.aicli("worker", "resume", "--state", str(box.state))).status == 0
    row = await row_of(stack, model)

    async with streaming(stack, ann, model) as lines:
        await anext(lines)
        revoked = await stack.aicli("admin", "nodes", "revoke", row["id"][:12], "--yes", "--reason", "it was sold")
        assert revoked.status == 0, revoked.err
        *_, last = await whole(lines)
    assert last["error"]["code"] == "worker_lost", last

    async def is_revoked() -> bool:
        return "revoked" in (await row_of(stack, model, usable=False))["why_not"]

    # The worker may stop before the gateway has the new revocation list.
    await until(is_revoked, seconds=CUT_SECONDS, what="the gateway knows why it is gone")

    async def nothing_runs() -> bool:
        return model.running == 0

    await until(nothing_runs, what="its worker does not go on with the answer")
    await worker.says("revoked", seconds=CUT_SECONDS)
    assert await worker.ended() == ExitCode.REVOKED
    assert "error: an administrator has revoked this machine" in worker.text()
    told = await box.aicli("worker", "status", "--state", str(box.state))
    assert (told.status, told.out) == (1, "not running. To start it: aicli worker\n")
    # Restarted, the worker learns again that it is revoked.
    assert await serve(box, model).ended() == ExitCode.REVOKED

    # Its key is no longer accepted, and with a new ticket the machine joins as another node.
    old = node_keys.load(box.state / "node.nk")
    assert isinstance(await refusal(tickets.parse(await outside.ticket(stack, "worker")), old, find_seconds=3), errors.AimeshError)
    again = serve(box, model, "--join", await outside.ticket(stack, "worker"))
    await again.says(f"serving 1 model: {model.name}")
    newer = await row_of(stack, model)
    assert newer["id"] not in (row["id"], "")
    assert await again.interrupt() == 0
    _assert_nowhere_in_logs(stack, [worker, again], {"ticket": text, "seed of the ticket": tickets.parse(text).seed.hex()})


def _assert_nowhere_in_logs(stack: RunningStack, workers: list[Running], hidden: dict[str, str]) -> None:
    hidden = dict(hidden)
    for path in (stack.home / "keys").glob("*.nk"):
        hidden[f"seed in {path.name}"] = path.read_text(encoding="ascii").strip()
    hidden["seed of the mesh CA"] = (stack.place.secrets / "mesh_ca.nk").read_text(encoding="ascii").strip()
    texts = {path.name: path.read_text(encoding="utf-8", errors="replace") for path in stack.place.logs.iterdir()}
    texts |= {str(worker.output): worker.text() for worker in workers}
    for name, text in texts.items():
        assert "Traceback" not in text, f"{name}: {text}"
        for what, secret in hidden.items():
            assert secret
            assert secret not in text, f"the {what} is in {name}"


@pytest.mark.nightly("stacks")
async def test_a_ticket_that_is_no_good_says_why_and_lets_nobody_in(stack: RunningStack) -> None:
    async def new(*options: str) -> tickets.Ticket:
        return tickets.parse(await outside.ticket(stack, "worker", *options))

    before = len((await stack.aicli("admin", "nodes", "list", "--json")).json())
    used, key = await new(), new_key()
    first = await enroll(used, key)
    assert (await enroll(used, key)).certificate != b"", "a lost reply may be asked for again"
    why = await refusal(used)
    assert (type(why), "used up" in why.message) == (errors.BadTicket, True)

    expired = await new()
    async with stack.database("auth") as database:
        await database.execute("UPDATE tickets SET expires_at = now() - interval '3 hours' WHERE id = $1", expired.id)
    why = await refusal(expired)
    assert (type(why), why.message) == (errors.BadTicket, "the ticket expired 3 h ago")

    revoked = await new()
    assert (await stack.aicli("admin", "tickets", "revoke", revoked.id)).status == 0
    why = await refusal(revoked)
    assert (type(why), why.message) == (errors.BadTicket, "the ticket was revoked")

    # A caller that knows only a ticket's id.
    forged = msgspec.structs.replace(await new(), seed=secrets.token_bytes(32))
    why = await refusal(forged)
    assert (type(why), "signature" in why.message) == (errors.BadTicket, True)
    with pytest.raises(errors.BadTicket, match="the ticket is incomplete"):
        text = tickets.render(forged)
        tickets.parse(text[:60] + ("A" if text[60] != "A" else "B") + text[61:])

    # A ticket of a mesh that is not here.
    other = node_keys.Authority(node_keys.new_authority_seed())
    why = await refusal(msgspec.structs.replace(await new(), authority=node_keys.raw_of(other.id)), find_seconds=3)
    assert isinstance(why, errors.NotReachable)
    assert len((await stack.aicli("admin", "nodes", "list", "--json")).json()) == before + 1
    assert first.role == "worker"


@pytest.mark.nightly("stacks")
async def test_a_machine_waits_for_its_approval(stack: RunningStack) -> None:
    ticket, key = tickets.parse(await outside.ticket(stack, "client", "--approval")), new_key()
    async with asyncio.timeout(100):
        joining = asyncio.create_task(enroll(ticket, key, Role.CLIENT))

        async def waits() -> bool:
            rows = (await stack.aicli("admin", "nodes", "list", "--json")).json()
            return any(row["id"] == key.id and row["state"] == "pending" for row in rows)

        await until(waits, what="it waits for approval")
        assert not joining.done()
        assert (await stack.aicli("admin", "nodes", "approve", key.id[:12])).status == 0
        found = await joining
    assert found.certificate


@pytest.mark.nightly("stacks")
async def test_a_profile_asks_by_eight_processes_at_once_until_it_is_revoked(stack: RunningStack, ann: Person, cafe: Machine) -> None:
    await cafe.connect(stack, ann.key.secret)
    answers = await asyncio.gather(*(cafe.aicli("infer", "-m", "echo", f"number {number}") for number in range(8)))
    assert [(answer.status, answer.out, answer.err) for answer in answers] == [(0, f"number {number}\n", "") for number in range(8)]

    running = cafe.start("infer", "-m", "echo", LONG)
    await running.says("word word")
    profile = node_keys.load(_only(cafe.home / ".config/aimesh/profiles", "*.nk"))
    revoked = await stack.aicli("admin", "nodes", "revoke", profile.id, "--yes")
    assert revoked.status == 0, revoked.err

    async def is_over() -> bool:
        return running.process.poll() is not None

    await until(is_over, seconds=CUT_SECONDS, what="its process is cut off")
    assert running.process.returncode != 0
    assert "Traceback" not in running.text()
    refused = await cafe.aicli("infer", "-m", "echo", "hello?")
    assert (refused.status, refused.out) == (ExitCode.REVOKED, "")
    assert "this machine was revoked" in refused.err


def _only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found
