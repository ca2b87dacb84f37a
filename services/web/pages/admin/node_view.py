"""Join the members that auth knows with the nodes that the gateway sees. Pure.

A line has only strings, because templates and live events share it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from services.web.charts.usage_chart import NOTHING
from services.web.pages.admin import time_texts
from shared.api.auth import LoginSession
from shared.api.deployments import CopyState, ModelCopy
from shared.api.gateway import NodeRow
from shared.api.membership import Member, MemberState
from shared.lists import deployments
from shared.lists import nodes as lists
from shared.lists.columns import Tone, pairs
from shared.types import ModelName, NodeId, Role, UserRole

#: The maximum of rows; bindings.js has the same limit.
MAX_LINES = 500


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
    #: The page of its models; empty for all but its owner and administrators.
    manage: str = ""
    manage_text: str = ""
    manage_label: str = ""
    approve_label: str = ""
    revoke_label: str = ""
    #: The link to its charts; empty for node owners.
    charts: str = ""
    charts_label: str = ""


@dataclass(frozen=True, slots=True)
class ModelOnNode:
    name: ModelName
    state: str
    #: The mesh has put it there.
    is_assigned: bool


@dataclass(frozen=True, slots=True)
class NodeList:
    lines: tuple[NodeRowView, ...]
    #: Such as "5 nodes, 3 OK, 1 pending approval".
    summary: str
    #: How many nodes exceed the maximum.
    left_out: int


def root_of(person: LoginSession) -> str:
    """Return the path of the list: administrators and node owners have different ones."""
    return "/admin/nodes" if person.user.role is UserRole.ADMIN else "/nodes"


def join(members: Iterable[Member], rows: Iterable[NodeRow] | None, person: LoginSession) -> NodeList:
    """Return the list for a person, with a line a machine. ``rows`` is None while the gateway is down. Auth lists only the nodes of a node
    owner."""
    known = {member.id: member for member in members}
    seen = {row.id: row for row in lists.machines(tuple(rows))} if rows is not None else {}
    ids = set(known) | set(seen) if person.user.role is UserRole.ADMIN else set(known)
    ids -= {member.id for member in known.values() if member.machine in ids}
    ordered = sorted(ids, key=lambda node: _place(node, known.get(node), seen.get(node)))
    lines = tuple(_line(node, known.get(node), seen.get(node), person, is_seen=rows is not None) for node in ordered)
    return NodeList(lines[:MAX_LINES], _summary(lines), max(0, len(lines) - MAX_LINES))


def _place(node: NodeId, member: Member | None, row: NodeRow | None) -> tuple[int, str, str, str]:
    state = member.state if member is not None else MemberState.ACTIVE
    role = _role(member, row)
    return list(lists.MEMBER_STATES).index(state), role, member.name if member is not None else "", node


def _line(node: NodeId, member: Member | None, row: NodeRow | None, person: LoginSession, *, is_seen: bool) -> NodeRowView:
    state, tone, why = _state(member, row, is_seen=is_seen)
    root, decides = root_of(person), may_consent(member, row, person)
    manage_text = "Accept models" if decides and row is not None and not row.accepts_models else "Models"
    if row is not None and row.free and not row.accepts_models and member is not None and member.owner and not decides:
        why = f"{why}. Only {member.owner} can let it accept models."
    short = lists.short(node)
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
        path=(lists.path(row.path) if row is not None else None) or NOTHING,
        round_trip=(lists.round_trip(row.round_trip_ms) if row is not None else None) or "",
        load=(lists.load(row.running, row.slots, row.queued) if row is not None else None) or NOTHING,
        models=", ".join(row.models) if row is not None and row.models else NOTHING,
        until=_until(member),
        approve=f"{root}/{node}/approve" if waits else "",
        revoke=f"{root}/{node}/revoke" if can_go else "",
        manage=f"{root}/{node}/models" if may_manage(member, row) else "",
        manage_text=manage_text,
        manage_label=f"{manage_text} on {name} {short}",
        approve_label=f"Approve {name} {short}",
        revoke_label=f"Revoke {name} {short}",
        charts=f"/admin/charts?node={node}" if root.startswith("/admin") else "",
        charts_label=f"Charts of {name} {short}",
    )


def may_manage(member: Member | None, row: NodeRow | None) -> bool:
    """Return whether someone who sees the node may remove models from it. The worker checks it again."""
    is_worker = row is not None and row.alive and row.role is Role.WORKER
    return is_worker and member is not None and member.state is MemberState.ACTIVE


def may_consent(member: Member | None, row: NodeRow | None, person: LoginSession) -> bool:
    """Return whether the person decides if administrators may put models on the node. The worker checks it again."""
    decides = member is not None and (member.owner == person.user.username or not (member.owner or person.user.role is not UserRole.ADMIN))
    return decides and may_manage(member, row)


def models_of(row: NodeRow) -> tuple[ModelOnNode, ...]:
    """Return what it has and what is on its way."""
    pulls = {ModelName(pull.model): (pull.done_bytes, pull.total_bytes, pull.bytes_per_second) for pull in row.pulls}
    names = [ModelName(name) for name in (*row.assigned, *pulls) if name not in row.models]
    coming = {name: ModelCopy(row.id, CopyState.COMING, name, *pulls.get(name, ())) for name in names}
    states = dict.fromkeys(row.models, "served") | {name: deployments.describe(copy) for name, copy in coming.items()}
    return tuple(ModelOnNode(name, state, name in row.assigned) for name, state in sorted(states.items()))


def _role(member: Member | None, row: NodeRow | None) -> str:
    return lists.role(row.role if row is not None else member.role if member is not None else Role.CLIENT)


def _about(member: Member | None, row: NodeRow | None) -> str:
    owner = member.owner if member is not None and member.owner else lists.NO_OWNER
    labels = member.labels if member is not None else row.labels if row is not None else {}
    return f"{owner} · {', '.join(pairs(labels))}" if labels else owner


def _state(member: Member | None, row: NodeRow | None, *, is_seen: bool) -> tuple[str, Tone, str]:
    if member is not None and member.state is not MemberState.ACTIVE:
        return *lists.MEMBER_STATES[member.state], member.reason
    if row is None:
        return ("Not seen", Tone.OFF, "the gateway has never seen this node") if is_seen else ("Unknown", Tone.OFF, "")
    return *lists.state(row), lists.reason(row)


def _until(member: Member | None) -> str:
    if member is None or member.certified_until is None:
        return NOTHING
    return time_texts.soon(member.certified_until)


def _summary(lines: tuple[NodeRowView, ...]) -> str:
    known = lists.STATES["used"], lists.MEMBER_STATES[MemberState.PENDING], lists.MEMBER_STATES[MemberState.REVOKED]
    healthy, waiting, revoked = (sum(line.state == word for line in lines) for word, _ in known)
    # A client comes and goes: `aicli` is one while a command runs.
    away = sum(line.role == lists.role(Role.CLIENT) and line.state not in {word for word, _ in known} for line in lines)
    if not (there := len(lines) - revoked - away):
        return "No nodes"
    text = f"{there:,} node{'' if there == 1 else 's'}, {healthy:,} OK"
    return f"{text}, {waiting:,} pending approval" if waiting else text
