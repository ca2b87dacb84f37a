"""After `revoke` has returned, none of three gateways begins an answer of the version. They share one PostgreSQL."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.facts.placements import ANYWHERE
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.models import used_everywhere
from services.gateway.models.registry import ModelRegistry
from services.gateway.models.used_everywhere import UsedEverywhere
from services.gateway.scheduling import routing
from services.gateway.scheduling.dispatch import Dispatch
from shared import errors
from shared.api import models as api
from shared.protocol.directory import Announcement, ResumeOrigin
from shared.stores import objects
from shared.types import ModelName, Role
from tests.services.gateway import fakes
from tests.services.gateway.fakes import USER, FakeDirectory, node_id, rpc_call
from tests.services.gateway.models import registries
from tests.services.gateway.models.registries import ADMIN, LLAMA, push_of
from tests.testnet import until

VERSION = ModelName("llama3@1")
WISH = WorkerRequirements(VERSION, USER, USER, prompt_tokens=1, max_tokens=10, placement=ANYWHERE)
REVOKE = api.RevokeModelVersion(LLAMA, 1, "it leaks")


@dataclass
class OneGateway:
    number: int
    live: LiveConfiguration
    nodes: FakeDirectory = field(default_factory=FakeDirectory)

    def __post_init__(self) -> None:
        # It has not heard yet that its worker may load the version no longer.
        self.nodes.apply_announcement(fakes.announcement(50 + self.number, VERSION), "nats")
        is_revoked = lambda model: model in self.live.config.names.revoked  # noqa: E731
        self.dispatch = Dispatch(self.nodes, random.Random(1), is_revoked=is_revoked)

    def hear(self, other: "OneGateway", *, is_older: bool = False) -> None:
        """Hear which versions another gateway uses."""
        made = fakes.announcement(other.number)
        revision = None if is_older else other.live.models_revision
        self.nodes.apply_announcement(
            Announcement(Role.GATEWAY, node_id(other.number), "1", made.started_at, models_revision=revision), "nats"
        )

    @property
    def begins(self) -> bool:
        try:
            claim = self.dispatch.claim_now(WISH)
        except errors.NotReachable:
            return False
        assert claim is not None
        claim.release()
        return True


@dataclass
class ThreeGateways:
    registry: ModelRegistry
    gateways: tuple[OneGateway, OneGateway, OneGateway]


@pytest.fixture
async def three(plain_url: str, tmp_path: Path) -> AsyncIterator[ThreeGateways]:
    folder = objects.open_store(str(tmp_path / "origin"), {})
    async with AsyncExitStack() as stack:
        lives = []
        for _ in range(3):
            database = await stack.enter_async_context(registries.store.opened(plain_url))
            lives.append(LiveConfiguration(ConfigStore(database), poll_seconds=3600))
        first, second, third = (OneGateway(number, live) for number, live in enumerate(lives))
        used = UsedEverywhere(first.live, first.nodes)
        made = await stack.enter_async_context(registries.running(plain_url, folder, nodes=first.nodes, wait_until_used=used))
        await made.push(ADMIN, push_of({"a": registries.small()}))
        for each in (first, second, third):
            await each.live.reload()
        first.hear(second)
        first.hear(third)
        yield ThreeGateways(made.registry, (first, second, third))


async def test_revoke_returns_when_no_gateway_begins_an_answer_of_the_version(three: ThreeGateways) -> None:
    first, second, third = three.gateways
    assert [each.begins for each in three.gateways] == [True] * 3
    revoking = asyncio.create_task(three.registry.revoke(REVOKE, rpc_call(ADMIN)))
    await until(lambda: not first.begins)
    await second.live.reload()
    first.hear(second)
    assert third.begins, "it has not heard of it"
    assert not revoking.done()
    await third.live.reload()
    first.hear(third)
    await revoking
    assert [each.begins for each in three.gateways] == [False] * 3
    with pytest.raises(errors.UnknownModel, match="no worker serves the model 'llama3@1'"):
        routing.resolve(VERSION, first.nodes.entries(Role.WORKER), first.live.config.names)
    assert routing.served(first.nodes.usable(Role.WORKER), first.live.config.names) == ()
    # An answer that has begun may move to another worker.
    resumed = first.dispatch.claim_now(msgspec.structs.replace(WISH, origin=ResumeOrigin("")))
    assert resumed is not None
    resumed.release()


async def test_a_request_that_waits_for_a_slot_is_refused_once_its_version_is_revoked(three: ThreeGateways) -> None:
    first, second, third = three.gateways
    claims = [first.dispatch.claim_now(WISH) for _ in range(5)]
    assert claims[-1] is not None

    async def wait() -> list[object]:
        async with aclosing(first.dispatch.find(WISH)) as steps:
            return [step async for step in steps]

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    for each in (second, third):
        first.hear(each, is_older=True)
    await three.registry.revoke(REVOKE, rpc_call(ADMIN))
    for claim in claims:
        assert claim is not None
        claim.release()
    with pytest.raises(errors.NotReachable, match="llama3@1 was revoked"):
        await waiting


async def test_revoke_names_a_gateway_that_does_not_confirm(three: ThreeGateways, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(used_everywhere, "WAIT_SECONDS", 0.05)
    with pytest.raises(errors.Unavailable, match=r"the change is stored, but 2 other gateways have not confirmed it"):
        await three.registry.revoke(REVOKE, rpc_call(ADMIN))
    assert not three.gateways[0].begins


async def test_revoke_does_not_wait_for_a_gateway_that_is_gone_or_of_an_older_release(three: ThreeGateways) -> None:
    first, _, third = three.gateways
    first.nodes.mark_gone(node_id(1), "silent for 6 s")
    first.hear(third, is_older=True)
    await three.registry.revoke(REVOKE, rpc_call(ADMIN))
    assert not first.begins
