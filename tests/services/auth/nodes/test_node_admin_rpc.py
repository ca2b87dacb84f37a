"""What administrators may do with all tickets and nodes, and node owners with their own."""

import time
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import msgspec
import pytest

from services.auth.nodes.enrollment_rules import MAX_OWN_TICKETS
from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import auth, membership
from shared.api.audit import AuditedAct
from shared.api.auth import KeyKind
from shared.api.membership import MemberState, TicketState
from shared.identity import tickets
from shared.telemetry import version
from shared.types import Credential, Role, TenantId, UserRole
from tests.cases import case
from tests.services.auth import by_hand
from tests.services.auth.organizations.seeded_database import Recorded
from tests.services.auth.surroundings import CLIENT, Newcomer, Surroundings


async def test_a_ticket_contains_what_is_needed_to_find_and_recognize_the_mesh(running_service: Surroundings) -> None:
    made = await running_service.ticket(Role.CLIENT, uses=3, ttl_seconds=120, labels={"team": "a"})
    ticket = tickets.parse(made.ticket)
    assert (ticket.mesh, ticket.bootstrap, ticket.relays) == (running_service.mesh, ("192.0.2.1:49737",), (b"\xab" * 32,))
    assert ticket.authority_id == running_service.trust.authorities[0]
    row = made.row
    assert (row.id, row.role, row.state, row.uses, row.used) == (ticket.id, Role.CLIENT, TicketState.GOOD, 3, 0)
    assert (row.labels, row.owner, row.needs_approval) == ({"team": "a"}, "admin", False)
    assert 115 < row.expires_at.timestamp() - time.time() < 125
    assert made.warnings == ()
    assert "\n" not in made.ticket
    (listed,) = (await running_service.administer(membership.list_tickets, membership.ListTickets())).tickets
    assert (listed.id, listed.expires_at) == (row.id, row.expires_at)


async def test_another_user_may_own_the_node(running_service: Surroundings) -> None:
    user = await running_service.register("alice")
    made = await running_service.ticket(owner="alice@example.com")
    assert made.row.owner == "alice"
    await Newcomer().enroll(running_service, made.ticket)
    listed = (await running_service.administer(membership.list_members, membership.ListMembers())).members
    assert [(row.role, row.owner) for row in listed if row.owner] == [(Role.WORKER, "alice")]
    assert user.username == "alice"
    with pytest.raises(errors.NotFound, match="there is no user 'nobody"):
        await running_service.ticket(owner="nobody")


@pytest.mark.parametrize("role", [Role.AUTH, Role.OPERATOR, Role.NEWCOMER])
async def test_no_ticket_for_roles_that_cannot_join(running_service: Surroundings, role: Role) -> None:
    with pytest.raises(errors.BadRequest, match=role):
        await running_service.ticket(role)


async def test_a_revoked_ticket_admits_nobody_and_existing_nodes_stay(running_service: Surroundings) -> None:
    made, inside = await running_service.ticket(uses=5), Newcomer()
    await inside.enroll(running_service, made.ticket)
    for _ in range(2):
        row = await running_service.administer(membership.revoke_ticket, membership.RevokeTicket(made.row.id[:6]))
        assert (row.state, row.used) == (TicketState.REVOKED, 1)
    with pytest.raises(errors.BadTicket, match="was revoked"):
        await Newcomer().enroll(running_service, made.ticket)
    await inside.renew(running_service)


async def test_all_methods_are_for_administrators(running_service: Surroundings) -> None:
    await running_service.register()
    token = (await running_service.login()).access_token
    for method, request in (
        (membership.create_ticket, membership.CreateTicket(Role.WORKER)),
        (membership.list_tickets, membership.ListTickets()),
        (membership.revoke_ticket, membership.RevokeTicket("aaaa")),
        (membership.list_members, membership.ListMembers()),
        (membership.approve_member, membership.ApproveMember(running_service.id)),
        (membership.revoke_member, membership.RevokeMember(running_service.id)),
    ):
        with pytest.raises(errors.NotAllowed):
            await running_service.ask(method, request, token)  # type: ignore[misc]  # a union of pairs
        with pytest.raises(errors.NotAuthenticated, match="this call needs a credential"):
            await running_service.ask(method, request)  # type: ignore[misc]


