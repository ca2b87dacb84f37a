"""The nodes of the mesh: those that gateways see, and those that auth has enrolled. A page joins both."""

from collections.abc import Sequence

import msgspec

from shared.api.gateway import NodeRow
from shared.api.membership import Member, MemberState
from shared.identity.certificates import MACHINE_LABEL
from shared.lists.columns import Column, Listing, Tone, pairs
from shared.types import SERVICE_NAMES, NodeId, Role

#: The owner of a node that no user added.
NO_OWNER = "the mesh"
#: Path -> label; other paths are shown as they are.
_PATHS = {
    "nats": "NATS",
    "direct": "Direct",
    "punched": "Direct (NAT)",
    # What passes the mesh's server is readable there.
    "web": "HTTPS, readable at the mesh",
    "relayed": "Relay",
    "self": "Local",
}
#: State in `aicli top --json` -> its word and tone for people.
STATES = {
    "used": ("OK", Tone.GOOD),
    "not used": ("Degraded", Tone.WARN),
    "not admitted": ("Rejected", Tone.BAD),
    "gone": ("Down", Tone.BAD),
}
MEMBER_STATES = {
    MemberState.PENDING: ("Pending approval", Tone.WARN),
    MemberState.ACTIVE: ("Active", Tone.GOOD),
    MemberState.REVOKED: ("Revoked", Tone.OFF),
}


def short(node: str) -> str:
    """Return the start of an id, which identifies a node for people."""
    return node[:9]


def state_of(node: NodeRow) -> str:
    """Return a key of ``STATES``."""
    if node.usable:
        return "used"
    return "not used" if node.alive else "not admitted" if node.refused else "gone"


def state(node: NodeRow) -> tuple[str, Tone]:
    if node.free and not node.usable:
        return "Free", Tone.WARN
    word, tone = STATES[state_of(node)]
    return word, Tone.WARN if node.usable and (node.trouble or node.warning) else tone


def reason(node: NodeRow) -> str:
    """Return why a node gets no requests, or what troubles one that does, or what its owner may want to know."""
    if node.usable:
        return node.trouble or node.warning or node.notice
    return f"{node.free}: {node.why_not}" if node.free else node.why_not


def role(of: Role) -> str:
    return of.value if of is Role.WORKER else SERVICE_NAMES.get(of, of.value)


def path(of: str) -> str | None:
    return _PATHS.get(of, of) or None


def round_trip(milliseconds: float | None) -> str | None:
    return None if milliseconds is None else f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def load(running: int, slots: int, queued: int) -> str | None:
    """Return how many slots of a node are in use; None for a node without slots."""
    return f"{running} of {slots} busy" + (f", {queued} queued" if queued else "") if slots else None


def machines(rows: Sequence[NodeRow]) -> tuple[NodeRow, ...]:
    """Return one row a machine: workers beside its first one are part of that one's row."""
    found = {row.id: row for row in rows}
    for row in rows:
        first = found.get(NodeId(row.labels.get(MACHINE_LABEL, "")))
        if first is not None and first.role is row.role:
            found[first.id] = _joined(first, row)
            del found[row.id]
    return tuple(found.values())


def _joined(first: NodeRow, other: NodeRow) -> NodeRow:
    return msgspec.structs.replace(
        first,
        models=tuple(dict.fromkeys((*first.models, *other.models))),
        running=first.running + other.running,
        queued=first.queued + other.queued,
        slots=first.slots + other.slots,
        trouble="; ".join(dict.fromkeys(filter(None, (first.trouble, reason(other))))),
        pulls=(*first.pulls, *other.pulls),
    )


NODES: Listing[NodeRow] = Listing(
    columns=(
        Column(title="Node", show=lambda node: short(node.id)),
        Column(title="Role", show=lambda node: role(node.role)),
        Column(title="Connection", show=lambda node: path(node.path), rank=3),
        Column(title="Round trip", show=lambda node: round_trip(node.round_trip_ms), rank=5),
        Column(title="State", show=lambda node: state(node)[0], tone=lambda node: state(node)[1]),
        Column(title="Reason", show=lambda node: reason(node) or None, wraps=True, below=True),
        Column(title="Since", show=lambda node: node.since, rank=4),
        Column(title="Load", show=lambda node: load(node.running, node.slots, node.queued), rank=2),
        Column(title="Models", show=lambda node: tuple(node.models), rank=2, wraps=True),
        Column(title="From the mesh", show=lambda node: tuple(node.assigned), only_wide=True, wraps=True),
        Column(title="Removed", show=lambda node: tuple(node.refused_models), only_wide=True, wraps=True),
        Column(title="ID", show=lambda node: node.id, only_wide=True),
    ),
    empty="No nodes.",
)
MEMBERS: Listing[Member] = Listing(
    columns=(
        Column(title="Node", show=lambda node: short(node.id)),
        Column(title="Role", show=lambda node: role(node.role), rank=2),
        Column(title="Name", show=lambda node: node.name or None),
        Column(title="Owner", show=lambda node: node.owner or NO_OWNER, rank=3),
        Column(title="State", show=lambda node: MEMBER_STATES[node.state][0], tone=lambda node: MEMBER_STATES[node.state][1]),
        Column(title="Reason", show=lambda node: node.reason or None, rank=4, wraps=True, below=True),
        Column(title="Labels", show=lambda node: pairs(node.labels), rank=4, wraps=True),
        Column(title="Joined", show=lambda node: node.joined_at, rank=6),
        Column(title="Certificate expires", show=lambda node: node.certified_until, rank=5),
        Column(title="ID", show=lambda node: node.id, only_wide=True),
    ),
    empty="No nodes yet.",
)
