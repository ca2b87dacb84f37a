"""An auth that admits nodes by the real rules of tickets and certificates, with its tables in memory. For tests of enrollment."""

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from shared import errors, rpc
from shared.api import membership as contract
from shared.api.gateway import Check
from shared.api.membership import Membership, TopicSecret
from shared.api.method import Nothing
from shared.identity import certificates, node_keys, tickets
from shared.identity.certificates import Subject
from shared.identity.node_keys import Authority
from shared.identity.tickets import Ticket
from shared.node.member import Node
from shared.protocol import topics
from shared.types import NodeId, Role
from tests.testnet import MESH


@dataclass
class _Offer:
    key: NodeId
    role: Role
    uses: int
    needs_approval: bool


@dataclass
class FrontDoor:
    """Set ``ca`` once it runs."""

    role: ClassVar[Role] = Role.AUTH

    node: Node
    ca: Authority = field(default_factory=lambda: Authority(node_keys.new_authority_seed()))
    bootstrap: tuple[str, ...] = ()
    offers: dict[str, _Offer] = field(default_factory=dict)
    #: Node -> role; nodes that wait for approval are in ``pending`` too.
    members: dict[NodeId, Role] = field(default_factory=dict)
    pending: set[NodeId] = field(default_factory=set)
    revoked: set[NodeId] = field(default_factory=set)
    #: How often each method was called.
    asked: list[str] = field(default_factory=list)
    #: Another node to put into the next certificates, and an offset of their time, to simulate an auth that errs.
    certify_instead: NodeId | None = None
    clock_offset_seconds: float = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: object, node: Node) -> AsyncIterator["FrontDoor"]:
        yield cls(node)

    async def checks(self) -> tuple[Check, ...]:
        return ()

    def asgi(self) -> None:
        return None

    def ticket(self, role: Role, *, uses: int = 1, needs_approval: bool = False) -> Ticket:
        seed = secrets.token_bytes(32)
        ticket = Ticket(1, secrets.token_hex(4), seed, node_keys.raw_of(self.ca.id), MESH, self.bootstrap)
        self.offers[ticket.id] = _Offer(ticket.key.id, role, uses, needs_approval)
        return ticket

    @rpc.serves(contract.enroll_node)
    async def enroll(self, request: contract.EnrollNode, call: rpc.RpcCall) -> Membership:
        self.asked.append("enrollNode")
        node = call.caller.node
        text = tickets.use_text(request.ticket_id, node, self.node.id, call.caller.channel)
        offer = self.offers.get(request.ticket_id)
        if offer is None or not node_keys.verify(offer.key, "enroll", text, request.ticket_signature):
            raise errors.BadTicket("the ticket is unknown", hint="ask for a new one")
        if not node_keys.verify(node, "enroll", text, request.node_signature):
            raise errors.BadTicket("the node's signature is wrong")
        if request.role not in (None, offer.role):
            raise errors.BadTicket(f"this ticket is for a {offer.role}, not a {request.role}", hint=f"ask for a {request.role} ticket")
        if node in self.revoked:
            raise errors.NodeRevoked("this node was revoked")
        if node not in self.members:
            if offer.uses == 0:
                raise errors.BadTicket("the ticket is used up", hint="ask for a new one")
            offer.uses -= 1
            self.members[node] = offer.role
            if offer.needs_approval:
                self.pending.add(node)
        return self._admit(node)

    @rpc.serves(contract.renew_certificate)
    async def renew(self, request: contract.RenewCertificate, call: rpc.RpcCall) -> Membership:
        self.asked.append("renewCertificate")
        if call.caller.node in self.revoked:
            raise errors.NodeRevoked("this node was revoked")
        return self._admit(call.caller.node)

    @rpc.serves(contract.leave_node)
    async def leave(self, request: contract.LeaveNode, call: rpc.RpcCall) -> Nothing:
        self.asked.append("leaveNode")
        if request.for_good:
            self.revoked.add(call.caller.node)
            # As auth does: that closes the link before the answer is sent.
            self.node.trust.take_list(self._list())
        return Nothing()

    def _admit(self, node: NodeId) -> Membership:
        if node not in self.members:
            raise errors.NotCertified("this node is not a member")
        if node in self.pending:
            raise errors.ApprovalPending("an administrator has to approve this node")
        role, now = self.members[node], time.time() + self.clock_offset_seconds
        subject = Subject(self.certify_instead or node, role)
        secrets_of_topics = (TopicSecret(1, topics.epoch_secret(self.ca.raw_seed, 1)),)
        return Membership(
            MESH,
            role,
            certificates.issue(self.ca, subject, now),
            self._list(),
            (self.ca.id,),
            b"",
            secrets_of_topics,
            self.bootstrap,
            (),
            int(now * 1000),
        )

    def _list(self) -> bytes:
        now = time.time() + self.clock_offset_seconds
        return certificates.issue_list(self.ca, 1 + len(self.revoked), 1, tuple(self.revoked), now)
