"""auth's own membership, and replicas that sign one list."""

import time
from pathlib import Path

import msgspec
import pytest

from services.auth import store
from services.auth.nodes.mesh_ca import MeshCa
from services.auth.nodes.node_store import NodeStore
from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import membership
from shared.identity import certificates, node_keys
from shared.identity.trust import Trust
from shared.node import membership_file as kept_membership
from shared.types import Peer, Role
from tests.services.auth import by_hand
from tests.services.auth.surroundings import Newcomer, Surroundings
from tests.testnet import until


async def test_auth_certifies_itself_and_saves_the_certificate(running_service: Surroundings, tmp_path: Path) -> None:
    own = certificates.check(running_service.trust.certificate, running_service.trust.authorities, time.time())
    assert (own.node, own.role) == (running_service.id, Role.AUTH)
    assert running_service.trust.number > 0
    assert [epoch for epoch, _ in running_service.trust.topics] == [1]
    found = kept_membership.load(tmp_path / "auth.mesh")
    assert found is not None
    assert (found.certificate, found.revocations) == (running_service.trust.certificate, running_service.trust.list_body)


async def test_two_replicas_learn_of_each_others_revocations_immediately(ca_settings: AuthSettings, postgres_url: str) -> None:
    one, two, newcomer = Surroundings(), Surroundings(), Newcomer()
    async with AuthService.open(ca_settings, one.as_node()) as one.service, AuthService.open(ca_settings, two.as_node()) as two.service:
        assert one.trust.topics == two.trust.topics
        await newcomer.enroll(one, (await two.ticket()).ticket)
        await two.administer(membership.revoke_member, membership.RevokeMember(newcomer.key.id))
        assert two.trust.revoked == {newcomer.key.id}
        await until(lambda: one.trust.revoked == {newcomer.key.id}, seconds=2)
        assert one.trust.number == two.trust.number
        # Nodes of one replica accept what the other has signed.
        node = Trust(newcomer.key, Role.WORKER, two.trust.authorities)
        assert node.take_list(one.trust.list_body)
        other = Newcomer()
        await other.enroll(two, (await one.ticket()).ticket)
        await by_hand.run(postgres_url, "UPDATE auth.nodes SET state = 'revoked' WHERE id = $1", other.key.id)
        await until(lambda: one.trust.revoked == two.trust.revoked == {newcomer.key.id, other.key.id}, seconds=2)


async def test_a_confirmed_list_is_newer_but_keeps_its_number(ca_settings: AuthSettings, postgres_url: str) -> None:
    async with store.opened(postgres_url) as database:
        here, clock = Surroundings(), [time.time() - certificates.SERVICE_LIFETIME_SECONDS * 0.7]
        loaded = MeshCa.load(ca_settings, here.as_node(), NodeStore(database))
        assert loaded is not None
        ca = MeshCa(loaded.keys, loaded.addresses, here.as_node(), NodeStore(database), clock=lambda: clock[0])
        await ca.begin()
        first, certificate = here.trust.list, here.trust.certificate
        clock[0] += 100
        await ca.refresh()
        second = here.trust.list
        assert first is not None
        assert second is not None
        assert (second.number, second.issued_at - first.issued_at) == (first.number, 100)
        assert here.trust.certificate == certificate
        # Late in its certificate's life, auth makes a new one, before any node refuses the old one.
        clock[0] = time.time()
        await ca.refresh()
        assert here.trust.certificate != certificate


async def test_an_epoch_that_ended_a_day_ago_is_no_longer_published(running_service: Surroundings, postgres_url: str) -> None:
    newcomer = Newcomer()
    await newcomer.enroll(running_service, (await running_service.ticket()).ticket)
    await running_service.administer(membership.revoke_member, membership.RevokeMember(newcomer.key.id))
    assert [epoch for epoch, _ in running_service.trust.topics] == [2, 1]
    await by_hand.run(postgres_url, "UPDATE auth.mesh_state SET epoch_changed_at = now() - interval '25 hours'")
    await until(lambda: [epoch for epoch, _ in running_service.trust.topics] == [2])
    reply = await running_service.ask(membership.renew_certificate, membership.RenewCertificate(), peer=_gateway())
    assert [secret.epoch for secret in reply.topics] == [2]


async def test_an_auth_with_a_revoked_key_does_not_start(ca_settings: AuthSettings, postgres_url: str) -> None:
    here = Surroundings()
    async with AuthService.open(ca_settings, here.as_node()) as here.service:
        pass
    await by_hand.run(postgres_url, "UPDATE auth.nodes SET state = 'revoked' WHERE id = $1", here.id)
    again = Surroundings(key=here.key)
    with pytest.raises(errors.NodeRevoked, match="this node was revoked on"):
        async with AuthService.open(ca_settings, again.as_node()):
            pass


async def test_a_restored_database_continues_above_the_numbers_that_auth_signed(ca_settings: AuthSettings, postgres_url: str) -> None:
    here = Surroundings()
    async with AuthService.open(ca_settings, here.as_node()) as here.service:
        signed = here.trust
    await by_hand.run(postgres_url, "UPDATE auth.mesh_state SET number = 17")
    again = Surroundings(key=here.key)
    again.trust.authorities = signed.authorities
    again.trust.take_list(signed.list_body)
    async with AuthService.open(ca_settings, again.as_node()) as again.service:
        assert again.trust.number > signed.number


async def test_both_keys_are_published_during_a_rotation(ca_settings: AuthSettings, tmp_path: Path) -> None:
    following = tmp_path / "next.nk"
    following.touch(mode=0o600)
    following.write_bytes(node_keys.new_authority_seed())
    here = Surroundings()
    settings = msgspec.structs.replace(ca_settings, mesh_ca_next_key_file=following)
    async with AuthService.open(settings, here.as_node()) as here.service:
        reply = await here.ask(membership.renew_certificate, membership.RenewCertificate(), peer=_gateway())
        node = Trust(node_keys.NodeKey(node_keys.new_seed()), Role.WORKER, reply.authorities[:1])
        node.take_successor(reply.succession)
        assert node.authorities == reply.authorities
        assert [secret.epoch for secret in reply.topics] == [1, 1]
        assert len({secret.secret for secret in reply.topics}) == 2


async def test_a_ca_key_file_that_others_can_read_is_refused(ca_settings: AuthSettings) -> None:
    assert ca_settings.mesh_ca_key_file is not None
    ca_settings.mesh_ca_key_file.chmod(0o644)
    with pytest.raises(errors.BadSettings, match="read by others"):
        async with AuthService.open(ca_settings, Surroundings().as_node()):
            pass


def _gateway() -> Peer:
    return Peer(Role.GATEWAY, node_keys.NodeKey(node_keys.new_seed()).id)
