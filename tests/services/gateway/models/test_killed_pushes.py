"""A gateway or PostgreSQL dies while a version is completed and checked: whoever repeats the call gets the same version, once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from services.gateway.models.model_origin import ModelOrigin
from shared import errors
from shared.api.models import VersionState
from shared.models import manifest
from shared.stores import objects
from tests.servers import PostgresServer
from tests.services.gateway.models import registries
from tests.services.gateway.models.registries import ADMIN, Gateway, push_of, small

PUSH = push_of({"a": small(1)})


@pytest.fixture
async def gateways(plain_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Gateway, Gateway]]:
    """With what a version needs."""
    store = objects.open_store(str(tmp_path / "origin"), {})
    async with registries.running(plain_url, store) as first, registries.running(plain_url, store) as second:
        for data in PUSH.blobs.values():
            await first.send(ADMIN, data)
        # A gateway that is gone has its work no longer.
        monkeypatch.setattr("services.gateway.models.registry_store._BUSY_SECONDS", 0.0)
        yield first, second


async def finish(gateway: Gateway) -> None:
    """Repeat the push, and have exactly one version."""
    made = await gateway.complete(ADMIN, PUSH)
    assert (made.version, made.digest) == (1, PUSH.digest)
    await gateway.registry.work()
    (found,) = await gateway.versions(ADMIN)
    assert (found.version, found.state) == (1, VersionState.READY), found.reason
    other = push_of({"a": small(2)})
    assert (await gateway.push(ADMIN, other)).version == 2


@pytest.mark.parametrize("at", ["read", "put"])
async def test_postgresql_is_killed_while_a_version_is_completed(
    gateways: tuple[Gateway, Gateway], postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    gateway, _ = gateways
    try:
        with monkeypatch.context() as patched:
            patched.setattr(ModelOrigin, at, then(getattr(ModelOrigin, at), postgres.kill))
            with pytest.raises(errors.PeerError):
                await gateway.complete(ADMIN, PUSH)
    finally:
        postgres.ensure_running()
    await finish(gateway)


async def test_postgresql_is_killed_while_a_version_is_checked(
    gateways: tuple[Gateway, Gateway], postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = gateways
    await gateway.complete(ADMIN, PUSH)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(ModelOrigin, "hash", then(ModelOrigin.hash, postgres.kill))
            with pytest.raises(errors.PeerError):
                await gateway.registry.work()
    finally:
        postgres.ensure_running()
    assert (await gateway.get(ADMIN, registries.LLAMA, 1)).state is VersionState.CHECKING
    await finish(gateway)


@pytest.mark.parametrize("at", ["read", "put", "hash"])
async def test_a_gateway_is_killed_and_another_finishes(
    gateways: tuple[Gateway, Gateway], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    first, second = gateways
    if at == "hash":
        await first.complete(ADMIN, PUSH)
    reached = asyncio.Event()

    async def stop(*_: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(ModelOrigin, at, stop)
        working = asyncio.ensure_future(first.registry.work() if at == "hash" else first.complete(ADMIN, PUSH))
        await reached.wait()
        working.cancel()
        await asyncio.wait({working})
    await finish(second)


async def test_an_answer_that_was_lost_after_the_commit_changes_nothing(gateways: tuple[Gateway, Gateway]) -> None:
    first, second = gateways
    await first.complete(ADMIN, PUSH)
    await finish(second)


async def test_a_blob_that_vanishes_meanwhile_is_named(gateways: tuple[Gateway, Gateway], tmp_path: Path) -> None:
    gateway, digest = gateways[0], manifest.digest_of(small(1))
    (tmp_path / "origin" / "models" / "blobs" / digest.replace(":", "/")).unlink()
    await gateway.complete(ADMIN, PUSH)
    await gateway.registry.work()
    made = await gateway.get(ADMIN, registries.LLAMA, 1)
    assert (made.state, digest.removeprefix("sha256:") in made.reason) == (VersionState.REFUSED, True)
    # The same push, and it is whole.
    assert (await gateway.push(ADMIN, PUSH)).state is VersionState.READY


def then(real: Callable[..., Any], kill: Callable[[], None]) -> Callable[..., Any]:
    """Kill after the real one."""

    async def both(*given: Any) -> Any:
        found = await real(*given)
        await asyncio.to_thread(kill)
        return found

    return both
