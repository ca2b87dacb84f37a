"""The registry of models on a real PostgreSQL: two gateways on one store, a folder or S3, whose bytes are flipped."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.gateway.models import registry as registries_module
from services.gateway.models.registry import WrongOffset
from services.gateway.models.registry_store import ServingChannel
from shared import errors
from shared.api import models as api
from shared.api.models import VersionState
from shared.models import manifest
from shared.stores import objects
from shared.stores.objects import ObjectStore
from shared.types import ModelName
from tests import object_server, tiers
from tests.object_server import ObjectServer
from tests.services.gateway.fakes import rpc_call
from tests.services.gateway.models import registries
from tests.services.gateway.models.registries import ADMIN, DEVELOPER, LLAMA, PIECE, STRANGER, Gateway, push_of, small


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectServer]:
    with object_server.running() as server:
        asyncio.run(objects.open_store(server.address, server.credentials).put("first", b""))
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    return objects.open_store(str(tmp_path / "origin"), {})


@pytest.fixture
async def gateway(plain_url: str, folder: ObjectStore) -> AsyncIterator[Gateway]:
    async with registries.running(plain_url, folder) as found:
        yield found


@pytest.fixture
async def other(plain_url: str, folder: ObjectStore) -> AsyncIterator[Gateway]:
    async with registries.running(plain_url, folder) as found:
        yield found


def version_file(folder: Path, digest: str) -> Path:
    return folder / "origin" / "models" / "blobs" / digest.replace(":", "/")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return objects.open_store(str(tmp_path / "origin"), {})
    server: ObjectServer = request.getfixturevalue("s3")
    return objects.open_store(f"{server.address}/{tmp_path.name}", server.credentials)


async def test_an_upload_continues_at_another_gateway_and_ends_as_one_checked_object(
    plain_url: str, store: ObjectStore, tmp_path: Path
) -> None:
    model = registries.gguf(tmp_path)
    push = push_of({"model.gguf": model}, license="apache-2.0", source="hf:me/model")
    async with registries.running(plain_url, store) as first:
        await first.send(ADMIN, model, until=PIECE)
    # It is gone. Another one takes the rest, from where it was.
    async with registries.running(plain_url, store) as second:
        at = (await second.find(ADMIN, model)).next_offset
        assert at == PIECE
        with pytest.raises(WrongOffset, match=f"continues at byte {PIECE} of {len(model)}"):
            await second.send(ADMIN, model, start=0)
        await second.send(ADMIN, model, start=at)
        assert not (await second.find(ADMIN, model)).is_stored
        await second.registry.work()
        assert (await second.find(ADMIN, model)).is_stored
        made = await second.push(ADMIN, push)
        assert (made.version, made.state, made.digest, made.license) == (1, VersionState.READY, push.digest, "apache-2.0"), made.reason
        facts = made.facts
        assert (facts.architecture, facts.context_tokens, facts.quantization, facts.embeds) == ("llama", 4096, "f16", False)
        names = sorted([found.name async for found in store.list("models")])
        blobs = {f"models/blobs/{digest.replace(':', '/')}" for digest in (*push.blobs, push.digest)}
        assert set(names) == {"models/index.json", "models/oci-layout", *blobs}
        assert await store.get(f"models/blobs/{manifest.digest_of(model).replace(':', '/')}") == model
        # The same again is the same version.
        assert (await second.complete(ADMIN, push)).version == 1


async def test_a_push_brings_back_what_the_store_has_lost(gateway: Gateway, tmp_path: Path) -> None:
    """Such as after MODEL_ORIGIN names another store, which is empty."""
    model = registries.gguf(tmp_path)
    push = push_of({"model.gguf": model})
    made = await gateway.push(ADMIN, push)
    for digest in (*push.blobs, push.digest):
        version_file(tmp_path, digest).unlink()
    assert not (await gateway.find(ADMIN, model)).is_stored
    again = await gateway.push(ADMIN, push)
    assert (again.version, again.state) == (made.version, VersionState.READY)
    assert version_file(tmp_path, manifest.digest_of(model)).read_bytes() == model
    assert version_file(tmp_path, push.digest).read_bytes() == push.manifest


async def test_a_gateway_that_is_killed_while_it_joins_leaves_the_rest_to_another(
    gateway: Gateway, other: Gateway, plain_url: str, tmp_path: Path
) -> None:
    model = registries.gguf(tmp_path)
    await gateway.send(ADMIN, model)
    assert await gateway.store.take_upload() is not None
    # It is at it for a minute.
    await other.registry.work()
    assert not (await other.find(ADMIN, model)).is_stored
    connection = await asyncpg.connect(plain_url)
    await connection.execute("SELECT set_config('aimesh.tenant', '*', false)")
    await connection.execute("UPDATE gateway.model_uploads SET busy_until = now() - interval '1 second'")
    await connection.close()
    await other.registry.work()
    assert (await other.find(ADMIN, model)).is_stored


async def test_a_flipped_byte_of_an_upload_is_refused_with_both_digests(gateway: Gateway, tmp_path: Path) -> None:
    model = registries.gguf(tmp_path)
    flipped = bytearray(model)
    flipped[PIECE + 5] ^= 1
    right, wrong = manifest.digest_of(model), manifest.digest_of(bytes(flipped))
    await gateway.send(ADMIN, bytes(flipped), digest=right)
    await gateway.registry.work()
    found = await gateway.find(ADMIN, model)
    assert (found.is_stored, found.actual_digest) == (False, wrong)
    assert not version_file(tmp_path, right).exists()
    # Of one piece, it is said at once.
    with pytest.raises(errors.BadRequest, match=f"{manifest.digest_of(b'right')} are those of {manifest.digest_of(b'wrong')}"):
        await gateway.send(ADMIN, b"wrong", digest=manifest.digest_of(b"right"))
    # The upload begins again.
    await gateway.send(ADMIN, model)
    await gateway.registry.work()
    assert (await gateway.find(ADMIN, model)).is_stored


@pytest.mark.parametrize("what", ["weights", "blocks", "no model"])
async def test_a_version_whose_files_are_damaged_or_no_model_is_refused_with_the_reason(
    gateway: Gateway, tmp_path: Path, what: str
) -> None:
    model = registries.gguf(tmp_path, layers=1) if what != "no model" else b"GGUF" + bytes(1000)
    push = push_of({"model.gguf": model})
    for data in push.blobs.values():
        await gateway.send(ADMIN, data)
    await gateway.registry.work()
    digest = list(push.blobs)[1 if what == "blocks" else 0]
    if what == "weights":
        with version_file(tmp_path, digest).open("r+b") as file:
            file.seek(4 << 20)
            file.write(b"flipped")
        expected = f"the bytes of {digest} are those of sha256:"
    elif what == "blocks":
        # A list that somebody else has made.
        other_list = b"x" * len(push.blobs[digest])
        await gateway.send(ADMIN, other_list)
        text = push.manifest.replace(digest.encode(), manifest.digest_of(other_list).encode())
        push = registries.Push(text, push.blobs)
        expected = f"the blocks of model.gguf have the list {digest}"
    else:
        expected = "the file is no model:"
    made = await gateway.complete(ADMIN, push)
    assert made.state is VersionState.CHECKING
    await gateway.registry.work()
    made = await gateway.get(ADMIN, LLAMA, made.version)
    assert made.state is VersionState.REFUSED
    assert expected in made.reason
    with pytest.raises(errors.AlreadyExists, match="is refused; it must be ready"):
        await gateway.promote(ADMIN, 1)
    # Nothing needs its files, so they can be pushed again.
    await gateway.registry.work()
    assert not version_file(tmp_path, manifest.digest_of(model)).exists()
    if what == "weights":
        assert (await gateway.push(ADMIN, push)).state is VersionState.READY


async def test_numbers_are_never_given_to_other_content(gateway: Gateway) -> None:
    first, second = push_of({"a": small(1)}), push_of({"a": small(2)})
    await gateway.push(ADMIN, first)
    for data in second.blobs.values():
        await gateway.send(ADMIN, data)
    with pytest.raises(errors.AlreadyExists, match=f"llama3@1 has the digest {first.digest}, and this manifest has {second.digest}"):
        await gateway.complete(ADMIN, second, version=1)
    with pytest.raises(errors.AlreadyExists, match="llama3@7 isn't the next one, 2"):
        await gateway.complete(ADMIN, second, version=7)
    assert (await gateway.complete(ADMIN, second, version=2)).version == 2


async def test_of_two_pushes_at_once_each_gets_a_number_without_a_gap(gateway: Gateway, other: Gateway) -> None:
    pushes = [push_of({"a": small(seed)}) for seed in range(6)]
    for push in pushes:
        for data in push.blobs.values():
            await gateway.send(ADMIN, data)
    made = await asyncio.gather(*((gateway, other)[at % 2].complete(ADMIN, push) for at, push in enumerate([*pushes, *pushes])))
    assert sorted({one.version for one in made}) == [1, 2, 3, 4, 5, 6]


async def test_of_two_promotions_at_once_one_wins(gateway: Gateway, other: Gateway) -> None:
    for seed in range(1, 4):
        await gateway.push(ADMIN, push_of({"a": small(seed)}))
    await gateway.promote(ADMIN, 1)
    for _ in range(5):
        before = await gateway.get(ADMIN, LLAMA, 1)
        assert before.channels == ("stable",)
        done = await asyncio.gather(gateway.promote(ADMIN, 2), other.promote(ADMIN, 3), return_exceptions=True)
        lost = [one for one in done if isinstance(one, BaseException)]
        serving = [one.version for one in await gateway.versions(ADMIN) if one.channels]
        assert len(serving) == 1
        # They may also have come one after the other.
        assert all(isinstance(one, errors.AlreadyExists) and "was changed meanwhile" in str(one) for one in lost)
        await gateway.promote(ADMIN, 1)


async def test_a_promotion_of_what_somebody_else_has_changed_is_refused(gateway: Gateway, other: Gateway) -> None:
    for seed in (1, 2, 3):
        await gateway.push(ADMIN, push_of({"a": small(seed)}))
    first, second, third = [await gateway.get(ADMIN, LLAMA, number) for number in (1, 2, 3)]
    # Both have looked before anything is promoted.
    switch: Any = gateway.registry._switch
    await switch(ADMIN, first, "canary", None)
    with pytest.raises(errors.AlreadyExists, match="llama3@canary was changed meanwhile"):
        await other.registry._switch(ADMIN, second, "canary", None)
    with pytest.raises(errors.AlreadyExists, match="llama3@canary was changed meanwhile"):
        await other.registry._switch(ADMIN, second, "canary", ServingChannel(7, None, None))
    # The same while the mesh has the channel on machines, and another version is loaded there.

    async def is_deployed(_channel: str) -> bool:
        return True

    gateway.registry._is_deployed = other.registry._is_deployed = is_deployed
    serving = ServingChannel(1, None, None)
    assert (await switch(ADMIN, second, "canary", serving)).next_of == ("canary",)
    with pytest.raises(errors.AlreadyExists, match="llama3@canary was changed meanwhile"):
        await other.registry._switch(ADMIN, third, "canary", serving)
    with pytest.raises(errors.AlreadyExists, match="llama3@canary was changed meanwhile"):
        await other.registry._switch(ADMIN, first, "canary", ServingChannel(2, 1, None))


@dataclass
class Expected:
    """What versions and channels should be."""

    versions: dict[int, str] = field(default_factory=dict)
    #: What they serve, and what was before.
    channels: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)

    def push(self, number: int) -> None:
        self.versions[number] = "ready"
        if number == 1:
            self.channels["stable"] = (1, None)

    def promote(self, number: int, channel: str) -> bool:
        if self.versions.get(number) != "ready":
            return False
        serving, before = self.channels.get(channel, (None, None))
        if serving is None:
            self.channels[channel] = (number, None if before == number else before)
        elif serving != number:
            self.channels[channel] = (number, serving)
        return True

    def rollback(self, channel: str) -> bool:
        serving, before = self.channels.get(channel, (None, None))
        if before is None or self.versions[before] != "ready":
            return False
        self.channels[channel] = (before, serving)
        return True

    def withdraw(self, channel: str) -> bool:
        serving, _ = self.channels.get(channel, (None, None))
        if serving is None:
            return False
        self.channels[channel] = (None, serving)
        return True

    def retire(self, number: int) -> bool:
        if self.versions.get(number) != "ready" or any(number == serving for serving, _ in self.channels.values()):
            return False
        self.versions[number] = "retired"
        return True

    def revoke(self, number: int) -> bool:
        if self.versions.get(number) not in {"ready", "retired"}:
            return False
        self.versions[number] = "revoked"
        for channel, at in self.channels.items():
            serving, before = (None if each == number else each for each in at)
            self.channels[channel] = serving, before
        return True


async def test_versions_and_channels_do_what_a_model_of_them_does(gateway: Gateway) -> None:
    rng, expected = random.Random(53), Expected()

    async def is_done(call: Any) -> bool:
        try:
            await call
        except (errors.AlreadyExists, errors.NotFound):
            return False
        return True

    call = rpc_call(ADMIN)
    for step in range(tiers.volume(150)):
        number, channel = rng.randint(1, len(expected.versions) + 1), rng.choice(["stable", "canary"])
        match rng.choice(["push", "promote", "promote", "rollback", "rollback", "withdraw", "retire", "revoke"]):
            case "push":
                made = await gateway.push(ADMIN, push_of({"a": small(step)}))
                assert made.version == len(expected.versions) + 1
                expected.push(made.version)
            case "promote":
                assert await is_done(gateway.promote(ADMIN, number, channel)) == expected.promote(number, channel)
            case "rollback":
                assert await is_done(gateway.rollback(ADMIN, channel)) == expected.rollback(channel)
            case "withdraw":
                withdrawn = api.WithdrawModel(LLAMA, channel)
                assert await is_done(gateway.registry.withdraw(withdrawn, call)) == expected.withdraw(channel)
            case "retire":
                request = api.RetireModelVersion(LLAMA, number)
                assert await is_done(gateway.registry.retire(request, call)) == expected.retire(number)
            case _ if rng.random() < 0.5:
                revoked = api.RevokeModelVersion(LLAMA, number, "it leaks")
                assert await is_done(gateway.registry.revoke(revoked, call)) == expected.revoke(number)
        found = (await gateway.registry.list(api.ListModelVersions(), call)).versions
        assert {one.version: one.state.value for one in found} == expected.versions
        serving = {name: at for name, (at, _) in expected.channels.items() if at is not None}
        assert {channel: one.version for one in found for channel in one.channels} == serving


async def test_what_is_used_is_not_deleted_and_the_users_are_named(gateway: Gateway, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        await gateway.push(ADMIN, push_of({"a": small(seed), "shared": small(99)}))
    await gateway.promote(ADMIN, 1)
    await gateway.promote(ADMIN, 2)
    await gateway.promote(ADMIN, 2, "canary")
    gateway.nodes.worker(1, "llama3@3")

    async def delete(version: int) -> None:
        await gateway.registry.delete(api.DeleteModelVersion(LLAMA, version), rpc_call(ADMIN))

    with pytest.raises(errors.AlreadyExists, match="llama3@2 is used by the channel canary, the channel stable"):
        await delete(2)
    with pytest.raises(errors.AlreadyExists, match="llama3@1 is used by the channel stable"):
        await delete(1)
    with pytest.raises(errors.AlreadyExists, match="llama3@3 is used by the worker U0"):
        await delete(3)
    with pytest.raises(errors.AlreadyExists, match="llama3@2 is used by the channel"):
        await gateway.registry.retire(api.RetireModelVersion(LLAMA, 2), rpc_call(ADMIN))
    gateway.nodes.worker(1, "smollm2")
    await delete(3)
    assert not version_file(tmp_path, manifest.digest_of(small(3))).exists()
    assert version_file(tmp_path, manifest.digest_of(small(99))).exists()
    with pytest.raises(errors.AlreadyExists, match="llama3@3 is deleted"):
        await gateway.promote(ADMIN, 3)
    # Its number and digest stay: pushed again, it is the same version.
    assert (await gateway.push(ADMIN, push_of({"a": small(3), "shared": small(99)}))).version == 3


async def test_a_revoked_version_stays_revoked(gateway: Gateway, plain_url: str) -> None:
    push = push_of({"a": small()})
    await gateway.push(ADMIN, push)
    await gateway.registry.revoke(api.RevokeModelVersion(LLAMA, 1, "it leaks"), rpc_call(ADMIN))
    again = await gateway.push(ADMIN, push)
    assert (again.version, again.state, again.reason) == (1, VersionState.REVOKED, "it leaks")
    with pytest.raises(errors.AlreadyExists, match="is revoked; it must be ready"):
        await gateway.promote(ADMIN, 1)
    connection = await asyncpg.connect(plain_url)
    await connection.execute("SELECT set_config('aimesh.tenant', '*', false)")
    for change, match in (
        ("UPDATE gateway.model_versions SET state = 'ready'", "stays revoked"),
        ("UPDATE gateway.model_versions SET digest = 'sha256:0'", "never changed"),
        ("DELETE FROM gateway.model_versions", "never changed"),
    ):
        with pytest.raises(asyncpg.RaiseError, match=match):
            await connection.execute(change)
    await connection.close()


async def test_models_of_an_organization_do_not_exist_for_others(gateway: Gateway) -> None:
    acme, push = ModelName("acme"), push_of({"a": small(1)})
    made = await gateway.push(DEVELOPER, push, acme)
    assert (made.version, made.organization) == (1, DEVELOPER.team_id)
    await gateway.push(ADMIN, push_of({"a": small(2)}))
    for call in (
        gateway.versions(STRANGER, acme),
        gateway.promote(STRANGER, 1, model=acme),
        gateway.rollback(STRANGER, model=acme),
        gateway.registry.revoke(api.RevokeModelVersion(acme, 1, "x"), rpc_call(STRANGER)),
        gateway.registry.delete(api.DeleteModelVersion(acme, 1), rpc_call(STRANGER)),
    ):
        with pytest.raises(errors.NotFound, match="there is no model acme"):
            await call
    everything = (await gateway.registry.list(api.ListModelVersions(), rpc_call(STRANGER))).versions
    assert [one.model for one in everything] == [LLAMA]
    # Nor do its blobs: who knows a digest has to have the bytes.
    assert not (await gateway.find(STRANGER, small(1))).is_stored
    with pytest.raises(errors.BadRequest, match="3 blobs of the manifest are missing"):
        await gateway.complete(STRANGER, push, ModelName("mine"))
    with pytest.raises(errors.AlreadyExists, match="the name acme is taken"):
        await gateway.push(STRANGER, push, acme)
    # The mesh's models are everybody's to see, and administrators' to change.
    assert (await gateway.find(STRANGER, small(2))).is_stored
    for refused in (gateway.promote(DEVELOPER, 1), gateway.push(DEVELOPER, push)):
        with pytest.raises(errors.NotAllowed, match="llama3 is the mesh's"):
            await refused
    assert (await gateway.promote(ADMIN, 1, model=acme)).channels == ("stable",)


async def test_uploads_are_bounded_by_number_bytes_and_disk(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries_module, "MAX_OPEN_UPLOADS", 2)

    async def begin(number: int, size: int, by: Any = DEVELOPER) -> None:
        await gateway.registry.upload(by, f"sha256:{number:064x}", 0, size, bytes(PIECE))

    await begin(1, 2 * PIECE)
    with pytest.raises(errors.InsufficientStorage, match=r"your models need 1\.0 GiB; the limit is 1 GiB"):
        await begin(2, 1 << 30)
    await begin(2, 2 * PIECE)
    with pytest.raises(errors.Limited, match="2 unfinished uploads"):
        await begin(3, 2 * PIECE)
    with pytest.raises(errors.InsufficientStorage, match=r"needs 8192\.0 GiB until it is checked, but .* are free"):
        await begin(4, 4 << 40, ADMIN)
    with pytest.raises(errors.BadRequest, match="can't be the first piece"):
        await begin(5, (4 << 40) + 1, ADMIN)
    with pytest.raises(errors.BadRequest, match="can't be the first piece"):
        await gateway.registry.upload(ADMIN, f"sha256:{6:064x}", 0, 1 << 30, b"too small")


async def test_an_upload_that_nobody_finishes_is_forgotten_after_a_day(gateway: Gateway, plain_url: str, tmp_path: Path) -> None:
    model = registries.gguf(tmp_path)
    await gateway.send(DEVELOPER, model, until=PIECE)
    await gateway.send(DEVELOPER, small())
    await gateway.registry.work()
    assert len(list((tmp_path / "origin").rglob("0000000"))) == 1
    connection = await asyncpg.connect(plain_url)
    await connection.execute("SELECT set_config('aimesh.tenant', '*', false)")
    await connection.execute("UPDATE gateway.model_uploads SET expires_at = now() - interval '1 second'")
    await connection.close()
    assert (await gateway.find(DEVELOPER, model)).next_offset == 0
    await gateway.registry.work()
    assert [path for path in (tmp_path / "origin").rglob("*") if path.is_file()] == []
    with pytest.raises(errors.NotFound, match="no upload of"):
        await gateway.send(DEVELOPER, model, start=PIECE)


async def test_the_first_version_that_passes_becomes_stable_unless_its_push_names_another_channel(gateway: Gateway, tmp_path: Path) -> None:
    bad = await gateway.push(ADMIN, push_of({"model.gguf": b"GGUF" + bytes(100)}))
    assert (bad.state, bad.channels) == ("refused", ())
    first = await gateway.push(ADMIN, push_of({"a": small(1)}))
    assert (first.version, first.state, first.channels) == (2, "ready", ("stable",))
    second = await gateway.push(ADMIN, push_of({"a": small(2)}))
    assert second.channels == ()
    third = await gateway.push(ADMIN, push_of({"a": small(3)}), channel="canary")
    assert third.channels == ("canary",)
    # What is there already is promoted at once.
    again = await gateway.complete(ADMIN, push_of({"a": small(2)}), channel="canary")
    assert (again.version, again.channels) == (3, ("canary",))
    other = await gateway.push(ADMIN, push_of({"a": small(4)}), ModelName("other"), channel="canary")
    assert other.channels == ("canary",)
    assert (await gateway.push(ADMIN, push_of({"a": small(5)}), ModelName("other"))).channels == ()
    # One that was withdrawn is not filled by the next push.
    await gateway.registry.withdraw(api.WithdrawModel(LLAMA), rpc_call(ADMIN))
    assert (await gateway.push(ADMIN, push_of({"a": small(6)}))).channels == ()
    acts = [details["channel"] for action, _, details in gateway.acts.reported if action == "model.promote"]
    assert acts == ["stable", "canary", "canary", "canary"]


async def test_a_channel_is_withdrawn_and_filled_again(gateway: Gateway) -> None:
    one, two = [await gateway.push(ADMIN, push_of({"a": small(seed)})) for seed in (1, 2)]
    call = rpc_call(ADMIN)
    with pytest.raises(errors.AlreadyExists, match="llama3@canary serves nothing"):
        await gateway.registry.withdraw(api.WithdrawModel(LLAMA, "canary"), call)
    with pytest.raises(errors.NotFound):
        await gateway.registry.withdraw(api.WithdrawModel(ModelName("nobody")), call)
    with pytest.raises(errors.NotAllowed):
        await gateway.registry.withdraw(api.WithdrawModel(LLAMA), rpc_call(DEVELOPER))
    await gateway.promote(ADMIN, 2)
    assert (await gateway.registry.withdraw(api.WithdrawModel(LLAMA), call)).previous_of == ("stable",)
    assert [each.channels for each in await gateway.versions(ADMIN)] == [(), ()]
    assert (await gateway.rollback(ADMIN)).version == two.version
    await gateway.registry.withdraw(api.WithdrawModel(LLAMA), call)
    assert (await gateway.promote(ADMIN, 1)).channels == ("stable",)
    assert (await gateway.rollback(ADMIN)).version == two.version
    # A revocation empties the channel, and nothing brings the version back.
    await gateway.registry.revoke(api.RevokeModelVersion(LLAMA, 2, "it leaks"), call)
    assert [each.channels for each in await gateway.versions(ADMIN)] == [(), ()]
    assert gateway.acts.reported[-1][2] == {"reason": "it leaks", "channels": "stable"}
    assert (await gateway.rollback(ADMIN)).version == one.version
    with pytest.raises(errors.AlreadyExists, match="no version before"):
        await gateway.rollback(ADMIN)
    # What runs is about to end.
    gateway.nodes.worker(1, "llama3@2")
    assert (await gateway.registry.delete(api.DeleteModelVersion(LLAMA, 2), call)).is_deleted
