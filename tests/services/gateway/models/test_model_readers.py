"""Two whole gateways and machines of several owners: which versions of models a machine gets, by any of the methods for workers."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from services.gateway.models import model_readers
from services.gateway.models.deployment_store import DeploymentStore
from services.gateway.models.registry_store import RegistryStore
from shared import answer_table, errors
from shared.answer_table import Answers
from shared.api import deployments, model_copies, model_trust
from shared.api.membership import Machine
from shared.api.model_copies import MAX_RANGE_BYTES, AdvisePull, FindModelPeers, LeaseBlocks, PulledFile, ReadBlob
from shared.config_documents import DeploymentDocument
from shared.models import manifest
from shared.protocol.directory import ModelOffer
from shared.types import ModelName, NodeId, Role
from tests.services.auth import by_hand
from tests.services.gateway.models import registries, test_pushed_models
from tests.services.gateway.models.registries import DEVELOPER, STRANGER, Push, push_of
from tests.services.gateway.models.test_pushed_models import KEYS, Auth, Site, push
from tests.testnet import IdleService, RunningNode, until

site = test_pushed_models.site
BOT = ModelName("companybot@1")


async def add_machine(site: Site, machine: Machine) -> RunningNode:
    running = await site.net.start(IdleService)
    Auth.machines[running.node.id] = machine
    await until(lambda: len(running.node.directory.usable(Role.GATEWAY)) == len(site.gateways))
    return running


async def read(machine: RunningNode, gateway: NodeId, digest: str, length: int = MAX_RANGE_BYTES) -> bytes:
    request = ReadBlob(digest, 0, length)
    async with machine.node.rpc.stream(model_copies.read_blob, request, to=gateway, deadline_seconds=30) as parts:
        return b"".join([part.data async for part in parts])


async def take_trust(machine: RunningNode, gateway: NodeId) -> str:
    """Return the digest of the version's manifest. Raises NotFound."""
    taken = await machine.node.rpc.call(model_trust.take_trust, model_trust.TakeTrust((BOT,)), to=gateway)
    if BOT not in taken.versions:
        raise errors.NotFound("it isn't there")
    return taken.versions[BOT].digest


async def steal(machine: RunningNode, gateway: NodeId) -> tuple[bytes, bytes, bytes]:
    """Read manifest, config and weights of a version of which only the name is known."""
    content = await read(machine, gateway, await take_trust(machine, gateway))
    version = manifest.read(content)
    return content, await read(machine, gateway, version.config.digest), await read(machine, gateway, version.files[0].digest)


def attacks(made: Push) -> dict[str, Callable[[RunningNode, NodeId], Awaitable[object]]]:
    """Return each way to get at a version whose digests are known."""
    file = manifest.read(made.manifest).files[0]

    async def read_all(machine: RunningNode, gateway: NodeId) -> None:
        refused = 0
        for digest in (made.digest, *made.blobs):
            try:
                await read(machine, gateway, digest, 1)
            except errors.NotFound:
                refused += 1
        if refused:
            assert refused == 1 + len(made.blobs)
            raise errors.NotFound("nothing of it is there")

    async def find_peers(machine: RunningNode, gateway: NodeId) -> int:
        return len((await machine.node.rpc.call(model_copies.find_model_peers, FindModelPeers(file.digest, BOT), to=gateway)).peers)

    async def lease(machine: RunningNode, gateway: NodeId) -> object:
        return await machine.node.rpc.call(model_copies.lease_blocks, LeaseBlocks(file.digest, file.size, had=b""), to=gateway)

    return {
        model_copies.read_blob.name: read_all,
        model_trust.take_trust.name: take_trust,
        model_copies.find_model_peers.name: find_peers,
        model_copies.lease_blocks.name: lease,
    }


async def holder_of(site: Site, weights: bytes) -> RunningNode:
    """Start a worker that announces the version, and wait until both gateways know it."""
    holder = await add_machine(site, Machine(reads_all=True))
    holder.node.offer(models=(ModelOffer(BOT, 2048, manifest.digest_of(weights).removeprefix("sha256:")),))
    for running in site.gateways:
        directory = running.node.directory
        await until(lambda: (entry := directory.find(holder.node.id)) is not None and bool(entry.announcement.models))  # noqa: B023
    return holder


