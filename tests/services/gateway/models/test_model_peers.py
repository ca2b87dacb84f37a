"""Who is introduced to whom, and who reads which block from the mesh's store."""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import pytest

from services.gateway.models.model_peers import FILE_SECONDS, HOLDER_SECONDS, MAX_FILES, MAX_FILES_OF_WORKER, PULL_SECONDS, ModelPeers
from shared import errors
from shared.api.model_copies import MAX_INTRODUCED, AdvisePull, LeaseBlocks, LeasedBlocks, PullAdvice, PulledFile, RunningPull
from shared.identity import copy_grants
from shared.identity.trust import Trust
from shared.models import block_list
from shared.models.copy_plan import LEASE_SECONDS, MAX_LEASES
from shared.protocol.directory import Announcement, Directory, ModelOffer, ModelPull
from shared.types import ModelName, NodeId, Role
from tests.shared.identity.test_trust import NOW, certified

FILE, SIZE = "sha256:" + "ab" * 32, 40 << 20
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Mesh:
    workers: list[Trust] = field(default_factory=lambda: [certified(Role.WORKER) for _ in range(12)])
    clock: float = 1000.0
    networks: dict[NodeId, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = Directory(lambda: self.clock, lambda: BEGUN)
        self.gateway = certified(Role.GATEWAY)
        rng = random.Random(1)
        self.excluded = list[None]()
        self.peers = ModelPeers(
            self.gateway, self.nodes, self.networks.get,
            on_excluded=lambda: self.excluded.append(None), clock=lambda: self.clock, now=lambda: NOW, rng=rng,
        )  # fmt: skip
        for each in self.workers:
            self.announce(each)

    def announce(
        self, worker: Trust, digest: str = "", name: str = "other", *, leaving: bool = False, pulls: tuple[ModelPull, ...] = ()
    ) -> None:
        models = (ModelOffer(ModelName(name), 2048, digest),)
        self.nodes.apply_announcement(
            Announcement(Role.WORKER, worker.me.id, "1", BEGUN, models, leaving=leaving, pulls=pulls), "direct", "swarm"
        )

    def lease(self, worker: Trust, **changes: object) -> LeasedBlocks:
        return self.peers.lease(worker.me.id, LeaseBlocks(FILE, SIZE, **changes), is_version=True)  # type: ignore[arg-type]

    def begin(self, worker: Trust, had: int = 0, model: str = "") -> tuple[int, ...]:
        return self.lease(worker, had=had.to_bytes(5, "little"), model=ModelName(model)).blocks

    def find(self, reader: Trust, model: str = "") -> list[NodeId]:
        return [peer.node for peer in self.peers.find(reader.me.id, FILE, ModelName(model), is_version=True)]


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


def test_a_worker_is_introduced_to_those_that_copy_the_file_and_gets_grants(mesh: Mesh) -> None:
    one, other, third = mesh.workers[:3]
    assert mesh.find(one) == []
    mesh.begin(one)
    mesh.begin(other)
    assert mesh.find(one) == [other.me.id]
    assert set(mesh.find(third)) == {one.me.id, other.me.id}
    (peer,) = mesh.peers.find(one.me.id, FILE, ModelName(""), is_version=True)
    assert copy_grants.check(peer.grant, other, one.me.id, bytes.fromhex("ab" * 32), NOW)
    with pytest.raises(errors.NotAllowed):
        copy_grants.check(peer.grant, other, third.me.id, bytes.fromhex("ab" * 32), NOW)
    mesh.clock += HOLDER_SECONDS
    assert mesh.find(one) == []


def test_a_worker_that_announces_the_model_or_a_part_of_it_is_introduced(mesh: Mesh) -> None:
    holder, of_parts, reader = mesh.workers[:3]
    mesh.announce(holder, "ab" * 32)
    mesh.announce(of_parts, "cd" * 32, "llama3@1")
    assert mesh.find(reader) == [holder.me.id]
    assert set(mesh.find(reader, "llama3@1")) == {holder.me.id, of_parts.me.id}
    mesh.announce(holder, "ab" * 32, leaving=True)
    assert mesh.find(reader) == []


def test_those_of_the_same_network_come_first_and_there_are_at_most_8(mesh: Mesh) -> None:
    for each in mesh.workers:
        mesh.begin(each)
    near = {each.me.id for each in mesh.workers[:3]}
    mesh.networks |= dict.fromkeys(near, "192.0.2.0/24") | {mesh.workers[3].me.id: "198.51.100.0/24"}
    found = mesh.find(mesh.workers[0])
    assert len(found) == MAX_INTRODUCED
    assert set(found[:2]) == near - {mesh.workers[0].me.id}


def test_each_block_is_leased_once_and_a_worker_first_says_what_it_had(mesh: Mesh) -> None:
    one, other = mesh.workers[:2]
    assert mesh.lease(one) == LeasedBlocks(is_new=True)
    assert mesh.begin(one, had=0b11) == (2,)
    assert mesh.begin(other) == (3,)
    assert mesh.lease(one, done=(2,)).blocks == (4,)
    assert sum(bool(mesh.begin(each)) for each in mesh.workers[2:]) == MAX_LEASES - 2


def test_the_blocks_of_a_worker_that_is_gone_are_leased_again(mesh: Mesh) -> None:
    one, other = mesh.workers[:2]
    assert mesh.begin(one) == (0,)
    mesh.announce(one, leaving=True)
    assert mesh.begin(other) == (0,)
    mesh.clock += LEASE_SECONDS + 1
    assert mesh.begin(mesh.workers[2]) == (0,)


def test_with_a_worker_that_has_the_whole_file_only_what_it_does_not_give_is_leased(mesh: Mesh) -> None:
    holder, reader = mesh.workers[:2]
    mesh.announce(holder, "cd" * 32, "llama3@1")
    assert mesh.begin(reader, model="llama3@1") == ()
    assert mesh.lease(reader, orphans=(5, 7, 6), most=2).blocks == (5, 6)


def test_a_worker_that_two_others_report_is_not_introduced_and_its_blocks_are_leased_again(mesh: Mesh) -> None:
    liar, one, other = mesh.workers[:3]
    assert mesh.begin(liar) == (0,)
    mesh.lease(liar, done=(0,))
    for each in (one, other):
        mesh.begin(each)
    mesh.lease(one, faulty=(liar.me.id, one.me.id))
    assert (liar.me.id in mesh.find(other), mesh.excluded) == (True, [])
    assert mesh.lease(other, faulty=(liar.me.id,)).blocks == (0,)
    assert liar.me.id not in mesh.find(one)
    assert mesh.lease(liar).blocks == ()
    mesh.lease(other, faulty=(liar.me.id,))
    assert len(mesh.excluded) == 1


def test_what_a_worker_says_of_another_size_disturbs_nobody(mesh: Mesh) -> None:
    liar, one = mesh.workers[:2]
    mesh.peers.lease(liar.me.id, LeaseBlocks(FILE, SIZE - 1, had=b"\xff" * 5), is_version=True)
    assert mesh.begin(one) == (0,)
    with pytest.raises(errors.BadRequest):
        mesh.lease(one, done=(40,))


def test_a_worker_that_asks_for_many_files_keeps_few_of_them_and_holds_up_nobody(mesh: Mesh) -> None:
    greedy, one = mesh.workers[:2]
    mesh.begin(one)
    names = [f"sha256:{number:064x}" for number in range(MAX_FILES + 1)]
    for name in names:
        assert mesh.peers.lease(greedy.me.id, LeaseBlocks(name, SIZE), is_version=True).is_new
        assert mesh.peers.lease(greedy.me.id, LeaseBlocks(name, SIZE, had=b"\0"), is_version=True).blocks == (0,)
        mesh.clock += 0.01
    assert len(mesh.peers._files) == MAX_FILES_OF_WORKER + 1
    assert mesh.peers.lease(one.me.id, LeaseBlocks(names[0], SIZE, had=b"\0"), is_version=True).blocks == (0,)
    # The others still know it, and it goes on with a file that it asked for long ago.
    assert mesh.lease(one, done=(0,)).blocks == (1,)
    assert mesh.peers.lease(greedy.me.id, LeaseBlocks(names[0], SIZE), is_version=True).is_new
    assert mesh.peers.lease(greedy.me.id, LeaseBlocks(names[0], SIZE, had=b"\1"), is_version=True).blocks == (1,)


def test_a_worker_had_no_more_blocks_than_the_file_has(mesh: Mesh) -> None:
    one = mesh.workers[0]
    with pytest.raises(errors.BadRequest, match="has 40 blocks"):
        mesh.lease(one, had=b"\0" * 6)
    assert mesh.lease(one, had=b"\0" * 5).blocks == (0,)


def test_files_are_forgotten_when_nobody_copies_them(mesh: Mesh) -> None:
    mesh.begin(mesh.workers[0])
    mesh.clock += FILE_SECONDS
    assert mesh.lease(mesh.workers[0]).is_new


def test_one_worker_pulls_a_public_model_and_others_wait_and_copy_it(mesh: Mesh) -> None:
    one, other, third = mesh.workers[:3]
    ask = AdvisePull(ModelName("qwen3"), "hf:org/qwen3")
    assert mesh.peers.advise(one.me.id, ask) == PullAdvice()
    assert mesh.peers.advise(other.me.id, ask) == PullAdvice(waits=True)
    assert mesh.peers.advise(other.me.id, AdvisePull(ModelName("qwen3"), "hf:org/elsewhere")) == PullAdvice()
    mesh.announce(one, pulls=(ModelPull("qwen3", 1, 2, 0.0),))
    mesh.clock += PULL_SECONDS
    assert mesh.peers.advise(other.me.id, ask).waits, "it says that it pulls"
    assert mesh.peers.advise(one.me.id, ask) == PullAdvice(), "it has begun anew"
    file = PulledFile(FILE, SIZE, "sha256:" + "ef" * 32, b"")
    mesh.peers.advise(one.me.id, msgspec.structs.replace(ask, pulled=file))
    assert mesh.peers.advise(other.me.id, ask) == PullAdvice(file)
    assert mesh.find(other) == [one.me.id]
    assert mesh.begin(other) == (), "it has the whole file"
    mesh.peers.advise(other.me.id, msgspec.structs.replace(ask, pulled=file))
    mesh.announce(one, leaving=True)
    assert mesh.peers.advise(third.me.id, ask) == PullAdvice(file)
    mesh.announce(other, leaving=True)
    assert mesh.peers.advise(third.me.id, ask) == PullAdvice(), "nobody has it any more"


def test_others_learn_the_digests_of_a_public_model_while_it_is_pulled(mesh: Mesh) -> None:
    one, other, third = mesh.workers[:3]
    ask = AdvisePull(ModelName("qwen3"), "hf:org/qwen3")

    def tell(worker: Trust, start: int, blocks: bytes) -> PullAdvice:
        return mesh.peers.advise(worker.me.id, msgspec.structs.replace(ask, running=RunningPull(FILE, SIZE, start, blocks)))

    def known(count: int) -> RunningPull | None:
        return mesh.peers.advise(other.me.id, msgspec.structs.replace(ask, known=count)).running

    mesh.peers.advise(one.me.id, ask)
    assert known(0) is None
    begun = RunningPull(FILE, SIZE, puller=one.me.id)
    assert tell(one, 0, b"a" * 32) == PullAdvice(running=msgspec.structs.replace(begun, start=1))
    assert tell(one, 1, b"b" * 32) == PullAdvice(running=msgspec.structs.replace(begun, start=2))
    assert tell(third, 0, b"c" * 32) == PullAdvice(), "it does not pull"
    assert known(0) == msgspec.structs.replace(begun, blocks=b"a" * 32 + b"b" * 32)
    assert known(1) == msgspec.structs.replace(begun, start=1, blocks=b"b" * 32)
    assert known(7) == msgspec.structs.replace(begun, start=2)
    assert mesh.peers.advise(other.me.id, ask) == PullAdvice(waits=True), "a worker of 0.3 does not follow"
    assert mesh.find(other) == [one.me.id]
    assert mesh.peers.is_pulled(FILE)
    assert tell(one, 9, b"d" * 32) == PullAdvice(running=msgspec.structs.replace(begun, start=2)), "the gateway has lost what lies between"
    assert tell(one, 2, b"d" * 32 * 9999) == PullAdvice(running=msgspec.structs.replace(begun, start=block_list.count(SIZE)))
    file = PulledFile(FILE, SIZE, "sha256:" + "ef" * 32, b"")
    tell(one, 0, b"e" * 32)
    assert known(0) == msgspec.structs.replace(begun, blocks=b"e" * 32), "it has begun anew"
    mesh.peers.advise(one.me.id, msgspec.structs.replace(ask, pulled=file))
    assert known(0) is None, "it copies the list, too"
    assert known(1) == msgspec.structs.replace(begun, start=1), "it goes on as it is connected"
    assert mesh.peers.advise(other.me.id, ask) == PullAdvice(file)
    mesh.announce(one, leaving=True)
    assert mesh.peers.advise(other.me.id, msgspec.structs.replace(ask, known=1)) == PullAdvice(), "the next one pulls"


def test_who_stops_pulling_a_public_model_is_replaced(mesh: Mesh) -> None:
    one, other, third = mesh.workers[:3]
    ask = AdvisePull(ModelName("qwen3"), "hf:org/qwen3")
    mesh.peers.advise(one.me.id, ask)
    mesh.clock += PULL_SECONDS
    assert mesh.peers.advise(other.me.id, ask) == PullAdvice()
    assert mesh.peers.advise(third.me.id, ask).waits
    mesh.announce(other, leaving=True)
    assert mesh.peers.advise(third.me.id, ask) == PullAdvice()


def test_nobody_waits_for_a_public_model_that_others_cannot_give(mesh: Mesh) -> None:
    one, other, third = mesh.workers[:3]
    ask = AdvisePull(ModelName("qwen3"), "hf:org/qwen3")
    mesh.peers.advise(one.me.id, ask)
    assert mesh.peers.advise(other.me.id, ask).waits
    mesh.peers.advise(one.me.id, msgspec.structs.replace(ask, is_kept=True))
    assert mesh.peers.advise(other.me.id, ask) == mesh.peers.advise(third.me.id, ask) == PullAdvice()
