"""auth, for nodes: joining with a ticket, renewing a certificate, and what an administrator does with tickets and nodes."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.method import Body, Method
from shared.types import AuthorityId, MeshName, NodeId, Role

#: Who may hold a certificate, and so renew one.
NODES = {Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT}
PEOPLE = {Role.CLIENT, Role.WEB, Role.OPERATOR}

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
Labels = Annotated[dict[Label, Label], msgspec.Meta(max_length=16)]


class TopicSecret(Body, frozen=True):
    """What the meeting places of one epoch are derived from; the current one first."""

    epoch: int
    secret: bytes


class Membership(Body, frozen=True, omit_defaults=False):
    """All that a node has to know of its mesh; nothing in it is of use without the node's own key."""

    mesh: MeshName
    role: Role
    #: shared.identity.certificates has the forms of these three.
    certificate: bytes
    revocations: bytes
    #: The CA key of now and, if there is one, its successor with the word of the first for it.
    authorities: tuple[AuthorityId, ...]
    succession: bytes
    topics: tuple[TopicSecret, ...]
    #: DHT nodes as host:port at present, and blind relays by their raw keys; none means the public DHT.
    bootstrap: tuple[str, ...]
    relays: tuple[bytes, ...]
    #: Milliseconds since 1970 by the clock of auth.
    now_ms: int


class EnrollNode(Body, frozen=True):
    """Both signatures are of ``tickets.use_text``, under the purpose "enroll": the ticket's key, and the node's own."""

    ticket_id: Annotated[str, msgspec.Meta(max_length=64)]
    ticket_signature: bytes
    node_signature: bytes
    #: What the machine is called, for people.
    name: Annotated[str, msgspec.Meta(max_length=100)] = ""
    labels: Labels = msgspec.field(default_factory=dict)


class RenewCertificate(Body, frozen=True):
    """For the key that the link has proved, whether its certificate is good, expired, or not yet made."""


class CreateTicket(Body, frozen=True):
    """For an administrator. ``ttl_seconds`` is at most 7 days."""

    role: Role
    uses: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    ttl_seconds: Annotated[int, msgspec.Meta(ge=60, le=7 * 24 * 3600)] = 3600
    labels: Labels = msgspec.field(default_factory=dict)
    needs_approval: bool = False
    #: The user who will answer for the nodes: name, address or id; without it whoever makes the ticket.
    owner: str | None = None


class TicketState(StrEnum):
    GOOD = "good"
    USED_UP = "used_up"
    EXPIRED = "expired"
    REVOKED = "revoked"


class TicketRow(Body, frozen=True, omit_defaults=False):
    """What may be shown of a ticket at any time."""

    id: str
    role: Role
    state: TicketState
    uses: int
    used: int
    labels: dict[str, str]
    needs_approval: bool
    owner: str
    created_at: datetime
    expires_at: datetime


class NewTicket(Body, frozen=True, omit_defaults=False):
    """The only message that ever carries a whole ticket."""

    ticket: str
    row: TicketRow
    #: Such as: machines elsewhere cannot reach a DHT on loopback.
    warnings: tuple[str, ...] = ()


class ListTickets(Body, frozen=True):
    pass


class Tickets(Body, frozen=True):
    tickets: tuple[TicketRow, ...]


class RevokeTicket(Body, frozen=True):
    #: The ticket's id, or a beginning of it that only one has.
    id: str


class MemberState(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    REVOKED = "revoked"


class Member(Body, frozen=True, omit_defaults=False):
    """A node that auth knows."""

    id: NodeId
    role: Role
    state: MemberState
    name: str
    owner: str
    labels: dict[str, str]
    joined_at: datetime
    #: When its certificate was last renewed, and until when that one is good.
    renewed_at: datetime | None
    certified_until: datetime | None
    revoked_at: datetime | None
    reason: str


class ListMembers(Body, frozen=True):
    pass


class Members(Body, frozen=True):
    members: tuple[Member, ...]


class ApproveMember(Body, frozen=True):
    #: The node's id, or a beginning of it that only one has; so too below.
    id: str


class RevokeMember(Body, frozen=True):
    id: str
    reason: Annotated[str, msgspec.Meta(max_length=200)] = ""


enroll_node = Method("auth.enrollNode", EnrollNode, Membership, callers={Role.NEWCOMER})
renew_certificate = Method("auth.renewCertificate", RenewCertificate, Membership, callers={*NODES, Role.NEWCOMER})
create_ticket = Method("auth.createTicket", CreateTicket, NewTicket, callers=PEOPLE)
list_tickets = Method("auth.listTickets", ListTickets, Tickets, callers=PEOPLE)
revoke_ticket = Method("auth.revokeTicket", RevokeTicket, TicketRow, callers=PEOPLE)
list_members = Method("auth.listNodes", ListMembers, Members, callers=PEOPLE)
approve_member = Method("auth.approveNode", ApproveMember, Member, callers=PEOPLE)
revoke_member = Method("auth.revokeNode", RevokeMember, Member, callers=PEOPLE)
