"""RPC methods for nodes to join the mesh with a ticket, and to renew their certificate with their key."""

from services.auth import audit_records
from services.auth.dependencies import Dependencies
from services.auth.nodes import enrollment_rules
from services.auth.nodes.enrollment_rules import KnownNode, KnownTicket
from services.auth.nodes.mesh_ca import MeshCa
from services.auth.nodes.node_store import NodeStore
from shared import errors
from shared.api import membership
from shared.api.membership import Membership, MemberState
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import Peer, Role

_log = logs.get(part="auth")


def running(ca: MeshCa | None) -> MeshCa:
    """Raises Unavailable if this auth service is no CA."""
    if ca is None:
        raise errors.Unavailable("this mesh has no CA, so it has no certificates and no tickets", hint="set MESH_CA_KEY_FILE at auth")
    return ca


class EnrollmentRpc:
    def __init__(self, parts: Dependencies, members: NodeStore, ca: MeshCa | None) -> None:
        self._node = parts.node
        self._trail = parts.trail
        self._members = members
        self._ca = ca

    @serves(membership.enroll_node)
    async def enroll_node(self, request: membership.EnrollNode, call: RpcCall) -> Membership:
        ca = running(self._ca)
        try:
            node = await self._enrol(ca, request, call.caller)
        except (errors.BadTicket, errors.NodeRevoked, errors.BadRequest) as error:
            self._node.metrics.auth_failures.labels(reason="bad_ticket").inc()
            _log.warning("ticket refused", ticket_id=request.ticket_id, node_id=call.caller.node, why=error.message)
            raise
        return await self._admit(ca, node, call.caller)

    @serves(membership.renew_certificate)
    async def renew_certificate(self, request: membership.RenewCertificate, call: RpcCall) -> Membership:
        ca, caller = running(self._ca), call.caller
        # A process of a client profile renews for the profile; its delegation proves that the profile's key was here just now.
        subject = caller.certified or caller.node
        if not caller.channel and caller.role is not Role.NEWCOMER:
            await self._members.ensure_vouched(subject, caller.role)
        return await self._admit(ca, await self._members.find_node(subject), caller)

    async def _enrol(self, ca: MeshCa, request: membership.EnrollNode, newcomer: Peer) -> KnownNode | None:
        text = enrollment_rules.signed_text(request.ticket_id, newcomer.node, self._node.id, newcomer.channel)
        ticket = await self._members.find_ticket(request.ticket_id)
        if ticket is None:
            raise enrollment_rules.unknown_ticket()
        enrollment_rules.check_signed(
            ticket, text, by_ticket=request.ticket_signature, newcomer=newcomer.node, by_newcomer=request.node_signature
        )
        labels, name = enrollment_rules.join_labels(ticket, request.labels), enrollment_rules.printable(request.name)
        act = audit_records.of_mesh("node.enroll", None, target=newcomer.node, ticket=ticket.id, owner=str(ticket.owner))
        used = await self._members.use_ticket(
            ticket.id, newcomer.node, name=name, labels=labels, now=ca.now(), also=lambda transaction: self._trail.add(transaction, act)
        )
        node = await self._members.find_node(newcomer.node)
        if used and node is not None:
            _log.info("node enrolled", node_id=node.id, role=node.role, state=node.state, ticket_id=ticket.id, owner=str(ticket.owner))
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
        return ca.membership(node, certificate, outside=bool(caller.channel))
