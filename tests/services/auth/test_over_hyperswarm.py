"""A machine joins with a ticket over a real Hyperswarm: from the line that an administrator sends to a certificate."""

import time
from collections.abc import AsyncIterator

import msgspec
import pytest
from pyhyperswarm import dht

from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import auth, membership
from shared.identity import certificates, node_keys, tickets
from shared.node import enrollment
from shared.node import membership_file as kept_membership
from shared.node.client_node import ClientNode
from shared.types import Credential, Role
from tests.services.auth.surroundings import ADMIN_PASSWORD
from tests.testnet import MESH, testnet


@pytest.fixture
async def administrator(ca_settings: AuthSettings) -> AsyncIterator[tuple[ClientNode, Credential]]:
    """A client of an auth that is on NATS and on its own DHT, and an administrator's token."""
    async with testnet() as net:
        bootstrap = tuple(f"{node.host}:{node.port}" for node in dht.shared())
        key_file = net.server.key("auth", Role.AUTH)
        settings = msgspec.structs.replace(
            ca_settings,
            mesh=MESH,
            nats_url=net.server.url,
            node_key_file=key_file,
            dht_bootstrap=bootstrap,
            ticket_bootstrap=(),
            dht_relays=(),
        )
        await net.start(AuthService, settings)
        client = await net.client()
        login = auth.LoginUser(auth.Credentials(ADMIN_PASSWORD, username="admin"))
        yield client, (await client.rpc.call(auth.login_user, login)).access_token


async def test_from_a_ticket_to_a_certificate_and_a_revocation(administrator: tuple[ClientNode, Credential]) -> None:
    client, token = administrator
    made = await client.rpc.call(membership.create_ticket, membership.CreateTicket(Role.WORKER, labels={"zone": "eu"}), credential=token)
    assert "127.0.0.1" in made.warnings[0]
    key, newcomer, heard = node_keys.NodeKey(node_keys.new_seed()), enrollment.EnrollingNode(Role.WORKER, "box", {"gpu": "a"}), list[str]()
    ticket = tickets.parse(made.ticket)
    await enrollment.enroll(ticket, key, newcomer, heard.append)
    reply = await enrollment.enroll(ticket, key, newcomer, heard.append)  # as after a lost reply
    found = certificates.check(reply.certificate, (ticket.authority_id,), time.time())
    assert (found.node, found.role, dict(found.labels)) == (key.id, Role.WORKER, {"zone": "eu", "gpu": "a"})
    other = node_keys.NodeKey(node_keys.new_seed())
    with pytest.raises(errors.BadTicket, match="used up"):
        await enrollment.enroll(ticket, other, newcomer, heard.append)
    kept = await enrollment.renew_as_newcomer(kept_membership.of(reply), key)
    assert certificates.check(kept.certificate, kept.authorities, time.time()).node == key.id
    gone = await client.rpc.call(membership.revoke_member, membership.RevokeMember(key.id), credential=token)
    assert gone.state == "revoked"
    with pytest.raises(
        (errors.NotReachable, errors.NodeRevoked),
        match=r"no node of mesh test was found within 1 s",
    ):
        # The firewall does not answer the revoked node at all.
        await enrollment.renew_as_newcomer(kept, key, options=enrollment.EnrollmentOptions(find_seconds=1))
