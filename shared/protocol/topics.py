"""Defines all NATS subjects and Hyperswarm topics of the mesh, and which roles may use them.

auth grants NATS logins the rights of these tables, ``swarm_link`` enforces them, and the permission test checks all of them against a
real server.
"""

import hashlib
import hmac
from dataclasses import dataclass

from shared.types import SERVICE_NAMES, SERVICE_ROLES, MeshName, NodeId, Role

SPEAKS_TO: dict[Role, tuple[Role, ...]] = {
    Role.AUTH: (Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT, Role.BACKUP),
    Role.GATEWAY: (Role.AUTH, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT, Role.BACKUP),
    Role.WORKER: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.METRICS: (Role.AUTH, Role.GATEWAY, Role.WORKER, Role.WEB, Role.CLIENT),
    Role.WEB: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.CLIENT: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.OPERATOR: (),
    Role.BACKUP: (Role.AUTH, Role.GATEWAY),
    Role.NEWCOMER: (),
}

SEES_ANNOUNCEMENTS_OF: dict[Role, tuple[Role, ...]] = {
    Role.AUTH: SERVICE_ROLES,
    Role.GATEWAY: SERVICE_ROLES,
    Role.WORKER: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.METRICS: SERVICE_ROLES,
    Role.WEB: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.CLIENT: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.OPERATOR: SERVICE_ROLES,
    Role.BACKUP: (Role.AUTH, Role.GATEWAY),
    Role.NEWCOMER: (),
}


@dataclass(frozen=True, slots=True)
class MeetingPlace:
    """A Hyperswarm topic. Nodes that look it up find the nodes that announce it."""

    name: str
    announced_by: tuple[Role, ...]
    looked_up_by: tuple[Role, ...]


#: Roles that connect meet on at least one topic from each side that can announce, so that a restarted node is reconnected at once.
#: Clients announce nothing, and find only nodes that they may talk to.
MEETING_PLACES = (
    MeetingPlace(
        "house", (Role.AUTH, Role.GATEWAY), (Role.AUTH, Role.GATEWAY, Role.METRICS, Role.WEB, Role.WORKER, Role.CLIENT, Role.BACKUP)
    ),
    MeetingPlace("workers", (Role.WORKER,), (Role.AUTH, Role.GATEWAY, Role.METRICS)),
    MeetingPlace("metrics", (Role.METRICS,), (Role.AUTH, Role.GATEWAY, Role.WEB, Role.WORKER, Role.CLIENT)),
)


def may_call(one: Role, other: Role) -> bool:
    """Return whether nodes of these roles may call each other. A newcomer is not in the table: it may only ask auth for a certificate."""
    return other in SPEAKS_TO[one] or {one, other} == {Role.AUTH, Role.NEWCOMER}


def may_link(one: Role, other: Role) -> bool:
    """Return whether nodes of these roles may connect over Hyperswarm. Workers do, for their sidecars to copy blocks of models, but never
    call each other."""
    return may_call(one, other) or one is other is Role.WORKER


def meeting_topic(secret: bytes, place: MeetingPlace) -> bytes:
    """Return the DHT topic of a meeting place. Only nodes with the epoch's ``secret`` can find it."""
    return _hkdf(secret, b"aimesh/topic/1/" + place.name.encode())


def enrollment_topic(authority: bytes) -> bytes:
    """Return the topic where newcomers find auth. It derives from the mesh CA's raw public key, which is in every ticket."""
    return _hkdf(authority, b"aimesh/topic/1/enroll")


def epoch_secret(authority_seed: bytes, epoch: int) -> bytes:
    """Return an epoch's secret. It derives from the mesh CA's seed, so only the epoch number needs to be stored."""
    return _hkdf(authority_seed, b"aimesh/topics/1/" + str(epoch).encode())


def _hkdf(secret: bytes, name: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) with no salt and one output block."""
    key = hmac.digest(bytes(32), secret, hashlib.sha256)
    return hmac.digest(key, name + b"\x01", hashlib.sha256)


#: Subscriptions of one connection. A node needs up to 20. Services also take one for each stream of a stock NATS client, and such a client
#: one for each call.
MAX_SUBSCRIPTIONS = dict.fromkeys(Role, 64) | {role: 1024 for role in SERVICE_ROLES if role is not Role.WORKER} | {Role.OPERATOR: 512}


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a node's NATS user may do. Everything else is denied."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    max_subscriptions: int


def link(mesh: MeshName, to_role: Role, to_node: NodeId, from_role: Role, from_node: NodeId) -> str:
    """Return the subject for messages between two nodes. The NATS server guarantees the sender's role and id."""
    return f"aimesh.{mesh}.{to_role}.{to_node}.{from_role}.{from_node}"