async def test_auth_itself_is_listed_and_cannot_be_revoked(running_service: Surroundings) -> None:
    (row,) = (await running_service.administer(membership.list_members, membership.ListMembers())).members
    assert (row.id, row.role, row.state) == (running_service.id, Role.AUTH, "active")
    with pytest.raises(errors.NotAllowed, match="auth"):
        await running_service.administer(membership.revoke_member, membership.RevokeMember(running_service.id))


async def test_a_revocation_is_signed_before_the_administrator_gets_the_answer(running_service: Surroundings) -> None:
    newcomer = Newcomer()
    await newcomer.enroll(running_service, (await running_service.ticket()).ticket)
    before, changes = running_service.trust.number, running_service.changes
    row = await running_service.administer(membership.revoke_member, membership.RevokeMember(newcomer.key.id[:12], reason="sold\x1b"))
    assert (row.id, row.state, row.reason, row.revoked_at is not None) == (newcomer.key.id, "revoked", "sold", True)
    assert running_service.trust.revoked == {newcomer.key.id}
    assert running_service.trust.number > before
    assert running_service.changes > changes, "so that the number is announced"
    assert [epoch for epoch, _ in running_service.trust.topics] == [2, 1]
    number = running_service.trust.number
    again = await running_service.administer(membership.revoke_member, membership.RevokeMember(newcomer.key.id, reason="again"))
    assert (again.reason, running_service.trust.number) == ("sold", number)


async def test_loopback_in_a_ticket_is_warned_about_and_neither_hyperswarm_nor_nats_means_no_ticket(ca_settings: AuthSettings) -> None:
    for changed, warned in (({"ticket_bootstrap": ()}, True), ({"dht_bootstrap": ("public",), "ticket_bootstrap": ()}, False)):
        here = Surroundings()
        async with AuthService.open(msgspec.structs.replace(ca_settings, **changed), here.as_node()) as here.service:
            made = await here.ticket()
            assert bool(made.warnings) is warned
            assert tickets.parse(made.ticket).bootstrap == (("127.0.0.1:49737",) if warned else ())
    here = Surroundings()
    # The password of NATS_URL must not be in a ticket.
    changed = {"dht_bootstrap": (), "nats_url": "nats://me:secret@127.0.0.1"}
    async with AuthService.open(msgspec.structs.replace(ca_settings, **changed), here.as_node()) as here.service:
        with pytest.raises(errors.Unavailable, match="Hyperswarm, which is disabled"):
            await here.ticket()


async def test_a_ticket_carries_a_model_and_whether_the_mesh_may_put_models_on_the_machine(running_service: Surroundings) -> None:
    await running_service.register("alice")
    cases = (({}, True), ({"owner": "alice"}, False), ({"owner": "alice", "accept_models": True}, True), ({"accept_models": False}, False))
    for changed, accepts in cases:
        with case(changed):
            made = await running_service.ticket(model="hf:org/model:file.gguf", **changed)
            read = tickets.parse(made.ticket)
            assert (read.model, read.accept_models) == (made.row.model, made.row.accept_models) == ("hf:org/model:file.gguf", accepts)
            rotated = await running_service.administer(membership.rotate_ticket, membership.RotateTicket(made.row.id))
            assert tickets.parse(rotated.ticket).model == "hf:org/model:file.gguf"
            assert tickets.parse(rotated.ticket).accept_models is accepts
    listed = (await running_service.administer(membership.list_tickets, membership.ListTickets())).tickets
    assert {row.model for row in listed} == {"hf:org/model:file.gguf"}


async def test_only_workers_tickets_have_models(running_service: Surroundings) -> None:
    for changed in ({"model": "hf:org/model"}, {"accept_models": False}):
        with pytest.raises(errors.BadRequest, match="a client runs no models"):
            await running_service.ticket(Role.CLIENT, **changed)
    assert tickets.parse((await running_service.ticket(Role.CLIENT)).ticket).accept_models is None


