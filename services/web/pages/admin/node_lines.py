"""The list of machines: what auth knows of each (who let it in, until when) joined with what the gateway sees of it now. Pure.

A line is texts and addresses only, because the same line is drawn by the template and sent to pages that are open.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from services.web.pages.admin import wording
from shared.api.gateway import NodeRow
from shared.api.membership import Member, MemberState
from shared.types import SERVICE_NAMES, NodeId, Role

#: More than this is not drawn; the scripts of the page stop there, too.
MOST_LINES = 500
#: Of a node's id; enough to tell nodes apart.
SHOWN_OF_ID = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLine:
    """One machine as texts; empty ones are not shown."""

    id: str = ""
    short: str = ""
    name: str = ""
    role: str = ""
    #: Who answers for it, and what its certificate says besides.
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
    #: Where it is approved and cut off; empty where that cannot be done.
    approve: str = ""
    revoke: str = ""
    approve_label: str = ""
    revoke_label: str = ""
    #: How it went; empty for who may not see that.
    charts: str = ""
    charts_label: str = ""


@dataclass(frozen=True, slots=True)
class NodeList:
    lines: tuple[NodeLine, ...]
    #: Such as "5 machines, 3 of them used, 1 waits for approval".
    summary: str
    #: Those that are not among the lines, because they are too many.
    left_out: int


#: How the gateway reaches it, as people say it; what is not here is said as it is.
_PATHS = {"nats": "over NATS", "relayed": "through a relay", "self": "itself"}
#: Waiting ones need a decision, what is cut off needs none.
_ORDER = {MemberState.PENDING: 0, MemberState.ACTIVE: 1, MemberState.REVOKED: 2}


def join(members: Iterable[Member], rows: Iterable[NodeRow] | None, root: str, *, only_members: bool) -> NodeList:
    """``rows`` is None where the gateway does not answer. ``root`` is the page that the actions' addresses begin with; an owner sees only
    those that are theirs, which auth decides by the members."""
    known = {member.id: member for member in members}
    seen = {row.id: row for row in rows} if rows is not None else {}
    ids = set(known) if only_members else set(known) | set(seen)
    ordered = sorted(ids, key=lambda node: _place(node, known.get(node), seen.get(node)))
    lines = tuple(_line(node, known.get(node), seen.get(node), root, is_seen=rows is not None) for node in ordered)
    return NodeList(lines[:MOST_LINES], _summary(lines), max(0, len(lines) - MOST_LINES))


def plain(line: NodeLine) -> dict[str, str]:
    """For an event."""
    return asdict(line)


def _place(node: NodeId, member: Member | None, row: NodeRow | None) -> tuple[int, str, str, str]:
    state = member.state if member is not None else MemberState.ACTIVE
    role = _role(member, row)
    return _ORDER[state], role, member.name if member is not None else "", node


def _line(node: NodeId, member: Member | None, row: NodeRow | None, root: str, *, is_seen: bool) -> NodeLine:
    state, tone, why = _state(member, row, is_seen=is_seen)
    short = node[:SHOWN_OF_ID]
    # What has no name of its own is called by what it does.
    name = member.name if member is not None and member.name else _role(member, row)
    can_go = member is not None and member.state is not MemberState.REVOKED and member.role is not Role.AUTH
    waits = member is not None and member.state is MemberState.PENDING and root.startswith("/admin")
    return NodeLine(
        id=node,
        short=short,
        name=name,
        role=_role(member, row),
        about=_about(member, row),
        state=state,
        tone=tone,
        why=why,
        path=(_PATHS.get(row.path, row.path) if row is not None else "") or wording.NOTHING,
        round_trip=wording.round_trip(row.round_trip_ms) if row is not None else "",
        load=_load(row),
        models=", ".join(row.models) if row is not None and row.models else wording.NOTHING,
        until=_until(member),
        approve=f"{root}/{node}/approve" if waits else "",
        revoke=f"{root}/{node}/revoke" if can_go else "",
        approve_label=f"Approve {name} {short}",
        revoke_label=f"Revoke {name} {short}",
        charts=f"/admin/charts?node={node}" if root.startswith("/admin") else "",
        charts_label=f"Charts of {name} {short}",
    )


def _role(member: Member | None, row: NodeRow | None) -> str:
    role = row.role if row is not None else member.role if member is not None else Role.CLIENT
    return role.value if role is Role.WORKER else SERVICE_NAMES.get(role, role.value)


def _about(member: Member | None, row: NodeRow | None) -> str:
    owner = member.owner if member is not None and member.owner else "the house"
    pairs = wording.labels(member.labels if member is not None else row.labels if row is not None else {})
    return f"{owner} · {pairs}" if pairs else owner


def _state(member: Member | None, row: NodeRow | None, *, is_seen: bool) -> tuple[str, str, str]:
    """A word, its tone, and why."""
    if member is not None and member.state is MemberState.REVOKED:
        return "revoked", "off", member.reason
    if member is not None and member.state is MemberState.PENDING:
        return "waits for approval", "warn", ""
    if row is None:
        return ("not seen", "off", "the gateway has not heard of it") if is_seen else ("not known", "off", "")
    if row.usable:
        return "used", "good", ""
    if row.alive:
        return "not used", "warn", row.why_not
    return ("not let in" if row.refused else "gone"), "bad", row.why_not


def _load(row: NodeRow | None) -> str:
    if row is None or not row.slots:
        return wording.NOTHING
    return f"{row.running} of {row.slots}" + (f", {row.queued} waiting" if row.queued else "")


def _until(member: Member | None) -> str:
    if member is None or member.certified_until is None:
        return wording.NOTHING
    return wording.soon(member.certified_until)


def _summary(lines: tuple[NodeLine, ...]) -> str:
    there = [line for line in lines if line.state != "revoked"]
    if not there:
        return "No machines"
    used = sum(line.state == "used" for line in there)
    waiting = sum(line.state == "waits for approval" for line in there)
    text = f"{len(there):,} machine{'' if len(there) == 1 else 's'}, {used:,} used"
    return f"{text}, {waiting:,} waiting for approval" if waiting else text