def inbox(mesh: MeshName, role: Role, node: NodeId) -> str:
    """Return the pattern of everything sent to one node."""
    return f"aimesh.{mesh}.{role}.{node}.*.*"


def sender_of(subject: str) -> tuple[Role, NodeId]:
    """Return the sender of a ``link`` or ``announcement`` subject, which NATS permissions guarantee. Raises ValueError."""
    role, node = subject.rsplit(".", 2)[-2:]
    return Role(role), NodeId(node)


def newcomer_query(mesh: MeshName, newcomer: NodeId | str) -> str:
    """Return the subject on which a newcomer asks auth to announce itself; ``*`` for all newcomers."""
    return f"aimesh.{mesh}.{Role.AUTH}.any.{Role.NEWCOMER}.{newcomer}"


def announcement(mesh: MeshName, role: Role, node: NodeId) -> str:
    return f"aimesh.{mesh}.announce.{role}.{node}"


def announcements(mesh: MeshName, of: Role) -> str:
    return f"aimesh.{mesh}.announce.{of}.*"


def announcement_query(mesh: MeshName) -> str:
    """Return the subject on which a new node asks all services to announce themselves."""
    return f"aimesh.{mesh}.who"


def event(mesh: MeshName, role: Role, node: NodeId, name: str) -> str:
    return f"aimesh.{mesh}.event.{role}.{node}.{name}"


def event_sender(subject: str) -> Role:
    """Return the role that published an ``event``, which NATS permissions guarantee. Raises ValueError."""
    return Role(subject.split(".")[3])


def events(mesh: MeshName) -> str:
    return f"aimesh.{mesh}.event.>"


def micro_endpoint(mesh: MeshName, role: Role, method: str) -> str:
    """Return the subject where stock NATS clients call a method: ``aimesh.<mesh>.rpc.<role>.<method without the service>``."""
    return f"aimesh.{mesh}.rpc.{role}.{method.rpartition('.')[2]}"


def micro_endpoints(mesh: MeshName, role: Role) -> tuple[str, ...]:
    """Return all endpoints of a role. Workers also have those of their service name, ``rpc.inference``."""
    return tuple(f"aimesh.{mesh}.rpc.{name}.*" for name in dict.fromkeys((role, SERVICE_NAMES[role])))


def micro_subjects(role: Role) -> tuple[str, ...]:
    """Return the NATS micro discovery subjects that a service of this role answers."""
    return tuple(
        subject for verb in ("PING", "INFO", "STATS") for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{role}", f"$SRV.{verb}.{role}.*")
    )


def permissions(mesh: MeshName, role: Role, node: NodeId) -> Permissions:
    """Return the permissions of one node's NATS user."""
    if role is Role.OPERATOR:
        return Permissions(
            publish=("$SRV.>", f"aimesh.{mesh}.rpc.>"),
            subscribe=("_INBOX.>", *(announcements(mesh, of) for of in SEES_ANNOUNCEMENTS_OF[role])),
            max_subscriptions=MAX_SUBSCRIPTIONS[role],
        )
    if role is Role.NEWCOMER:
        return Permissions(
            publish=(f"aimesh.{mesh}.{Role.AUTH}.*.{role}.{node}",),
            subscribe=(inbox(mesh, role, node), announcements(mesh, Role.AUTH)),
            max_subscriptions=MAX_SUBSCRIPTIONS[role],
        )
    publish = [f"aimesh.{mesh}.{to}.*.{role}.{node}" for to in SPEAKS_TO[role]]
    subscribe = [inbox(mesh, role, node), *(announcements(mesh, of) for of in SEES_ANNOUNCEMENTS_OF[role])]
    publish.append(announcement_query(mesh))
    if role in SERVICE_ROLES:
        publish += [announcement(mesh, role, node), "_INBOX.>", f"aimesh.{mesh}.event.{role}.{node}.>"]
        subscribe += [announcement_query(mesh), *micro_subjects(role), *micro_endpoints(mesh, role)]
    if role is Role.METRICS:
        subscribe.append(events(mesh))
    if role is Role.AUTH:
        publish.append(f"aimesh.{mesh}.{Role.NEWCOMER}.*.{role}.{node}")
        subscribe.append(newcomer_query(mesh, "*"))
    return Permissions(tuple(publish), tuple(subscribe), MAX_SUBSCRIPTIONS[role])