@pytest.mark.parametrize(
    ("page", "elsewhere", "needs"),
    [
        pytest.param("https://ai.example.org", True, "", id="a public name"),
        pytest.param("https://192.168.1.20:3000", False, "", id="a LAN"),
        pytest.param("https://192.168.1.20:3000", True, "set PUBLIC_URL to a public name", id="a LAN, from elsewhere"),
        pytest.param("http://127.0.0.1:3000", False, "make up LAN=1", id="this machine alone"),
        pytest.param("", False, "PUBLIC_URL isn't set", id="no address"),
    ],
)
async def test_a_ticket_comes_with_the_line_that_installs_or_with_what_is_missing(
    ca_settings: AuthSettings, page: str, needs: str, *, elsewhere: bool
) -> None:
    here = Surroundings()
    settings = msgspec.structs.replace(ca_settings, public_url=page, ticket_bootstrap=("203.0.113.5:49737",))
    async with AuthService.open(settings, here.as_node()) as here.service:
        made = await here.ticket(elsewhere=elsewhere)
        assert made.install == ("" if needs else f"curl -fsS {page}/install.sh | sh -s -- {made.ticket}")
        assert needs in made.install_needs
        assert bool(made.install_needs) is bool(needs)
        client = await here.ticket(Role.CLIENT, elsewhere=elsewhere)
        assert client.install == ("" if needs else f"curl -fsS {page}/install.sh | AIMESH_MESH=1 sh -s -- {client.ticket}")
        assert bool(client.install_needs) is bool(needs)
        gateway = await here.ticket(Role.GATEWAY, active_most=1, networks=("10.0.0.0/8",))
        assert (gateway.install, gateway.install_needs) == ("", "")


RELEASE = "https://github.com/OWNER/aimesh/releases/download/v0.2.0"


@pytest.mark.parametrize(
    ("elsewhere", "bootstrap", "is_offered"),
    [
        pytest.param(True, "dht.example.org:49737", True, id="the DHT is public"),
        pytest.param(True, "192.168.1.20:49737", False, id="the ticket alone does not find the mesh"),
        pytest.param(False, "dht.example.org:49737", False, id="it can install from the mesh, with make up LAN=1"),
    ],
)
async def test_a_machine_elsewhere_installs_from_the_release_that_the_mesh_runs(
    ca_settings: AuthSettings, monkeypatch: pytest.MonkeyPatch, bootstrap: str, *, elsewhere: bool, is_offered: bool
) -> None:
    here = Surroundings()
    settings = msgspec.structs.replace(ca_settings, public_url="http://127.0.0.1:3000", ticket_bootstrap=(bootstrap,))
    monkeypatch.setattr(version, "release_url", lambda: RELEASE)
    async with AuthService.open(settings, here.as_node()) as here.service:
        made = await here.ticket(elsewhere=elsewhere)
        line = f"curl -fsSL {RELEASE}/install.sh | sh -s -- {made.ticket}"
        assert (made.install, bool(made.install_needs)) == (line if is_offered else "", not is_offered)


async def test_the_line_pins_the_key_of_a_certificate_without_an_authority(ca_settings: AuthSettings) -> None:
    here, pin = Surroundings(), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    settings = msgspec.structs.replace(ca_settings, public_url="https://192.168.1.20:3000", public_key_pin=pin)
    async with AuthService.open(settings, here.as_node()) as here.service:
        assert (await here.ticket()).install.startswith(
            f"curl -fsSk --pinnedpubkey sha256//{pin} https://192.168.1.20:3000/install.sh | sh"
        )


async def test_private_addresses_in_a_ticket_are_warned_about_from_elsewhere(ca_settings: AuthSettings) -> None:
    here = Surroundings()
    async with AuthService.open(
        msgspec.structs.replace(ca_settings, ticket_bootstrap=("192.168.1.20:49737",)), here.as_node()
    ) as here.service:
        assert (await here.ticket()).warnings == ()
        assert "192.168.1.20" in (await here.ticket(elsewhere=True)).warnings[0]


