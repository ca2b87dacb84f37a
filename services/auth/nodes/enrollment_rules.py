"""Rules of tickets and nodes: who may join and who may stay. Pure; the caller brings rows and the time."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from services.auth import name_rules
from shared import access_table, addresses, amounts, errors
from shared.api.membership import CreateTicket, Machine, Member, MemberState, TicketRow, TicketState
from shared.identity import install_line, node_keys
from shared.identity.certificates import MACHINE_LABEL, MAX_LABELS, Subject
from shared.identity.tickets import Ticket
from shared.types import NodeId, Permission, Role, TenantId, UserId, UserRole

#: A node that was silent for this long needs a new ticket; laptops may be off for weeks.
IDLE = timedelta(days=30)
IDLE_CLIENT = timedelta(days=90)
#: Roles that a ticket can give. Never auth, which needs the key of the mesh CA.
JOINS_AS = (Role.WORKER, Role.CLIENT, Role.GATEWAY, Role.METRICS, Role.WEB)
#: Of a ticket for people's machines; one for replicas says how many may be active.
MAX_OF_PEOPLE = timedelta(days=7)
#: How long a ticket still works that another one has replaced.
ROTATION = timedelta(hours=24)
#: Addresses of one place: a subnet, or what a provider gives a site.
_PREFIXES = {4: 24, 6: 48}
#: The prefixes of a ticket's widest networks. A wider one binds the ticket to nothing.
_MIN_PREFIXES = {4: 8, 6: 16}
_REPLICAS = (Role.GATEWAY, Role.METRICS, Role.WEB)
#: Labels that decide whether a node is trusted come only from a ticket, and so from an administrator.
ONLY_BY_TICKET = frozenset({"trusted"})
#: Per owner who is no administrator; more would crowd others' tickets off the list.
MAX_OWN_TICKETS = 50

#: Worker processes of a machine beside its first one: each serves another program's models.
MAX_SIBLINGS = 16

_NEW_TICKET_HINT = "ask an administrator for a new one (`aicli admin tickets create`)"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTicket:
    id: str
    #: The key that signs with it.
    public_key: NodeId
    role: Role
    #: None for the operator's replicas.
    owner: UserId | None
    #: Empty if the account is gone.
    owner_name: str
    labels: Mapping[str, str]
    needs_approval: bool
    #: None for any number.
    uses: int | None
    used: int
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    #: How many of its nodes may be active at once, and are; None for any number.
    active_most: int | None = None
    active: int = 0
    #: Networks that its nodes may log in from; none for everywhere.
    networks: tuple[str, ...] = ()
    model: str = ""
    accept_models: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNode:
    id: NodeId
    role: Role
    state: MemberState
    name: str
    #: None for a node of the operator.
    owner: UserId | None
    owner_name: str
    labels: Mapping[str, str]
    ticket_id: str | None
    joined_at: datetime
    idle_since: datetime
    renewed_at: datetime | None
    certified_until: datetime | None
    revoked_at: datetime | None
    reason: str
    #: The first worker of its machine, unless it is that.
    machine: NodeId | None = None


def check_role(role: Role) -> None:
    """Raises BadRequest for a role that no ticket gives."""
    if role not in JOINS_AS:
        raise errors.BadRequest.of("role", f"a ticket cannot give the role {role}", hint=f"one of {', '.join(JOINS_AS)}")


def check_own_ticket(request: CreateTicket, owner: UserId, username: str) -> None:
    """Users who are no administrators may create tickets for their own workers only. Raises NotAllowed."""
    hint = "ask an administrator to create it"
    if request.role is not Role.WORKER:
        raise errors.NotAllowed(f"role: your own tickets are for workers, not for a {request.role}", hint=hint)
    if request.owner is not None and request.owner.lower() not in {username.lower(), str(owner)}:
        raise errors.NotAllowed("owner: you are the owner of nodes that join with your own tickets", hint="leave owner out")
    if request.active_most is not None:
        raise errors.NotAllowed("active_most: only an administrator creates tickets for replicas", hint=hint)
    if given := ONLY_BY_TICKET & request.labels.keys():
        raise errors.NotAllowed(f"label {min(given)}: only an administrator's ticket can give it", hint=hint)


def check_own_count(good: int) -> None:
    """Raises BadRequest if an owner who is no administrator has too many valid tickets."""
    if good >= MAX_OWN_TICKETS:
        raise errors.BadRequest(f"you already have {MAX_OWN_TICKETS} valid tickets", hint="use them, or revoke some")


def state_of(ticket: KnownTicket, now: datetime) -> TicketState:
    if ticket.revoked_at is not None:
        return TicketState.REVOKED
    if ticket.uses is not None and ticket.used >= ticket.uses:
        return TicketState.USED_UP
    return TicketState.EXPIRED if ticket.expires_at <= now else TicketState.GOOD


def check_signed(ticket: KnownTicket, text: bytes, *, by_ticket: bytes, newcomer: NodeId, by_newcomer: bytes) -> None:
    """Both keys must have signed this use. Raises BadTicket."""
    if not node_keys.verify(ticket.public_key, "enroll", text, by_ticket):
        raise errors.BadTicket("the ticket's signature is wrong", hint="copy the whole ticket again")
    if not node_keys.verify(newcomer, "enroll", text, by_newcomer):
        raise errors.BadTicket("the node's own signature is wrong", hint="join again")


def check_wanted(ticket: KnownTicket, wanted: Role | None) -> None:
    """Raises BadTicket if it makes a machine something else than it wants to be."""
    if wanted not in (None, ticket.role):
        hint = f"ask for a {wanted} ticket: aicli admin tickets create --role {wanted}; this one is still unused"
        raise errors.BadTicket(f"this ticket is for a {ticket.role}, not a {wanted}", hint=hint)


def check_usable(ticket: KnownTicket, now: datetime) -> None:
    """Raises BadTicket with the reason."""
    nodes = "one node" if ticket.uses == 1 else f"{ticket.uses} nodes"
    if ticket.active_most is not None and ticket.active >= ticket.active_most:
        raise errors.BadTicket(
            f"the ticket already has {ticket.active_most} active nodes, its limit; a killed node counts for one more minute",
            hint="wait, or create a ticket with a higher --active",
        )
    why = {
        TicketState.GOOD: "",
        TicketState.REVOKED: "the ticket was revoked",
        TicketState.USED_UP: f"the ticket is used up: it was valid for {nodes}",
        TicketState.EXPIRED: f"the ticket expired {amounts.show_duration((now - ticket.expires_at).total_seconds())} ago",
    }[state_of(ticket, now)]
    if why:
        raise errors.BadTicket(why, hint=_NEW_TICKET_HINT)


def check_address(ticket: KnownTicket, address: str | None) -> None:
    """Raises BadTicket if the ticket does not work there. ``address`` is None if only a proxy knows it."""
    if not ticket.networks:
        return
    if address is None:
        raise errors.BadTicket("the ticket is bound to networks, and does not work over HTTPS", hint="use the address of NATS itself")
    try:
        is_inside = any(ip_address(address) in ip_network(network) for network in ticket.networks)
    except ValueError:
        is_inside = False
    if not is_inside:
        raise errors.BadTicket(f"the ticket does not work from {address}", hint=f"it works from {', '.join(ticket.networks)}")


def check_request(request: CreateTicket) -> None:
    """Raises BadRequest for a combination that no ticket may have."""
    if request.active_most is None:
        if request.uses is None:
            raise errors.BadRequest.of("uses", "unlimited uses need a limit of active nodes", hint="set active_most (--active)")
        if request.ttl_seconds > MAX_OF_PEOPLE.total_seconds():
            raise errors.BadRequest.of(
                "ttl_seconds", "without active_most (--active), a ticket lasts at most 7 days", hint="set active_most"
            )
    elif request.role in _REPLICAS and not request.networks:
        raise errors.BadRequest.of(
            "networks", f"a {request.role} can read prompts, so its tickets need networks", hint="such as --network 10.0.0.0/8"
        )
    if request.role is not Role.WORKER and (request.model or request.accept_models is not None):
        raise errors.BadRequest(
            f"model, accept_models: a {request.role} runs no models", hint="leave them out, or create a worker's ticket"
        )
    for network in request.networks:
        try:
            found = name_rules.as_compared(ip_network(network))
        except ValueError:
            raise errors.BadRequest.of("networks", f"{network!r} is not a network", hint="such as 10.0.0.0/8") from None
        if found.prefixlen < (shortest := _MIN_PREFIXES[found.version]):
            raise errors.BadRequest.of("networks", f"{found} is wider than /{shortest}", hint="name the networks that the machines are in")


def network_of(address: str) -> str:
    """Return the network in which an address counts as known."""
    return str(ip_network(f"{address}/{_PREFIXES[ip_address(address).version]}", strict=False))


def unknown_ticket() -> errors.BadTicket:
    return errors.BadTicket("this mesh does not know the ticket", hint=_NEW_TICKET_HINT)


def join_labels(ticket: KnownTicket, own: Mapping[str, str]) -> dict[str, str]:
    """Combine the node's own labels with the ticket's, which take precedence. Raises BadRequest."""
    claimed = ONLY_BY_TICKET & (own.keys() - ticket.labels.keys())
    if claimed:
        raise errors.BadRequest(f"label {min(claimed)}: only a ticket can give it", hint="aicli admin tickets create --label …")
    labels = {**own, **ticket.labels}
    if len(labels) > MAX_LABELS:
        raise errors.BadRequest(f"{len(labels)} labels: a node has at most {MAX_LABELS}", hint="leave some out")
    return labels


def warnings(ticket: Ticket, *, elsewhere: bool = False) -> tuple[str, ...]:
    """Return warnings about how nodes will reach the mesh."""
    servers = {urlsplit(url).hostname or "" for url in ticket.nats}
    # No DHT nodes mean the public DHT.
    dht = set(map(addresses.host_of_node, ticket.bootstrap))
    if not all(_is_out_of_reach(host, elsewhere=elsewhere) for host in servers):
        return ()
    if servers and not ticket.beside:
        return (f"machines elsewhere cannot reach NATS at {', '.join(sorted(servers))}: set PUBLIC_NATS_URL to where it is reached",)
    if not dht or not all(_is_out_of_reach(host, elsewhere=elsewhere) for host in dht):
        return ()
    shown = ", ".join(sorted(servers | dht))
    way_out = "set DHT_HOST to this machine's address and start the stack again, or TICKET_BOOTSTRAP to where they are reached"
    return (f"machines elsewhere cannot reach the mesh at {shown}: {way_out}",)


def find_install_needs(page: str, *, elsewhere: bool) -> str:
    """Return why the other machine can't install from this page, and what to do; empty if it can."""
    if not page:
        return "PUBLIC_URL isn't set, so there is no address to install from: set it to the address that people open"
    if not _is_out_of_reach(urlsplit(page).hostname or "", elsewhere=elsewhere):
        return ""
    way_out = "a public name" if elsewhere else "this machine's address in your network, for example with make up LAN=1"
    return f"the other machine cannot open {page}: set PUBLIC_URL to {way_out}"


