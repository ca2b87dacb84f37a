"""Join the members that auth knows with the nodes that the gateway sees. Pure.

A line has only strings, because templates and live events share it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from services.web.charts.usage_chart import NOTHING
from services.web.pages.admin import time_texts
from services.web.pages.model_view import SHOWN_OF_ID
from shared.api.auth import LoginSession
from shared.api.gateway import NodeRow
from shared.api.membership import Member, MemberState
from shared.types import SERVICE_NAMES, NodeId, Role, UserRole

#: The maximum of rows; bindings.js has the same limit.
MOST_LINES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRowView:
    """One node; empty fields are not shown."""

    id: str = ""
    short: str = ""
    name: str = ""
    role: str = ""
    #: Its owner and labels.
    about: str = ""
    state: str = ""
    #: good, warn, bad or off.
    tone: str = ""
    why: str = ""
    path: str = ""
    round_trip: str = ""
    load: str = ""
    models: str = ""
    until: str = ""
    #: The paths to approve and revoke it; empty if that is not possible.
    approve: str = ""
    revoke: str = ""
    #: The path to let administrators put models on it, or not anymore; empty for all but its owner.
    consent: str = ""
    consent_text: str = ""
    consent_label: str = ""
    approve_label: str = ""
    revoke_label: str = ""
    #: The link to its charts; empty for node owners.
    charts: str = ""
    charts_label: str = ""


@dataclass(frozen=True, slots=True)
class NodeList:
    lines: tuple[NodeRowView, ...]
    #: Such as "5 nodes, 3 OK, 1 pending approval".
    summary: str
    #: How many nodes exceed the maximum.
    left_out: int


#: Path -> label; other paths are shown as they are.
_PATHS = {"nats": "NATS", "direct": "Direct", "punched": "Direct (NAT)", "relayed": "Relay", "self": "Local"}
_ORDER = {MemberState.PENDING: 0, MemberState.ACTIVE: 1, MemberState.REVOKED: 2}


def root_of(person: LoginSession) -> str:
    """Return the path of the list: administrators and node owners have different ones."""
    return "/admin/nodes" if person.user.role is UserRole.ADMIN else "/nodes"


def join(members: Iterable[Member], rows: Iterable[NodeRow] | None, person: LoginSession) -> NodeList:
    """Return the list for a person. ``rows`` is None while the gateway is down. Auth lists only the nodes of a node owner."""
    known = {member.id: member for member in members}
    seen = {row.id: row for row in rows} if rows is not None else {}
    ids = set(known) | set(seen) if person.user.role is UserRole.ADMIN else set(known)
    ordered = sorted(ids, key=lambda node: _place(node, known.get(node), seen.get(node)))
    lines = tuple(_line(node, known.get(node), seen.get(node), person, is_seen=rows is not None) for node in ordered)
    return NodeList(lines[:MOST_LINES], _summary(lines), max(0, len(lines) - MOST_LINES))


def _place(node: NodeId, member: Member | None, row: NodeRow | None) -> tuple[int, str, str, str]:
    state = member.state if member is not None else MemberState.ACTIVE
    role = _role(member, row)
    return _ORDER[state], role, member.name if member is not None else "", node


def _line(node: NodeId, member: Member | None, row: NodeRow | None, person: LoginSession, *, is_seen: bool) -> NodeRowView:
    state, tone, why = _state(member, row, is_seen=is_seen)
    root, asks = root_of(person), may_consent(member, row, person)
    if row is not None and row.free and not row.accepts_models and member is not None and member.owner and not asks:
        why = f"{why}. Only {member.owner} can let it accept models."
    short = node[:SHOWN_OF_ID]
    # Use the role for unnamed nodes.
    name = member.name if member is not None and member.name else _role(member, row)
    can_go = member is not None and member.state is not MemberState.REVOKED and member.role is not Role.AUTH
    waits = member is not None and member.state is MemberState.PENDING and root.startswith("/admin")
    return NodeRowView(
        id=node,
        short=short,
        name=name,
        role=_role(member, row),
        about=_about(member, row),
        state=state,
        tone=tone,
        why=why,
        path=(_PATHS.get(row.path, row.path) if row is not None else "") or NOTHING,
        round_trip=time_texts.round_trip(row.round_trip_ms) if row is not None else "",
        load=_load(row),
        models=", ".join(row.models) if row is not None and row.models else NOTHING,
        until=_until(member),
        approve=f"{root}/{node}/approve" if waits else "",
        revoke=f"{root}/{node}/revoke" if can_go else "",
        consent=f"{root}/{node}/models" if asks else "",
        consent_text=consent_text(row),
        consent_label=f"{consent_text(row)} on {name} {short}",
        approve_label=f"Approve {name} {short}",
        revoke_label=f"Revoke {name} {short}",
        charts=f"/admin/charts?node={node}" if root.startswith("/admin") else "",
        charts_label=f"Charts of {name} {short}",
    )


def may_consent(member: Member | None, row: NodeRow | None, person: LoginSession) -> bool:
    """Return whether the person decides which models run on the node. The worker checks it again."""
    is_worker = row is not None and row.alive and row.role is Role.WORKER
    return is_worker and member is not None and member.state is MemberState.ACTIVE and member.owner == person.user.username


def consent_text(row: NodeRow | None) -> str:
    return "Refuse models" if row is not None and row.accepts_models else "Accept models"


def _role(member: Member | None, row: NodeRow | None) -> str:
    role = row.role if row is not None else member.role if member is not None else Role.CLIENT
    return role.value if role is Role.WORKER else SERVICE_NAMES.get(role, role.value)


def _about(member: Member | None, row: NodeRow | None) -> str:
    owner = member.owner if member is not None and member.owner else "system"
    pairs = time_texts.labels(member.labels if member is not None else row.labels if row is not None else {})
    return f"{owner} · {pairs}" if pairs else owner


def _state(member: Member | None, row: NodeRow | None, *, is_seen: bool) -> tuple[str, str, str]:
    if member is not None and member.state is MemberState.REVOKED:
        return "Revoked", "off", member.reason
    if member is not None and member.state is MemberState.PENDING:
        return "Pending approval", "warn", ""
    if row is None:
        return ("Not seen", "off", "the gateway has never seen this node") if is_seen else ("Unknown", "off", "")
    if row.usable:
        return "OK", "warn" if row.trouble or row.warning else "good", row.trouble or row.warning
    if row.alive:
        return ("Free", "warn", f"{row.free}: {row.why_not}") if row.free else ("Degraded", "warn", row.why_not)
    return ("Rejected" if row.refused else "Down"), "bad", row.why_not


def _load(row: NodeRow | None) -> str:
    if row is None or not row.slots:
        return NOTHING
    return f"{row.running} of {row.slots}" + (f", {row.queued} queued" if row.queued else "")


def _until(member: Member | None) -> str:
    if member is None or member.certified_until is None:
        return NOTHING
    return time_texts.soon(member.certified_until)


def _summary(lines: tuple[NodeRowView, ...]) -> str:
    there = [line for line in lines if line.state != "Revoked"]
    if not there:
        return "No nodes"
    healthy = sum(line.state == "OK" for line in there)
    waiting = sum(line.state == "Pending approval" for line in there)
    text = f"{len(there):,} node{'' if len(there) == 1 else 's'}, {healthy:,} OK"
    return f"{text}, {waiting:,} pending approval" if waiting else text
