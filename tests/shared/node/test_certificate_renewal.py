"""Certificate renewal: when a node asks for a new certificate, whose lists it accepts, where nodes meet, and what it saves."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shared import errors
from shared.api import membership as contract
from shared.api import node as node_api
from shared.identity import certificates, node_keys
from shared.identity.certificates import Subject
from shared.identity.node_keys import Authority, NodeKey
from shared.identity.trust import Trust
from shared.node import membership_file
from shared.node.certificate_renewal import LOST_SECONDS, CertificateRenewal
from shared.node.lifecycle import background
from shared.protocol import topics
from shared.protocol.directory import Announcement, Directory
from shared.transports.swarm_transport import MeetingTopics
from shared.types import MeshName, NodeId, Role
from tests.testnet import until

MESH = MeshName("test")
AUTH = NodeId("UAUTH")
GATEWAY = NodeId("UGATEWAY")


@dataclass
class RunningService:
    """An auth with its own CA, and what its gateway has; stands in for both nodes on the mesh."""

    ca: Authority = field(default_factory=lambda: Authority(node_keys.new_authority_seed()))
    key: NodeKey = field(default_factory=lambda: NodeKey(node_keys.new_seed()))
    role: Role = Role.WORKER
    number: int = 1
    epoch: int = 1
    revoked: tuple[NodeId, ...] = ()
    issued_at: float = field(default_factory=time.time)
    asked: list[tuple[str, NodeId | None]] = field(default_factory=list)
    refusal: errors.AimeshError | None = None
    bootstrap: tuple[str, ...] = ("127.0.0.1:1",)

    def list_body(self) -> bytes:
        return certificates.issue_list(self.ca, self.number, self.epoch, self.revoked, time.time())

    def reply(self) -> contract.Membership:
        certificate = certificates.issue(self.ca, Subject(self.key.id, self.role), self.issued_at)
        secrets = (contract.TopicSecret(self.epoch, bytes([self.epoch]) * 32),)
        return contract.Membership(
            MESH, self.role, certificate, self.list_body(), (self.ca.id,), b"", secrets, self.bootstrap, (), int(time.time() * 1000)
        )  # fmt: skip

    async def call(self, method: Any, request: Any, *, to: NodeId | None = None, deadline_seconds: float) -> Any:
        self.asked.append((method.name, to))
        if self.refusal is not None:
            raise self.refusal
        return self.reply() if method is contract.renew_certificate else node_api.Revocations(self.list_body())


@dataclass
class World:
    running_service: RunningService
    renewal: CertificateRenewal
    trust: Trust
    nodes: Directory
    state: Path
    changes: list[None] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with background() as tasks:
            tasks.create_task(self.renewal.run())
            yield

    def announce(self, node: NodeId, role: Role) -> None:
        self.nodes.apply_announcement(Announcement(role, node, "0.1.0", datetime(2026, 1, 1, tzinfo=UTC)), "nats")


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    def make(**facts: Any) -> World:
        running_service = RunningService(**facts)
        trust = Trust(running_service.key, running_service.role)
        nodes = Directory(asyncio.get_running_loop().time)
        state = tmp_path / "node.mesh"
        renewal = CertificateRenewal(trust, membership_file.MembershipFile(MESH, running_service.role), state, nodes, running_service)  # type: ignore[arg-type]  # stands in for rpc
        made = World(running_service, renewal, trust, nodes, state)
        renewal.changed = lambda: made.changes.append(None)
        return made

    return make


async def test_a_service_node_is_certified_as_soon_as_auth_is_up(world: Callable[..., World]) -> None:
    here = world(role=Role.GATEWAY)
    async with here.running():
        here.announce(AUTH, Role.AUTH)
        await until(lambda: here.trust.has_certificate(time.time()))
    kept = membership_file.load(here.state)
    assert kept is not None
    assert (kept.authorities, kept.topics[0].epoch, kept.bootstrap) == ((here.running_service.ca.id,), 1, ("127.0.0.1:1",))
    assert here.state.stat().st_mode & 0o777 == 0o600
    assert here.trust.number == 1


async def test_every_renewal_updates_the_dht_nodes_and_keeps_the_previous_ones(world: Callable[..., World]) -> None:
    here = world(role=Role.GATEWAY)
    for bootstrap in (("house.test:1", "127.0.0.1:1"), ("127.0.0.1:2",)):
        here.renewal.take(here.running_service.reply())
        here.running_service.bootstrap = bootstrap
    here.renewal.take(here.running_service.reply())
    kept = membership_file.load(here.state)
    assert kept is not None
    assert (kept.bootstrap, kept.older_bootstrap) == (("127.0.0.1:2",), ("house.test:1", "127.0.0.1:1"))
    assert len(here.changes) == 3


async def test_saved_membership_is_used_after_a_restart_without_auth(world: Callable[..., World]) -> None:
    here = world(revoked=(NodeId("UGONE"),))
    here.renewal.take(here.running_service.reply())
    kept = membership_file.load(here.state)
    assert kept is not None
    again = Trust(here.running_service.key, Role.WORKER)
    membership_file.load_into(again, kept)
    assert again.has_certificate(time.time())
    assert again.revoked == {NodeId("UGONE")}
    assert again.topics == here.trust.topics


@pytest.mark.parametrize(("life_over", "is_due"), [(0.5, False), (0.6, False), (0.75, True), (1.5, True)])
async def test_a_certificate_is_renewed_after_two_thirds_of_its_lifetime(
    world: Callable[..., World], life_over: float, is_due: bool
) -> None:
    here = world()
    here.announce(AUTH, Role.AUTH)
    here.trust.authorities = (here.running_service.ca.id,)
    life = certificates.lifetime_seconds(Role.WORKER)
    here.trust.certificate = certificates.issue(
        here.running_service.ca, Subject(here.running_service.key.id, Role.WORKER), time.time() - life * life_over
    )
    async with here.running():
        await until(lambda: ("node.readRevocations", AUTH) in here.running_service.asked)
    assert (("auth.renewCertificate", None) in here.running_service.asked) is is_due


async def test_a_certificate_for_another_node_or_mesh_is_rejected(world: Callable[..., World]) -> None:
    here = world()
    here.renewal.take(here.running_service.reply())
    good = here.trust.certificate
    stranger = RunningService(key=NodeKey(node_keys.new_seed()), ca=here.running_service.ca)
    for reply in (RunningService(key=here.running_service.key).reply(), stranger.reply()):
        with pytest.raises(errors.NotCertified, match=r"auth has sent a certificate for another|the certificate belongs to another mesh"):
            here.renewal.take(reply)
    assert here.trust.certificate == good


async def test_a_newer_list_is_fetched_from_where_it_was_heard_and_disconnects_revoked_nodes(world: Callable[..., World]) -> None:
    here = world()
    here.renewal.take(here.running_service.reply())
    here.announce(GATEWAY, Role.GATEWAY)
    cut: list[frozenset[NodeId]] = []
    here.trust.on_revoked.append(cut.append)
    async with here.running():
        here.running_service.number, here.running_service.revoked = 2, (GATEWAY,)
        here.renewal.record_list_number(NodeId("USOMEBODY"), 2)
        await until(lambda: here.trust.number == 2)
    assert cut == [{GATEWAY}]
    assert here.nodes.entries(Role.GATEWAY)[0].why_not == "revoked by an administrator"
    kept = membership_file.load(here.state)
    assert kept is not None
    assert certificates.check_list(kept.revocations, (here.running_service.ca.id,)).number == 2


@pytest.mark.parametrize("role", [Role.AUTH, Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB])
@pytest.mark.parametrize("other", [Role.AUTH, Role.GATEWAY, Role.WORKER, Role.METRICS])
async def test_a_newer_list_is_fetched_only_where_the_role_may_call(world: Callable[..., World], role: Role, other: Role) -> None:
    """With three auths, NATS refused 402 publishes in 22 minutes: each auth asked the others for the list."""
    here = world(role=role)
    here.renewal.take(here.running_service.reply())
    here.announce(NodeId("UOTHER"), other)
    here.renewal.record_list_number(NodeId("UOTHER"), 2)
    may_speak = other in topics.SPEAKS_TO[role]
    async with here.running():
        if may_speak:
            here.running_service.number = 2
            await until(lambda: here.trust.number == 2, seconds=10)
        else:
            await until(lambda: here.renewal._pull_at > 0, seconds=10)
    assert ("node.readRevocations", NodeId("UOTHER")) in here.running_service.asked or not may_speak
    assert may_speak or NodeId("UOTHER") not in [node for _, node in here.running_service.asked]


async def test_a_new_epoch_changes_the_meeting_topics(world: Callable[..., World]) -> None:
    here = world()
    here.renewal.take(here.running_service.reply())
    before = here.renewal.meetings()
    here.announce(AUTH, Role.AUTH)
    async with here.running():
        here.running_service.number, here.running_service.epoch = 2, 2
        here.renewal.record_list_number(AUTH, 2)
        await until(lambda: here.trust.topics[0][0] == 2)
    assert not {meeting.topic for meeting in before} & {meeting.topic for meeting in here.renewal.meetings()}


async def test_an_uncertified_node_only_looks_for_auth(world: Callable[..., World]) -> None:
    here = world()
    here.trust.authorities = (here.running_service.ca.id,)
    enrolment = topics.enrollment_topic(node_keys.raw_of(here.running_service.ca.id))
    assert here.renewal.meetings() == [MeetingTopics(enrolment, announce=False, look=True)]
    here.renewal.take(here.running_service.reply())
    assert enrolment not in {meeting.topic for meeting in here.renewal.meetings()}


@pytest.mark.parametrize("role", [Role.AUTH, Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT])
async def test_each_role_meets_exactly_those_it_may_call(world: Callable[..., World], role: Role) -> None:
    here = world(role=role)
    here.renewal.take(here.running_service.reply())
    mine = {meeting.topic: meeting for meeting in here.renewal.meetings()}
    for other in (Role.AUTH, Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT):
        there = world(role=other, ca=here.running_service.ca)
        there.renewal.take(there.running_service.reply())
        theirs = {meeting.topic: meeting for meeting in there.renewal.meetings()}
        meets = any(
            (mine[topic].announce and theirs[topic].look) or (mine[topic].look and theirs[topic].announce)
            for topic in mine.keys() & theirs.keys()
        )
        # Replicas of one role share a topic and see each other there, but never call each other.
        assert meets is topics.may_call(role, other) or (meets and role == other) or {role, other} == {Role.METRICS, Role.WEB}, other


async def test_a_node_that_lost_auth_also_searches_the_enrollment_topic(world: Callable[..., World]) -> None:
    here = world()
    here.renewal.take(here.running_service.reply())
    enrolment = MeetingTopics(topics.enrollment_topic(node_keys.raw_of(here.running_service.ca.id)), announce=False, look=True)
    known = here.renewal.meetings()
    here.renewal._update_topics(time.monotonic() + LOST_SECONDS + 1)
    assert here.renewal.meetings() == [*known, enrolment]
    here.announce(AUTH, Role.AUTH)
    here.renewal._update_topics(time.monotonic())
    assert here.renewal.meetings() == known


async def test_a_certificate_that_expires_at_runtime_changes_where_the_node_searches(world: Callable[..., World]) -> None:
    here = world()
    here.renewal.take(here.running_service.reply())
    here.renewal._update_topics(time.monotonic())
    before = len(here.changes)
    old = certificates.issue(here.running_service.ca, Subject(here.running_service.key.id, Role.WORKER), time.time() - 7 * 24 * 3600)
    here.trust.certificate = old
    here.renewal._update_topics(time.monotonic())
    assert len(here.changes) == before + 1
    assert [meeting.topic for meeting in here.renewal.meetings()] == [topics.enrollment_topic(node_keys.raw_of(here.running_service.ca.id))]


async def test_auth_is_asked_repeatedly_while_it_refuses(world: Callable[..., World]) -> None:
    here = world(refusal=errors.Unavailable("PostgreSQL is starting"))
    here.announce(AUTH, Role.AUTH)
    told: list[str] = []
    here.renewal.note = lambda what, why: told.append(f"{what}: {why}")
    async with here.running():
        await until(lambda: len([name for name, _ in here.running_service.asked if name == "auth.renewCertificate"]) == 1)
        here.running_service.refusal = None
        await until(lambda: here.trust.has_certificate(time.time()))
    assert "certificate not renewed: PostgreSQL is starting" in told


@pytest.mark.parametrize(("minutes", "is_good"), [(0, True), (9, True), (11, False)])
async def test_a_list_not_confirmed_for_ten_minutes_is_shown_as_outdated(world: Callable[..., World], minutes: int, is_good: bool) -> None:
    here = world()
    here.renewal.take(here.running_service.reply())
    assert here.renewal.check().ok
    trust = Trust(here.running_service.key, Role.WORKER, (here.running_service.ca.id,))
    trust.take_list(certificates.issue_list(here.running_service.ca, 1, 1, (), time.time() - minutes * 60))
    here.trust.list = trust.list
    found = here.renewal.check()
    assert found.ok is is_good
    assert (f"not confirmed it for {minutes} min" in found.detail) is not is_good