@dataclass(frozen=True, slots=True)
class InstallLine:
    """How another machine installs aimesh and joins."""

    #: Empty if there is no line that would work.
    line: str
    #: Why not, and what to do.
    needs: str


def plan_install(page: str, pin: str | None, release: str, role: Role, ticket: str, *, elsewhere: bool, is_reached: bool) -> InstallLine:
    """Choose where a worker or client installs from: the mesh, or elsewhere the release that the mesh runs, if there is one.

    ``is_reached``: whether the machine can join with the ticket alone.
    """
    needs, is_client = find_install_needs(page, elsewhere=elsewhere), role is Role.CLIENT
    if not needs:
        return InstallLine(install_line.make(page, pin=pin, ticket=ticket, is_client=is_client), "")
    if elsewhere and release and is_reached:
        return InstallLine(install_line.make(release, ticket=ticket, is_client=is_client, redirects=True), "")
    return InstallLine("", needs)


def _is_out_of_reach(host: str, *, elsewhere: bool) -> bool:
    return addresses.is_loopback(host) or (elsewhere and not addresses.is_public(host))


def ticket_row(ticket: KnownTicket, now: datetime) -> TicketRow:
    return TicketRow(
        id=ticket.id,
        role=ticket.role,
        state=state_of(ticket, now),
        uses=ticket.uses,
        used=ticket.used,
        active_most=ticket.active_most,
        active=ticket.active,
        networks=ticket.networks,
        model=ticket.model,
        accept_models=ticket.accept_models,
        labels=dict(ticket.labels),
        needs_approval=ticket.needs_approval,
        owner=ticket.owner_name or ("" if ticket.owner is None else str(ticket.owner)),
        created_at=ticket.created_at,
        expires_at=ticket.expires_at,
    )


