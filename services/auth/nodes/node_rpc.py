"""RPC methods about nodes and tickets: join and renew, and create, list, approve and revoke."""

from dataclasses import replace
from datetime import timedelta

from services.auth import audit_records, roles
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.nodes import enrollment_rules
from services.auth.nodes.enrollment_rules import InstallLine, KnownNode, KnownTicket
from services.auth.nodes.mesh_ca import MeshCa
from services.auth.nodes.nats_logins import NatsLogins
from services.auth.nodes.node_store import NodeStore
from shared import errors
from shared.api import membership
from shared.api.auth import Principal
from shared.api.membership import Member, Membership, MemberState, TicketRow
from shared.api.method import Nothing
from shared.identity import node_keys, tickets
from shared.identity.certificates import Subject
from shared.identity.tickets import Ticket
from shared.rpc import RpcCall, serves
from shared.telemetry import logs, version
from shared.types import NodeId, Peer, Role, UserId

_log = logs.get(part="auth")


def _running(ca: MeshCa | None) -> MeshCa:
    if ca is None:
        raise errors.Unavailable("this mesh has no CA, so it has no certificates and no tickets", hint="set MESH_CA_KEY_FILE at auth")
    return ca


class EnrollmentRpc(AuthHandlers):
    """For nodes, which join with a ticket and renew their certificate with their key."""

    def __init__(self, parts: Dependencies, members: NodeStore, ca: MeshCa | None, logins: NatsLogins | None) -> None:
        super().__init__(parts)
        self._members = members
        self._ca = ca
        self._logins = logins

    @serves(membership.enroll_node)
    async def enroll_node(self, request: membership.EnrollNode, call: RpcCall) -> Membership:
        ca = _running(self._ca)
        try:
            node = await self._enrol(ca, request, call.caller)
        except (errors.BadTicket, errors.NodeRevoked, errors.BadRequest) as error:
            self._node.metrics.auth_failures.labels(reason="bad_ticket").inc()
            _log.warning("ticket refused", ticket_id=request.ticket_id, node_id=call.caller.node, why=error.message)
            raise
        return await self._admit(ca, node, call.caller)

    @serves(membership.renew_certificate)
    async def renew_certificate(self, request: membership.RenewCertificate, call: RpcCall) -> Membership:
        ca, caller = _running(self._ca), call.caller
        # A process of a client profile renews for the profile; its delegation proves that the profile's key was here just now.
        subject = caller.certified or caller.node
        if self._is_vouched_for(caller, subject):
            await self._members.ensure_vouched(subject, caller.role)
        return await self._admit(ca, await self._members.find_node(subject), caller)

    @serves(membership.add_sibling)
    async def add_sibling(self, request: membership.AddSibling, call: RpcCall) -> Membership:
        ca, machine, newcomer = _running(self._ca), call.caller.node, request.node
        text = tickets.use_text(machine, newcomer, self._node.id, call.caller.channel)
        if not node_keys.verify(newcomer, "sibling", text, request.signature):
            raise errors.BadRequest.of("signature", "is not the new node's")
        enrollment_rules.check_may_stay(await self._members.find_node(machine), ca.now())
        async with self._members.transaction() as transaction:
            if not await self._members.add_sibling(transaction, machine, newcomer, enrollment_rules.printable(request.name)):
                raise enrollment_rules.no_sibling()
            act = audit_records.of_mesh("node.enroll", None, target=newcomer, machine=machine)
            await self._trail.add(transaction, act)
        _log.info("node enrolled", node_id=newcomer, machine=machine)
        return await self._admit(ca, await self._members.find_node(newcomer), call.caller)

    @serves(membership.leave_node)
    async def leave_node(self, request: membership.LeaveNode, call: RpcCall) -> Nothing:
        node = await self._members.find_node(call.caller.node) if request.for_good else None
        if node is None:
            await self._members.note_left(call.caller.node)
            return Nothing()
        # Nobody else has its key, so this needs no permission.
        enrollment_rules.check_revocable(node)
        async with self._members.transaction() as transaction:
            if await self._members.revoke(transaction, node.id, "it was uninstalled"):
                await self._trail.add(transaction, audit_records.of_mesh("node.revoke", None, target=node.id, role=node.role))
                _log.info("node uninstalled", node_id=node.id, role=node.role)
        await _running(self._ca).refresh()
        return Nothing()

    @serves(membership.describe_machine)
    async def describe_machine(self, request: membership.DescribeMachine, call: RpcCall) -> membership.Machine:
        node = await self._members.find_node(request.node)
        if node is None:
            # A static list of NATS users or the operator's may say what it is before it has a certificate.
            return membership.Machine(reads_all=self._logins is None or self._logins.is_enrolled(request.node))
        if node.state is not MemberState.ACTIVE:
            return membership.Machine()
        if node.owner is None:
            return membership.Machine(reads_all=True)
        owner = await self._members.find_owner(node.owner)
        return membership.Machine() if owner is None else enrollment_rules.machine_of(node.owner, *owner)

    @serves(membership.check_ticket)
    async def check_ticket(self, request: membership.CheckTicket, call: RpcCall) -> Nothing:
        ca, ticket = _running(self._ca), await self._members.find_ticket(request.id)
        if ticket is None:
            raise enrollment_rules.unknown_ticket()
        enrollment_rules.check_usable(ticket, ca.now())
        return Nothing()

    def _is_vouched_for(self, caller: Peer, subject: NodeId) -> bool:
        """Return whether a static list of NATS users or the operator's says what the node is. A node that joined with a ticket must have a
        row: its owner and labels are nowhere else, and a node without an owner is the operator's."""
        if caller.channel or caller.role is Role.NEWCOMER:
            return False
        return self._logins is None or self._logins.is_enrolled(subject)

    async def _enrol(self, ca: MeshCa, request: membership.EnrollNode, newcomer: Peer) -> KnownNode | None:
        text = tickets.use_text(request.ticket_id, newcomer.node, self._node.id, newcomer.channel)
        ticket = await self._members.find_ticket(request.ticket_id)
        if ticket is None:
            raise enrollment_rules.unknown_ticket()
        if ticket.networks and (newcomer.channel or self._logins is None or not await self._logins.came_with(newcomer.node, ticket.id)):
            raise errors.BadTicket("the ticket is bound to networks", hint="join with it over NATS, from one of its networks")
        enrollment_rules.check_signed(
            ticket, text, by_ticket=request.ticket_signature, newcomer=newcomer.node, by_newcomer=request.node_signature
        )
        enrollment_rules.check_wanted(ticket, request.role)
        labels, name = enrollment_rules.join_labels(ticket, request.labels), enrollment_rules.printable(request.name)
        act = audit_records.of_mesh("node.enroll", None, target=newcomer.node, ticket=ticket.id, owner=str(ticket.owner or ""))
        used = await self._members.use_ticket(
            ticket.id, newcomer.node, name=name, labels=labels, now=ca.now(), also=lambda transaction: self._trail.add(transaction, act)
        )
        node = await self._members.find_node(newcomer.node)
        if used and node is not None:
            _log.info(
                "node enrolled", node_id=node.id, role=node.role, state=node.state, ticket_id=ticket.id, owner=str(ticket.owner or "")
            )
        if not used:
            await self._check_used_before(ca, ticket, node)
        return node

    async def _check_used_before(self, ca: MeshCa, ticket: KnownTicket, node: KnownNode | None) -> None:
        """Accept a ticket that was not used now if this node has already joined with it, but the reply was lost."""
        if node is not None and node.state is MemberState.REVOKED:
            raise enrollment_rules.revoked(node)
        if node is not None and node.ticket_id == ticket.id:
            return
        if node is not None and node.role is Role.AUTH:
            raise errors.BadRequest("the key of an auth service cannot join as something else", hint="create a key for this node")
        newer = await self._members.find_ticket(ticket.id)
        enrollment_rules.check_usable(ticket if newer is None else newer, ca.now())
        raise errors.Unavailable("the ticket could not be used right now", hint="try again", retry_after_seconds=1)

    async def _admit(self, ca: MeshCa, node: KnownNode | None, caller: Peer) -> Membership:
        node = enrollment_rules.check_may_stay(node, ca.now())
        certificate = await ca.certify(node)
        _log.info("node certified", node_id=node.id, role=node.role)
        is_by_ticket = node.ticket_id is not None and node.role in (Role.WORKER, Role.CLIENT)
        return ca.membership(node, certificate, outside=bool(caller.channel) or is_by_ticket)


