"""auth: joining the mesh with a ticket, renewing certificates, and managing tickets and nodes."""

from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.method import PEOPLE_OR_GATEWAY, Body, Method, Nothing
from shared.types import AuthorityId, MeshName, ModelOfWorker, Moment, NodeId, Role, TenantId

#: The roles that hold a certificate.
NODES = {Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT, Role.BACKUP}

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*\Z")]
Labels = Annotated[dict[Label, Label], msgspec.Meta(max_length=16)]


class TopicSecret(Body, frozen=True):
    """The secret of one epoch, from which topics are derived."""

    epoch: int
    secret: bytes


class Membership(Body, frozen=True, omit_defaults=False):
    """Everything that a node needs to know about its mesh. Useless without the node's own key."""

    mesh: MeshName
    role: Role
    #: shared.identity.certificates defines the formats of these.
    certificate: bytes
    revocations: bytes
    #: The CA key and, if there is one, its successor, signed by the first.
    authorities: tuple[AuthorityId, ...]
    succession: bytes
    #: The current epoch comes first.
    topics: tuple[TopicSecret, ...]
    #: DHT nodes as host:port, and blind relays by their raw keys. Empty means the public DHT.
    bootstrap: tuple[str, ...]
    relays: tuple[bytes, ...]
    #: Milliseconds since 1970 on auth's clock.
    now_ms: int


class EnrollNode(Body, frozen=True):
    """Both keys, the ticket's and the node's, sign ``tickets.use_text`` for the purpose "enroll"."""

    ticket_id: Annotated[str, msgspec.Meta(max_length=64)]
    ticket_signature: bytes
    node_signature: bytes
    #: The machine's name.
    name: Annotated[str, msgspec.Meta(max_length=100)] = ""
    labels: Labels = msgspec.field(default_factory=dict)
    #: What the machine is to become: a ticket for another role is refused and stays unused. None from a version before 0.4.
    role: Role | None = None


class AddSibling(Body, frozen=True):
    """The calling worker vouches for another worker process of its machine, whose key signs ``tickets.use_text`` for the purpose "sibling"
    with the caller in place of the ticket."""

    node: NodeId
    signature: bytes
    name: Annotated[str, msgspec.Meta(max_length=100)] = ""


class RenewCertificate(Body, frozen=True):
    """Renew the certificate of the key that the link proved, whether it is valid, expired or not yet issued."""


class CreateTicket(Body, frozen=True):
    """Without ``active_most``, ``ttl_seconds`` is at most 7 days."""

    role: Role
    #: None for any number, with ``active_most`` only.
    uses: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = 1
    ttl_seconds: Annotated[int, msgspec.Meta(ge=60, le=400 * 24 * 3600)] = 3600
    labels: Labels = msgspec.field(default_factory=dict)
    needs_approval: bool = False
    #: The user responsible for the nodes: name, address or id. The default is the caller, and with ``active_most`` nobody: they are the
    #: operator's.
    owner: str | None = None
    #: How many of its nodes may be active at once. A node that stops frees its place; a killed one's is free after a minute.
    active_most: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    #: Networks that its nodes may log in from, over NATS, at most a /8 of IPv4 or a /16 of IPv6 each; none for everywhere.
    networks: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=64)], ...], msgspec.Meta(max_length=32)] = ()
    #: For workers.
    model: ModelOfWorker = ""
    #: For workers: whether administrators may put models on them. The default is yes if the caller is the owner.
    accept_models: bool | None = None
    #: The machine is in another network than the mesh, so private addresses don't help it.
    elsewhere: bool = False


class TicketState(StrEnum):
    GOOD = "good"
    USED_UP = "used_up"
    EXPIRED = "expired"
    REVOKED = "revoked"


class TicketRow(Body, frozen=True, omit_defaults=False):
    id: str
    role: Role
    state: TicketState
    #: None for any number.
    uses: int | None
    used: int
    labels: dict[str, str]
    needs_approval: bool
    owner: str
    created_at: Moment
    expires_at: Moment
    active_most: int | None = None
    active: int = 0
    networks: tuple[str, ...] = ()
    model: str = ""
    accept_models: bool = True
    #: False: it is done, but the recovery log on disk lacks it for now.
    logged: bool = True


class NewTicket(Body, frozen=True, omit_defaults=False):
    """The only message that contains a whole ticket."""

    ticket: str
    row: TicketRow
    #: Such as: other machines cannot reach a DHT on loopback.
    warnings: tuple[str, ...] = ()
    #: For a worker or a client: the line that installs it and uses the ticket; empty if it wouldn't work.
    install: str = ""
    #: Why there is no such line, and what to do.
    install_needs: str = ""