def check_may_stay(node: KnownNode | None, now: datetime) -> KnownNode:
    """Raises NotCertified, NodeRevoked and ApprovalPending."""
    if node is None:
        raise errors.NotCertified("this mesh does not know this node", hint=f"join with a ticket; {_NEW_TICKET_HINT}")
    if node.state is MemberState.REVOKED:
        raise revoked(node)
    if node.state is MemberState.PENDING:
        raise errors.ApprovalPending(
            "an administrator has to approve this machine first", hint=f"aicli admin nodes approve {node.id[:9]}", retry_after_seconds=5
        )
    idle = now - node.idle_since
    if idle > (IDLE_CLIENT if node.role is Role.CLIENT else IDLE):
        silent = amounts.show_duration(idle.total_seconds())
        raise errors.NotCertified(f"this node was silent for {silent}", hint=f"join again; {_NEW_TICKET_HINT}")
    return node


def no_sibling() -> errors.NotAllowed:
    return errors.NotAllowed(
        f"this machine can't have another worker: an active worker that joined with a ticket has up to {MAX_SIBLINGS} others, "
        "each with a new key",
        hint="share fewer servers, or join with a ticket",
    )


def revoked(node: KnownNode) -> errors.NodeRevoked:
    when = "" if node.revoked_at is None else f" on {node.revoked_at:%Y-%m-%d}"
    return errors.NodeRevoked(
        f"this node was revoked{when}", hint="the machine can join again under a new key, with a new ticket from an administrator"
    )