async def test_a_machine_reads_a_private_version_only_if_its_owner_may(site: Site, tmp_path: Path) -> None:
    weights = registries.gguf(tmp_path, layers=1)
    made = push_of({"model.gguf": weights})
    await push(site, "dev", made, "companybot")
    await holder_of(site, weights)
    ways = attacks(made)
    assert set(ways) == {name for name, answers in answer_table.METHODS.items() if answers is Answers.READERS}
    assert DEVELOPER.team_id is not None
    assert STRANGER.team_id is not None
    operators, colleagues, strangers, unknown = [
        await add_machine(site, machine)
        for machine in (Machine(reads_all=True), Machine(tenants=(DEVELOPER.team_id,)), Machine(tenants=(STRANGER.team_id,)), Machine())
    ]
    for running in site.gateways:
        gateway = running.node.id
        for machine in (operators, colleagues):
            content, _, file = await steal(machine, gateway)
            assert (content, file) == (made.manifest, weights)
            for attack in ways.values():
                await attack(machine, gateway)
            assert await ways[model_copies.find_model_peers.name](machine, gateway) >= 1, "and grants to read it at who has it"  # type: ignore[operator]
        for machine in (strangers, unknown):
            for attack in ways.values():
                with pytest.raises(errors.NotFound):
                    await attack(machine, gateway)


async def test_a_lie_about_a_pulled_model_gives_no_grant_for_a_private_file(site: Site, tmp_path: Path) -> None:
    weights, own = registries.gguf(tmp_path, layers=1), "ab" * 32
    await push(site, "dev", push_of({"model.gguf": weights}), "companybot")
    private = manifest.digest_of(weights)
    holder = await holder_of(site, weights)
    holder.node.offer(models=(ModelOffer(BOT, 2048, private.removeprefix("sha256:")), ModelOffer(ModelName("own"), 2048, own)))
    thief = await add_machine(site, Machine())
    running = site.gateways[0]
    deployed = deployments.DeployModel(ModelName("qwen3"), DeploymentDocument(source="hf:org/qwen3", paused=True))
    await site.client.rpc.call(deployments.deploy_model, deployed, credential=KEYS["admin"])
    await running.service.parts.scheduling.live.reload()  # type: ignore[attr-defined]
    directory = running.node.directory
    await until(lambda: (entry := directory.find(holder.node.id)) is not None and len(entry.announcement.models) == 2)
    for digest in (private, f"sha256:{own}"):
        lie = AdvisePull(ModelName("qwen3"), "hf:org/qwen3", PulledFile(digest, len(weights), digest, b""))
        await thief.node.rpc.call(model_copies.advise_pull, lie, to=running.node.id)
        asked = FindModelPeers(digest, ModelName("qwen3"))
        if digest == private:
            with pytest.raises(errors.NotFound):
                await thief.node.rpc.call(model_copies.find_model_peers, asked, to=running.node.id)
        else:
            assert (await thief.node.rpc.call(model_copies.find_model_peers, asked, to=running.node.id)).peers == ()


async def test_versions_of_the_mesh_and_ordered_ones_are_read_by_all(
    site: Site, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write_nothing(*_: object) -> None:
        """The rounds of deployments would drop the orders that are written by hand below."""

    monkeypatch.setattr(DeploymentStore, "write_orders", write_nothing)
    monkeypatch.setattr(model_readers, "KEPT_SECONDS", 0.0)
    ours, theirs = push_of({"a": registries.small(1)}), push_of({"a": registries.small(2)})
    await push(site, "admin", ours, "llama3")
    await push(site, "dev", theirs, "companybot")
    machine = await add_machine(site, Machine())
    for running in site.gateways:
        assert await read(machine, running.node.id, ours.digest) == ours.manifest
        with pytest.raises(errors.NotFound):
            await read(machine, running.node.id, theirs.digest)
    await by_hand.run(postgres_url, f"INSERT INTO gateway.model_orders VALUES ('{machine.node.id}', '{theirs.digest}')")
    for running in site.gateways:
        assert (await steal(machine, running.node.id))[0] == theirs.manifest
    await by_hand.run(postgres_url, "DELETE FROM gateway.model_orders")
    for running in site.gateways:
        for attack in attacks(theirs).values():
            with pytest.raises(errors.NotFound):
                await attack(machine, running.node.id)


async def test_what_is_remembered_of_machines_and_files_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_readers, "MAX_MACHINES", 2)
    monkeypatch.setattr(model_readers, "MAX_FILES", 3)
    ours, theirs = push_of({"a": registries.small(1)}), push_of({"a": registries.small(2)})
    await push(site, "admin", ours, "llama3")
    await push(site, "dev", theirs, "companybot")
    service = site.gateways[0].service
    readers = model_readers.ModelReaders(RegistryStore(service.parts.stores.database), site.gateways[0].node.rpc)  # type: ignore[attr-defined]
    for number in range(10):
        node = NodeId(f"U{number}")
        assert await readers.is_readable(node, ours.digest)
        with pytest.raises(errors.NotFound):
            await readers.is_readable(node, theirs.digest)
        assert not await readers.is_readable(node, "sha256:" + "0" * 64)
    assert (len(readers._machines), len(readers._files)) == (2, 3)