class ListTickets(Body, frozen=True):
    pass


class Tickets(Body, frozen=True):
    tickets: tuple[TicketRow, ...]


class RevokeTicket(Body, frozen=True):
    #: The ticket's id or a unique prefix.
    id: str
    #: Also revoke the nodes that joined with it.
    with_nodes: bool = False


class RotateTicket(Body, frozen=True):
    """Replace a ticket by one with equal rights. The old one works for 24 more hours."""

    #: The ticket's id or a unique prefix.
    id: str


class CheckTicket(Body, frozen=True):
    """Ask whether a ticket is still usable, without using it. Its id is no secret; a stranger doesn't know it."""

    id: Annotated[str, msgspec.Meta(max_length=64)]


class LeaveNode(Body, frozen=True):
    """The calling node stops, and frees the place of its ticket."""

    #: It will not come back: revoke it. Release 0.3.0 only frees its place.
    for_good: bool = False


class MemberState(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    REVOKED = "revoked"


class Member(Body, frozen=True, omit_defaults=False):
    """A node known to auth."""

    id: NodeId
    role: Role
    state: MemberState
    name: str
    owner: str
    labels: dict[str, str]
    joined_at: Moment
    #: When its certificate was last renewed, and when it expires.
    renewed_at: Moment | None
    certified_until: Moment | None
    revoked_at: Moment | None
    reason: str
    #: False: it is done, but the recovery log on disk lacks it for now.
    logged: bool = True
    #: The first worker of its machine, unless it is that.
    machine: NodeId | None = None


class ListMembers(Body, frozen=True):
    pass


class Members(Body, frozen=True):
    members: tuple[Member, ...]


class ApproveMember(Body, frozen=True):
    #: The node's id or a unique prefix; likewise in ``RevokeMember``.
    id: str


class RevokeMember(Body, frozen=True):
    id: str
    reason: Annotated[str, msgspec.Meta(max_length=200)] = ""


class ListLoginRefusals(Body, frozen=True):
    pass


class LoginRefusal(Body, frozen=True, omit_defaults=False):
    """A login at a NATS server that auth refused."""

    #: The key that the client claimed; any text.
    node: str
    #: "HTTPS" if only a proxy knows it.
    address: str
    reason: str
    at: Moment


class LoginRefusals(Body, frozen=True):
    """The newest come first."""

    refusals: tuple[LoginRefusal, ...]


class DescribeMachine(Body, frozen=True):
    """Whose models a machine may read."""

    node: NodeId


class Machine(Body, frozen=True):
    #: It is the operator's, or of someone who reads the models of all.
    reads_all: bool = False
    #: Accounts and organizations in which its owner may read models.
    tenants: tuple[TenantId, ...] = ()


describe_machine = Method("auth.describeMachine", DescribeMachine, Machine, callers={Role.GATEWAY})
enroll_node = Method("auth.enrollNode", EnrollNode, Membership, callers={Role.NEWCOMER})
renew_certificate = Method("auth.renewCertificate", RenewCertificate, Membership, callers={*NODES, Role.NEWCOMER})
add_sibling = Method("auth.addSibling", AddSibling, Membership, callers={Role.WORKER, Role.NEWCOMER})
create_ticket = Method("auth.createTicket", CreateTicket, NewTicket, callers=PEOPLE_OR_GATEWAY)
list_tickets = Method("auth.listTickets", ListTickets, Tickets, callers=PEOPLE_OR_GATEWAY)
rotate_ticket = Method("auth.rotateTicket", RotateTicket, NewTicket, callers=PEOPLE_OR_GATEWAY)
check_ticket = Method("auth.checkTicket", CheckTicket, Nothing, callers={Role.WEB})
leave_node = Method("auth.leaveNode", LeaveNode, Nothing, callers={*NODES, Role.NEWCOMER})
revoke_ticket = Method("auth.revokeTicket", RevokeTicket, TicketRow, callers=PEOPLE_OR_GATEWAY)
list_members = Method("auth.listNodes", ListMembers, Members, callers=PEOPLE_OR_GATEWAY)
approve_member = Method("auth.approveNode", ApproveMember, Member, callers=PEOPLE_OR_GATEWAY)
list_login_refusals = Method("auth.listLoginRefusals", ListLoginRefusals, LoginRefusals, callers=PEOPLE_OR_GATEWAY)
revoke_member = Method("auth.revokeNode", RevokeMember, Member, callers=PEOPLE_OR_GATEWAY)