async def test_without_hyperswarm_tickets_name_the_nats_servers(ca_settings: AuthSettings) -> None:
    cases = (
        ({"dht_bootstrap": (), "nats_url": "nats://10.0.0.1,nats://10.0.0.2"}, ("nats://10.0.0.1", "nats://10.0.0.2"), False),
        ({"public_nats_url": "tls://nats.example.org"}, ("tls://nats.example.org",), True),
        # Nobody outside finds that DHT.
        ({"public_nats_url": "wss://a.example/mesh", "ticket_bootstrap": ("127.0.0.1:49737",)}, ("wss://a.example/mesh",), False),
        ({"public_nats_url": "wss://a.example/mesh", "dht_bootstrap": ("public",)}, ("wss://a.example/mesh",), True),
        ({}, (), True),
    )
    for changed, expected, beside in cases:
        here = Surroundings()
        async with AuthService.open(msgspec.structs.replace(ca_settings, **changed), here.as_node()) as here.service:
            made = await here.ticket()
            found = tickets.parse(made.ticket)
            assert (found.nats, found.beside, bool(made.warnings)) == (expected, beside, False)


# --- node owners -----------------------------------------------------------------------------------------------------


async def node_owner(running_service: Surroundings, name: str = "olga") -> Credential:
    """Return a login of a user who lends machines."""
    user = await running_service.register(name)
    async with running_service.parts.store.transaction() as transaction:
        await running_service.parts.store.set_role(transaction, user.id, UserRole.NODE_OWNER)
    return (await running_service.login(name)).access_token


async def own_ticket(running_service: Surroundings, by: str, role: Role = Role.WORKER, **changed: Any) -> membership.NewTicket:
    return await running_service.ask(membership.create_ticket, membership.CreateTicket(role, **changed), by)


async def seen_tickets(running_service: Surroundings, by: str) -> set[str]:
    return {row.id for row in (await running_service.ask(membership.list_tickets, membership.ListTickets(), by)).tickets}


async def seen_nodes(running_service: Surroundings, by: str) -> set[str]:
    return {row.id for row in (await running_service.ask(membership.list_members, membership.ListMembers(), by)).members}


async def test_a_node_with_a_node_owners_ticket_waits_for_an_administrator(running_service: Surroundings) -> None:
    olga = await node_owner(running_service)
    made = await own_ticket(running_service, olga, needs_approval=False, labels={"zone": "eu"})
    assert (made.row.role, made.row.owner, made.row.needs_approval) == (Role.WORKER, "olga", True)
    machine = Newcomer()
    with pytest.raises(errors.ApprovalPending, match="an administrator has to approve this machine first"):
        await machine.enroll(running_service, made.ticket)
    with pytest.raises(errors.NotAllowed, match="olga is no administrator"):
        await running_service.ask(membership.approve_member, membership.ApproveMember(machine.key.id), olga)
    await running_service.administer(membership.approve_member, membership.ApproveMember(machine.key.id))
    assert (await machine.renew(running_service)).role is Role.WORKER
    assert not (await running_service.ticket()).row.needs_approval, "an administrator's own word"


async def test_limits_of_a_node_owners_ticket(running_service: Surroundings) -> None:
    olga = await node_owner(running_service)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        *(({"role": role}, "for workers") for role in (Role.CLIENT, Role.GATEWAY, Role.METRICS, Role.WEB)),
        ({"labels": {"trusted": "yes"}}, "label trusted"),
        ({"owner": "admin"}, "owner"),
        ({"owner": "nobody-there"}, "owner"),
        ({"active_most": 3}, "replicas"),
    )
    for changed, says in refused:
        with case(changed), pytest.raises(errors.NotAllowed, match=says):
            await own_ticket(running_service, olga, **changed)
    for own in ({"owner": "Olga"}, {"labels": {"zone": "eu"}}):
        assert (await own_ticket(running_service, olga, **own)).row.owner == "olga"