def check_revocable(node: KnownNode) -> None:
    """Raises NotAllowed for auth, which would have to revoke itself."""
    if node.role is Role.AUTH:
        raise errors.NotAllowed(
            "an auth service cannot be revoked by an auth service",
            hint="stop it and give it a new node key; if the key of the mesh CA may be known to others, make a new CA",
        )


def subject_of(node: KnownNode) -> Subject:
    """Return the content of the node's certificate."""
    owner = "" if node.owner is None else str(node.owner)
    machine = {} if node.machine is None else {MACHINE_LABEL: node.machine}
    return Subject(node.id, node.role, owner, tuple(sorted({**node.labels, **machine}.items())))


def member_row(node: KnownNode) -> Member:
    owner = "" if node.owner is None else str(node.owner)
    return Member(
        id=node.id,
        role=node.role,
        state=node.state,
        name=node.name,
        owner=node.owner_name or owner,
        labels=dict(node.labels),
        joined_at=node.joined_at,
        renewed_at=node.renewed_at,
        certified_until=node.certified_until,
        revoked_at=node.revoked_at,
        reason=node.reason,
        machine=node.machine,
    )


def machine_of(owner: UserId, role: UserRole, organizations: tuple[TenantId, ...]) -> Machine:
    """Return whose models the machine of this user may read: those that its owner may read."""
    if not access_table.permissions_of(role, None) & {Permission.READ_MODELS, Permission.WRITE_MODELS, Permission.EVERYTHING}:
        return Machine()
    return Machine(reads_all=role is UserRole.ADMIN, tenants=(TenantId(owner), *organizations))


def printable(name: str) -> str:
    """Make a machine's own name fit for a table."""
    return "".join(character for character in name if character.isprintable()).strip()