class NodeAdminRpc(AuthHandlers):
    """Administrators may do all of it. A node owner sees only their own nodes and tickets, which are for workers only.

    A node that joins with a node owner's ticket waits for an administrator's approval, because its owner can see the prompts that it runs.
    """

    def __init__(self, parts: Dependencies, members: NodeStore, ca: MeshCa | None, logins: NatsLogins | None) -> None:
        super().__init__(parts)
        self._members = members
        self._ca = ca
        self._logins = logins

    @serves(membership.create_ticket)
    async def create_ticket(self, request: membership.CreateTicket, call: RpcCall) -> membership.NewTicket:
        ca, caller = _running(self._ca), call.principal
        enrollment_rules.check_role(request.role)
        enrollment_rules.check_request(request)
        if not (ca.addresses.swarm_is_on or ca.addresses.nats):
            raise errors.Unavailable(
                "tickets need Hyperswarm, which is disabled, or the address of NATS", hint="set DHT_BOOTSTRAP or PUBLIC_NATS_URL at auth"
            )
        by_admin = roles.is_admin(caller)
        owner_id: UserId | None = caller.user_id
        owner_name = caller.username
        if not by_admin:
            enrollment_rules.check_own_ticket(request, caller.user_id, owner_name)
            enrollment_rules.check_own_count(await self._members.count_good_tickets(caller.user_id))
        elif request.owner is not None:
            owner = await self._store.get_user_called(request.owner)
            owner_id, owner_name = owner.id, owner.username
        elif request.active_most is not None:
            owner_id, owner_name = None, ""
        accepts = owner_id == caller.user_id if request.accept_models is None else request.accept_models
        ticket, now = self._new_ticket(ca, request.role, request.model, accept_models=accepts), ca.now()
        # Labels that don't fit into a certificate are refused now, and not when the ticket is used.
        ca.keys.certify(Subject(ticket.key.id, request.role, str(owner_id or ""), tuple(request.labels.items())), now.timestamp())
        known = KnownTicket(
            id=ticket.id,
            public_key=ticket.key.id,
            role=request.role,
            owner=owner_id,
            owner_name=owner_name,
            labels=request.labels,
            needs_approval=request.needs_approval or not by_admin,
            uses=request.uses,
            used=0,
            created_at=now,
            expires_at=now + timedelta(seconds=request.ttl_seconds),
            revoked_at=None,
            active_most=request.active_most,
            networks=request.networks,
            model=request.model,
            accept_models=accepts,
        )
        return await self._add_ticket(ca, ticket, known, caller, elsewhere=request.elsewhere)

    def _new_ticket(self, ca: MeshCa, role: Role, model: str, *, accept_models: bool) -> Ticket:
        places = ca.addresses
        return tickets.new(
            ca.keys.public, self._node.mesh, bootstrap=places.outside, relays=places.relays, nats=places.nats, model=model,
            accept_models=accept_models if role is Role.WORKER else None, beside=places.swarm_is_met_outside,
        )  # fmt: skip

    async def _add_ticket(
        self, ca: MeshCa, ticket: Ticket, known: KnownTicket, caller: Principal, *, replaces: str | None = None, elsewhere: bool = False
    ) -> membership.NewTicket:
        async with self._members.transaction() as transaction:
            await self._members.add_ticket(transaction, known)
            if replaces is not None:
                await self._members.end_ticket_soon(transaction, replaces, enrollment_rules.ROTATION)
            act = audit_records.of_mesh(
                "ticket.create", caller, target=known.id, role=known.role, uses=str(known.uses or "unlimited"), owner=str(known.owner or "")
            )
            await self._trail.add(transaction, act)
        _log.info("ticket created", ticket_id=known.id, role=known.role, uses=known.uses, by=str(caller.user_id))
        text, page, pin = tickets.render(ticket), self._settings.page(""), self._settings.public_key_pin
        warnings = enrollment_rules.warnings(ticket, elsewhere=elsewhere)
        install = InstallLine("", "")
        if known.role in (Role.WORKER, Role.CLIENT):
            release = version.release_url()
            install = enrollment_rules.plan_install(page, pin, release, known.role, text, elsewhere=elsewhere, is_reached=not warnings)
        return membership.NewTicket(text, enrollment_rules.ticket_row(known, ca.now()), warnings, install.line, install.needs)

    @serves(membership.rotate_ticket)
    async def rotate_ticket(self, request: membership.RotateTicket, call: RpcCall) -> membership.NewTicket:
        ca = _running(self._ca)
        old, now = await self._members.get_ticket_called(request.id, None), ca.now()
        if old.revoked_at is not None or old.expires_at <= now:
            raise errors.BadRequest(f"the ticket {old.id} no longer works", hint="create a new one: aicli admin tickets create")
        ticket = self._new_ticket(ca, old.role, old.model, accept_models=old.accept_models)
        lasts = old.expires_at - old.created_at
        fresh = replace(old, id=ticket.id, public_key=ticket.key.id, used=0, active=0, created_at=now, expires_at=now + lasts)
        return await self._add_ticket(ca, ticket, fresh, call.principal, replaces=old.id)

    @serves(membership.list_tickets)
    async def list_tickets(self, request: membership.ListTickets, call: RpcCall) -> membership.Tickets:
        ca = _running(self._ca)
        found = await self._members.list_tickets(_whose(call.principal))
        return membership.Tickets(tuple(enrollment_rules.ticket_row(ticket, ca.now()) for ticket in found))

    @serves(membership.revoke_ticket)
    async def revoke_ticket(self, request: membership.RevokeTicket, call: RpcCall) -> TicketRow:
        ca, caller = _running(self._ca), call.principal
        ticket = await self._members.get_ticket_called(request.id, _whose(caller))
        async with self._members.transaction() as transaction:
            if await self._members.revoke_ticket(transaction, ticket.id):
                await self._trail.add(transaction, audit_records.of_mesh("ticket.revoke", caller, target=ticket.id))
                _log.info("ticket revoked", ticket_id=ticket.id, by=str(caller.user_id))
            if request.with_nodes:
                revoked = await self._members.revoke_nodes_of(transaction, ticket.id)
                for node, role in revoked.items():
                    await self._trail.add(transaction, audit_records.of_mesh("node.revoke", caller, target=node, role=role))
        if request.with_nodes:
            await ca.refresh()
        return enrollment_rules.ticket_row(await self._members.get_ticket_called(ticket.id, None), ca.now())

    @serves(membership.list_members)
    async def list_members(self, request: membership.ListMembers, call: RpcCall) -> membership.Members:
        _running(self._ca)
        return membership.Members(
            tuple(enrollment_rules.member_row(node) for node in await self._members.list_nodes(_whose(call.principal)))
        )

    @serves(membership.list_login_refusals)
    async def list_login_refusals(self, request: membership.ListLoginRefusals, call: RpcCall) -> membership.LoginRefusals:
        if self._logins is None:
            raise errors.Unavailable(
                "auth does not decide about NATS logins here", hint="set NATS_ISSUER_KEY_FILE at auth, or read the NATS server's log"
            )
        return await self._logins.refusals()

    @serves(membership.approve_member)
    async def approve_member(self, request: membership.ApproveMember, call: RpcCall) -> Member:
        _running(self._ca)
        node = await self._members.get_node_called(request.id, None)
        async with self._members.transaction() as transaction:
            if await self._members.approve(transaction, node.id):
                await self._trail.add(transaction, audit_records.of_mesh("node.approve", call.principal, target=node.id))
                _log.info("node approved", node_id=node.id, by=str(call.principal.user_id))
        node = await self._members.get_node_called(node.id, None)
        if node.state is MemberState.REVOKED:
            raise enrollment_rules.revoked(node)
        return enrollment_rules.member_row(node)

    @serves(membership.revoke_member)
    async def revoke_member(self, request: membership.RevokeMember, call: RpcCall) -> Member:
        ca, caller = _running(self._ca), call.principal
        node = await self._members.get_node_called(request.id, _whose(caller))
        enrollment_rules.check_revocable(node)
        async with self._members.transaction() as transaction:
            if await self._members.revoke(transaction, node.id, enrollment_rules.printable(request.reason)):
                await self._trail.add(transaction, audit_records.of_mesh("node.revoke", caller, target=node.id, role=node.role))
                _log.warning("node revoked", node_id=node.id, role=node.role, by=str(caller.user_id))
        # Signed before the caller gets an answer; PostgreSQL notifies the other replicas.
        await ca.refresh()
        return enrollment_rules.member_row(await self._members.get_node_called(node.id, None))


def _whose(caller: Principal) -> UserId | None:
    return None if roles.is_admin(caller) else caller.user_id