async def test_a_node_owner_sees_and_revokes_only_their_own_nodes(running_service: Surroundings) -> None:
    olga, otto = await node_owner(running_service, "olga"), await node_owner(running_service, "otto")
    olgas, ottos, house_ticket = (
        await own_ticket(running_service, olga),
        await own_ticket(running_service, otto),
        await running_service.ticket(uses=9),
    )
    assert await seen_tickets(running_service, olga) == {olgas.row.id}
    assert await seen_tickets(running_service, otto) == {ottos.row.id}
    machines = {}
    for name, made in (("olga", olgas), ("otto", ottos), ("admin", house_ticket)):
        machines[name] = Newcomer()
        try:
            await machines[name].enroll(running_service, made.ticket)
        except errors.ApprovalPending:
            await running_service.administer(membership.approve_member, membership.ApproveMember(machines[name].key.id))
    assert await seen_nodes(running_service, olga) == {machines["olga"].key.id}
    for others in (ottos.row.id, house_ticket.row.id):
        with pytest.raises(errors.NotFound, match="no ticket has an id that begins like this"):
            await running_service.ask(membership.revoke_ticket, membership.RevokeTicket(others), olga)
    for others_node in (machines["otto"].key.id, machines["admin"].key.id, running_service.id):
        with pytest.raises(errors.NotFound, match="no node has an id that begins like this"):
            await running_service.ask(membership.revoke_member, membership.RevokeMember(others_node), olga)
    assert (await running_service.ask(membership.revoke_ticket, membership.RevokeTicket(olgas.row.id), olga)).state is TicketState.REVOKED
    row = await running_service.ask(membership.revoke_member, membership.RevokeMember(machines["olga"].key.id[:12]), olga)
    assert row.state is MemberState.REVOKED
    assert running_service.trust.revoked == {machines["olga"].key.id}
    await machines["otto"].renew(running_service)


async def test_an_administrators_live_key_has_node_owner_rights(running_service: Surroundings) -> None:
    admin = await running_service.admin_token()
    everyday = await running_service.new_key(admin)
    all_of_it = await running_service.ask(auth.generate_api_key, auth.GenerateApiKey("all", kind=KeyKind.ADMIN), admin)
    with pytest.raises(errors.NotAllowed, match="for workers"):
        await own_ticket(running_service, everyday.api_key, Role.GATEWAY)
    assert (await own_ticket(running_service, everyday.api_key)).row.needs_approval
    assert running_service.id not in await seen_nodes(running_service, everyday.api_key)
    assert not (await own_ticket(running_service, all_of_it.api_key, Role.GATEWAY)).row.needs_approval
    assert running_service.id in await seen_nodes(running_service, all_of_it.api_key)


async def test_a_node_owners_valid_tickets_are_limited(running_service: Surroundings) -> None:
    olga = await node_owner(running_service)
    made = [await own_ticket(running_service, olga) for _ in range(MAX_OWN_TICKETS)]
    with pytest.raises(errors.BadRequest, match="valid tickets"):
        await own_ticket(running_service, olga)
    await running_service.ask(membership.revoke_ticket, membership.RevokeTicket(made[0].row.id), olga)
    await own_ticket(running_service, olga)


