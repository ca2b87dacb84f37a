"""What runs for a key that was revoked ends, for each reader, and nothing else does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import msgspec
import pytest

from services.gateway.callers import Callers
from services.gateway.requests import revoked_callers
from services.gateway.requests.revoked_callers import RevokedCallers
from shared import context, errors
from shared.api import auth
from shared.api.auth import Change, IdentifyOwner, Principal
from shared.api.gateway import InferenceRequest
from shared.types import KeyId, RequestStatus, UserId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY_ID, OWNER, USER, RunningService
from tests.testnet import until

OTHER_KEY = KeyId(UUID(int=77))
REVOKED = errors.NotAuthenticated("this API key was revoked")


class Auth:
    """Answers who may run something."""

    def __init__(self) -> None:
        self.revoked: set[IdentifyOwner] = set()
        self.asked: list[IdentifyOwner] = []
        self.failures: list[errors.AimeshError] = []

    async def identify(self, owner: IdentifyOwner) -> Principal:
        self.asked.append(owner)
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop()
        if owner in self.revoked:
            raise REVOKED
        return OWNER


@asynccontextmanager
async def watched(service: RunningService, asked: Auth) -> AsyncIterator[RevokedCallers]:
    found = RevokedCallers(service.runs, asked.identify)
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def hanging_requests(*principals: Principal) -> AsyncIterator[tuple[RunningService, list[asyncio.Task[str]]]]:
    """Requests that wait for their worker's next token."""
    async with fakes.running_service() as service:
        worker = service.worker
        worker.hangs_after = 1

        async def ask(principal: Principal) -> str:
            context.start()
            async with service.pulled.run(principal, InferenceRequest(prompt="hi"), seconds=60) as running:
                return "".join([chunk.text async for _, chunk in running])

        tasks = [asyncio.create_task(ask(principal)) for principal in principals]
        await until(lambda: len(worker.received) == len(tasks) and worker.is_hanging.is_set())
        try:
            yield service, tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def owner(principal: Principal) -> IdentifyOwner:
    return IdentifyOwner(principal.user_id, principal.key_id)


async def test_requests_of_a_revoked_key_end_and_those_of_its_users_other_key_run_on() -> None:
    other = msgspec.structs.replace(OWNER, key_id=OTHER_KEY)
    asked = Auth()
    asked.revoked.add(owner(OWNER))
    async with hanging_requests(OWNER, OWNER, other) as (service, (first, second, third)), watched(service, asked) as watching:
        watching.note(Change(5, USER))
        for task in (first, second):
            with pytest.raises(errors.NotAuthenticated, match="revoked"):
                await task
        assert not third.done()
        await until(lambda: len(service.store.rows) == 2)
        assert {row.status for row in service.store.rows.values()} == {RequestStatus.REJECTED}
        assert {row.completion_tokens for row in service.store.rows.values()} == {1}, "what was delivered is billed"
        assert set(asked.asked) == {owner(OWNER), owner(other)}, "each caller once"


async def test_requests_of_a_person_end_with_the_key_that_names_them() -> None:
    person = msgspec.structs.replace(OWNER, user_id=UserId(UUID(int=99)), named_by=USER)
    asked = Auth()
    asked.revoked.add(owner(person))
    async with hanging_requests(person) as (service, (running,)), watched(service, asked) as watching:
        watching.note(Change(5, USER))
        with pytest.raises(errors.NotAuthenticated, match="revoked"):
            await running


async def test_a_change_of_another_user_asks_nothing() -> None:
    asked = Auth()
    async with hanging_requests(OWNER) as (service, (running,)), watched(service, asked) as watching:
        watching.note(Change(5, UserId(UUID(int=99))))
        await asyncio.sleep(0.01)
        assert not asked.asked
        assert not running.done()


async def test_a_gap_in_the_changes_checks_everyone() -> None:
    asked = Auth()
    asked.revoked.add(owner(OWNER))
    async with hanging_requests(OWNER) as (service, (running,)), watched(service, asked) as watching:
        watching.note(Change(5))
        with pytest.raises(errors.NotAuthenticated):
            await running


async def test_if_auth_cannot_be_asked_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoked_callers, "_AGAIN_SECONDS", 0.0)
    asked = Auth()
    asked.revoked.add(owner(OWNER))
    asked.failures = [errors.NotReachable("no auth"), errors.LinkLost("gone")]
    async with hanging_requests(OWNER) as (service, (running,)), watched(service, asked) as watching:
        watching.note(Change(5, USER))
        with pytest.raises(errors.NotAuthenticated):
            await running
        assert len(asked.asked) == 3


async def test_auth_is_asked_about_a_change_and_not_the_cache() -> None:
    rpc = fakes.FakeRpc()
    answers: list[Callable[[], Awaitable[Principal]]] = []

    async def identify(_request: object) -> Principal:
        return await answers[-1]()

    async def allowed() -> Principal:
        return OWNER

    async def refused() -> Principal:
        raise REVOKED

    rpc.answers["auth.identifyOwner"] = identify
    callers = Callers(rpc)
    answers.append(allowed)
    assert await callers.identify_owner(IdentifyOwner(USER, KEY_ID)) is OWNER
    noted: list[Change] = []
    callers.on_change = noted.append
    watching = asyncio.create_task(callers.watch())
    answers.append(refused)
    rpc.changes.put_nowait(auth.Change(5, USER))
    await until(lambda: noted)
    with pytest.raises(errors.NotAuthenticated):
        await callers.identify_owner(IdentifyOwner(USER, KEY_ID))
    watching.cancel()
    await asyncio.wait([watching])
