"""A gateway dies during a stream, and another continues it after the policy changed. Both use a real PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import asyncpg
import msgspec
import pytest

from services.gateway import store
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.idempotency.idempotency_store import IdempotencyStore
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from services.gateway.idempotency.recorder import Recorders
from services.gateway.requests.repeated_request import RepeatedRequest
from services.gateway.settings import GatewaySettings
from shared import config, context, errors
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest, Rest
from shared.config_documents import ConfigKind, GuardDocument, PolicyDocument
from shared.types import ModelName, NodeId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, RunningService
from tests.services.gateway.pulled import PulledRuns
from tests.services.gateway.test_settings import GIVEN

PROMPT = "I am ada@example.org."
WORDS = ("Write", " to", " ada@example.org", " or", " pay", " 4111 1111 1111 1111", " at", " once", ".")
#: The worker of the gateway that dies hangs before this word.
HANGS_AT = 5
ORGANIZATION = f"organization:{OWNER.tenant_id}"


@dataclass
class Gateway:
    service: RunningService
    live: LiveConfiguration
    pulled: PulledRuns

    async def ask(self, key: str, *, after: int = 0, until: int | None = None, who: Principal = OWNER) -> list[tuple[int, str]]:
        """Return the numbered chunks after number ``after``."""
        context.start()
        repeat, received = RepeatedRequest(key=key, rest=Rest(after) if after else None), []
        request = InferenceRequest(prompt=PROMPT, model=ModelName("smollm2"))
        async with self.pulled.answer(who, request, seconds=20, repeat=repeat) as answer:
            async for number, chunk in answer:
                received.append((number, chunk.text))
                if number == until:
                    break
        return received

    async def apply(self, name: str, **guard: dict[str, str]) -> int:
        """Change a policy, and return the revision."""
        body = PolicyDocument(guard=msgspec.convert(guard, GuardDocument)) if guard else None
        changed = await self.live.change(lambda *_: {(ConfigKind.POLICY, name): body}, origin="applied", author=OWNER.user_id)
        return changed.revision

    @property
    def prompts(self) -> list[str]:
        return [prompt.prompt[0].content for prompt in self.service.worker.received]  # type: ignore[union-attr]


class Mesh:
    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self._url, self._stack = url, stack

    async def gateway(self, name: str) -> Gateway:
        return await self._stack.enter_async_context(_gateway(self._url, name))

    async def run(self, statement: str) -> None:
        connection = await asyncpg.connect(self._url, server_settings={"search_path": "gateway"})
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def the_lease_ends(self) -> None:
        """Expire the running lease, as after kill -9 of the gateway that holds it."""
        await self.run("UPDATE idempotency_keys SET lease_until = now() - interval '1 s' WHERE state = 'running'")


@asynccontextmanager
async def _gateway(url: str, name: str) -> AsyncIterator[Gateway]:
    async with store.opened(url) as database, fakes.running_service() as service, Recorders().running() as recorders:
        live = LiveConfiguration(ConfigStore(database))
        await live.start(config.load(GatewaySettings, GIVEN))
        search = replace(service.admission.search, source=live)
        admission = replace(service.admission, search=search, read_guardrails=live.guardrails_at)
        keys = IdempotentRequests(
            IdempotencyStore(database), recorders, NodeId(name), items=fakes.new_items(), secret="s" * 16, most_seconds=30
        )
        service.worker.words = WORDS
        yield Gateway(service, live, PulledRuns(service.new_runs(admission, idempotency=keys)))


@pytest.fixture
async def mesh(postgres_url: str) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        yield Mesh(postgres_url, stack)


async def _die_midway(gateway: Gateway, key: str) -> list[tuple[int, str]]:
    """Return what the caller received before the gateway stopped."""
    gateway.service.worker.hangs_after = HANGS_AT
    return await gateway.ask(key, until=HANGS_AT - 1)


async def test_a_stream_ends_under_its_own_policy_and_the_next_request_obeys_the_new_one(mesh: Mesh) -> None:
    dying, other = await mesh.gateway("Uone"), await mesh.gateway("Utwo")
    await dying.apply("mesh", answer={"email": "mask"})
    await other.live.reload()
    whole = await other.ask("before")
    assert "".join(text for _, text in whole) == "Write to [email] or pay 4111 1111 1111 1111 at once."
    received = await _die_midway(dying, "k")
    assert received == whole[: len(received)]
    await other.apply("mesh", prompt={"email": "mask"}, answer={"email": "refuse", "card": "mask"})
    await mesh.the_lease_ends()
    rest = await other.ask("k", after=received[-1][0])
    assert received + rest == whole
    for number, _ in whole[:-1]:
        assert await other.ask("k", after=number) == whole[number:], "from every event"
    assert other.prompts == [PROMPT, PROMPT], "the worker gets the prompt that the first one got"
    following = await other.ask("next")
    assert "".join(text for _, text in following) == "Write to "
    assert other.prompts[-1] == "I am [email]."


async def test_a_loosened_policy_shows_nothing_more_of_a_running_stream(mesh: Mesh) -> None:
    dying, other = await mesh.gateway("Uone"), await mesh.gateway("Utwo")
    await dying.apply(ORGANIZATION, answer={"email": "mask", "card": "mask"})
    whole = await dying.ask("before")
    received = await _die_midway(dying, "k")
    await dying.apply(ORGANIZATION)
    await mesh.the_lease_ends()
    # The other gateway still has the configuration from before both changes.
    assert other.live.config.revision < dying.live.config.revision
    assert received + await other.ask("k", after=received[-1][0]) == whole
    await other.live.reload()
    assert "4111" in "".join(text for _, text in await other.ask("next"))


async def test_a_second_takeover_keeps_the_policy_too(mesh: Mesh) -> None:
    one, two, three = [await mesh.gateway(name) for name in ("Uone", "Utwo", "Uthree")]
    await one.apply("mesh", answer={"card": "mask"})
    whole = await one.ask("before")
    received = await _die_midway(one, "k")
    await one.apply("mesh", answer={"card": "refuse"})
    await two.live.reload()
    await mesh.the_lease_ends()
    two.service.worker.hangs_after = HANGS_AT
    first = received[0][0]
    assert received[:first] + await two.ask("k", after=first, until=received[-1][0]) == received
    await three.live.reload()
    await mesh.the_lease_ends()
    assert received + await three.ask("k", after=received[-1][0]) == whole


async def test_guardrails_of_a_revision(mesh: Mesh) -> None:
    gateway = await mesh.gateway("Uone")
    empty = gateway.live.config.revision
    first = await gateway.apply("mesh", answer={"card": "mask"})
    second = await gateway.apply(ORGANIZATION, answer={"card": "refuse"})
    third = await gateway.apply(ORGANIZATION)
    fourth = await gateway.apply("mesh", answer={"card": "report"})

    async def card(revision: int) -> str | None:
        found = (await gateway.live.guardrails_at(revision, OWNER)).answer.actions
        return next(iter(found.values()), None)

    assert [await card(revision) for revision in (empty, first, second, third, fourth)] == [None, "mask", "refuse", "mask", "report"]
    await mesh.run(f"DELETE FROM config_versions WHERE kind = 'policy' AND name = 'mesh' AND revision <= {first}")
    assert await card(first) == "report", "the rules of now, if those of then are deleted"
    await mesh.run("UPDATE config_versions SET body = jsonb_build_object('newer', 1) WHERE name LIKE 'organization:%' AND version = 1")
    assert (await card(second), await card(fourth)) == ("report", "report"), "or if a newer release wrote them"


async def test_without_postgresql_nothing_is_shown_under_other_guardrails(mesh: Mesh) -> None:
    dying, other = await mesh.gateway("Uone"), await mesh.gateway("Utwo")
    await dying.apply("mesh", answer={"card": "mask"})
    received = await _die_midway(dying, "k")
    await mesh.the_lease_ends()

    async def fail(*_: object) -> None:
        raise errors.Unavailable("PostgreSQL does not answer")

    other.live._store.policies_at = fail  # type: ignore[assignment]
    with pytest.raises(errors.Unavailable, match="PostgreSQL does not answer"):
        await other.ask("k", after=received[-1][0])
    assert other.prompts == []