async def test_every_action_is_logged_once_in_the_platform_chain(running_service: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, olga = Recorded(), await node_owner(running_service)
    roster = cast("Any", running_service.dispatcher.find(membership.create_ticket.name, CLIENT).function).__self__
    monkeypatch.setattr(roster, "_trail", recorded)
    made, machine = await own_ticket(running_service, olga), Newcomer()
    with pytest.raises(errors.ApprovalPending, match="an administrator has to approve this machine first"):
        await machine.enroll(running_service, made.ticket)
    for _ in range(2):
        await running_service.administer(membership.approve_member, membership.ApproveMember(machine.key.id))
        await running_service.ask(membership.revoke_ticket, membership.RevokeTicket(made.row.id), olga)
    for _ in range(2):
        await running_service.ask(membership.revoke_member, membership.RevokeMember(machine.key.id), olga)
    assert [(act.action, act.target) for act in recorded.acts] == [
        ("ticket.create", made.row.id), ("node.approve", machine.key.id), ("ticket.revoke", made.row.id), ("node.revoke", machine.key.id),
    ]  # fmt: skip
    assert {act.tenant_id for act in recorded.acts} == {None}
    assert all(act.actor for act in recorded.acts)
    assert made.ticket not in repr(recorded.acts)


async def test_a_revocation_that_cannot_be_logged_does_not_happen(running_service: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Newcomer()
    await machine.enroll(running_service, (await running_service.ticket()).ticket)
    roster = cast("Any", running_service.dispatcher.find(membership.create_ticket.name, CLIENT).function).__self__

    async def full(transaction: object, act: AuditedAct) -> None:
        raise errors.Unavailable("the log is away")

    monkeypatch.setattr(roster, "_trail", Recorded())
    monkeypatch.setattr(roster._trail, "add", full)
    with pytest.raises(errors.Unavailable, match="the log is away"):
        await running_service.administer(membership.revoke_member, membership.RevokeMember(machine.key.id))
    await machine.renew(running_service)


async def test_the_audit_log_says_that_uses_are_unlimited(running_service: Surroundings, postgres_url: str) -> None:
    await running_service.ticket(uses=None, active_most=3)
    found = await by_hand.value(postgres_url, "SELECT string_agg(row_to_json(d)::text, chr(10)) FROM auth.audit_details d")
    assert "unlimited" in found


async def test_a_machine_reads_the_models_that_its_owner_may_read(running_service: Surroundings, postgres_url: str) -> None:
    async def describe(newcomer: Newcomer) -> membership.Machine:
        return await running_service.ask(membership.describe_machine, membership.DescribeMachine(newcomer.key.id))

    bob, group = await running_service.register("bob"), uuid4()
    machine = Newcomer()
    await machine.enroll(running_service, (await running_service.ticket(owner="bob")).ticket)
    assert await describe(machine) == membership.Machine(), "a user may not read models"
    await by_hand.run(postgres_url, "UPDATE auth.users SET role = 'developer' WHERE username = 'bob'")
    assert await describe(machine) == membership.Machine(tenants=(TenantId(bob.id),))
    await by_hand.run(postgres_url, f"INSERT INTO auth.organisations (id, name) VALUES ('{group}', 'acme')")
    await by_hand.run(postgres_url, f"INSERT INTO auth.organisation_members VALUES ('{group}', '{bob.id}', 'member')")
    assert await describe(machine) == membership.Machine(tenants=(TenantId(bob.id), TenantId(group)))
    await by_hand.run(postgres_url, "UPDATE auth.users SET is_active = false WHERE username = 'bob'")
    assert await describe(machine) == membership.Machine()
    operators, administrators = Newcomer(), Newcomer()
    await operators.enroll(running_service, (await running_service.ticket(active_most=3)).ticket)
    await administrators.enroll(running_service, (await running_service.ticket()).ticket)
    assert await describe(operators) == membership.Machine(reads_all=True)
    assert (await describe(administrators)).reads_all, "an administrator reads all models"
    await by_hand.run(postgres_url, "UPDATE auth.nodes SET state = 'pending'")
    assert await describe(operators) == membership.Machine()
    await by_hand.run(postgres_url, f"UPDATE auth.nodes SET state = 'revoked' WHERE id = '{operators.key.id}'")
    assert await describe(operators) == membership.Machine()


async def test_a_machine_without_a_row_is_the_operators_only_if_a_list_says_so(running_service: Surroundings) -> None:
    rpc = next(
        handler for handler in running_service.dispatcher.handlers if handler.method is membership.describe_machine
    ).function.__self__  # type: ignore[attr-defined]
    stranger = membership.DescribeMachine(Newcomer().key.id)
    assert rpc._logins is None
    assert (await running_service.ask(membership.describe_machine, stranger)).reads_all, (
        "NATS' static list lets in the operator's nodes alone"
    )
    rpc._logins = SimpleNamespace(is_enrolled=lambda _node: False)
    assert not (await running_service.ask(membership.describe_machine, stranger)).reads_all
    rpc._logins = SimpleNamespace(is_enrolled=lambda _node: True)
    assert (await running_service.ask(membership.describe_machine, stranger)).reads_all
