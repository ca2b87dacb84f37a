"""Every NATS subject and every Hyperswarm topic of the mesh, who may use which, and who speaks to whom.

The tables below are the only source: ``nats.conf`` is generated from them, ``swarm_link`` refuses by them, and the permission
test walks all of it against a real server. ``m`` is the mesh's name, ``N`` a node's public nkey.
"""

import hashlib
import hmac
from dataclasses import dataclass

from shared.types import SERVICE_NAMES, SERVICE_ROLES, MeshName, NodeId, Role

#: to role -> who may send to it is the reverse of this: from role -> to roles.
SPEAKS_TO: dict[Role, tuple[Role, ...]] = {
    Role.AUTH: (Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT),
    Role.GATEWAY: (Role.AUTH, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT),
    Role.WORKER: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.METRICS: (Role.AUTH, Role.GATEWAY, Role.WORKER, Role.WEB, Role.CLIENT),
    Role.WEB: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.CLIENT: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.OPERATOR: (),
    Role.NEWCOMER: (),
}

_ALL = SERVICE_ROLES
SEES_ANNOUNCEMENTS_OF: dict[Role, tuple[Role, ...]] = {
    Role.AUTH: _ALL,
    Role.GATEWAY: _ALL,
    Role.WORKER: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.METRICS: _ALL,
    Role.WEB: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.CLIENT: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.OPERATOR: _ALL,
    Role.NEWCOMER: (),
}


@dataclass(frozen=True, slots=True)
class MeetingPlace:
    """A Hyperswarm topic: those who announce themselves there are found by those who look there."""

    name: str
    announced_by: tuple[Role, ...]
    looked_up_by: tuple[Role, ...]


#: Whoever belongs together meets at one place at least from either side where both can announce, so that the one that was
#: restarted dials or is dialled at once. Clients announce nowhere, and find nobody whom they may not speak to.
MEETING_PLACES = (
    MeetingPlace("house", (Role.AUTH, Role.GATEWAY), (Role.AUTH, Role.GATEWAY, Role.METRICS, Role.WEB, Role.WORKER, Role.CLIENT)),
    MeetingPlace("workers", (Role.WORKER,), (Role.AUTH, Role.GATEWAY, Role.METRICS)),
    MeetingPlace("metrics", (Role.METRICS,), (Role.AUTH, Role.GATEWAY, Role.WEB, Role.WORKER, Role.CLIENT)),
)


def may_link(one: Role, other: Role) -> bool:
    """Whether two nodes of these roles have anything to say to each other. A newcomer is no user of NATS and not in the table:
    it comes to auth, over Hyperswarm, for a certificate."""
    return other in SPEAKS_TO[one] or {one, other} == {Role.AUTH, Role.NEWCOMER}


def meeting_topic(secret: bytes, place: MeetingPlace) -> bytes:
    """The 32 bytes that the DHT knows a place by. ``secret`` is an epoch's: who does not have it cannot find the place."""
    return _hkdf(secret, b"aimesh/topic/1/" + place.name.encode())


def enrolment_topic(authority: bytes) -> bytes:
    """Where newcomers find auth, from the raw public key of the mesh CA: it is in every ticket, and no secret."""
    return _hkdf(authority, b"aimesh/topic/1/enroll")


def epoch_secret(authority_seed: bytes, epoch: int) -> bytes:
    """An epoch's secret. Only who holds the mesh CA's seed can make it, and so nothing but the number has to be stored."""
    return _hkdf(authority_seed, b"aimesh/topics/1/" + str(epoch).encode())


def _hkdf(secret: bytes, name: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) without a salt, one block of output."""
    key = hmac.digest(bytes(32), secret, hashlib.sha256)
    return hmac.digest(key, name + b"\x01", hashlib.sha256)


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a node's NATS user may do; everything else is denied."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def link(mesh: MeshName, to_role: Role, to_node: NodeId, from_role: Role, from_node: NodeId) -> str:
    """The subject of the messages from one node to another. The server vouches for the last two words."""
    return f"aimesh.{mesh}.{to_role}.{to_node}.{from_role}.{from_node}"


def inbox(mesh: MeshName, role: Role, node: NodeId) -> str:
    """Everything that is sent to one node."""
    return f"aimesh.{mesh}.{role}.{node}.*.*"


def sender_of(subject: str) -> tuple[Role, NodeId]:
    """Who published on a ``link`` or ``announcement`` subject, as NATS permissions vouch for it; raises ValueError."""
    role, node = subject.rsplit(".", 2)[-2:]
    return Role(role), NodeId(node)


def announcement(mesh: MeshName, role: Role, node: NodeId) -> str:
    return f"aimesh.{mesh}.announce.{role}.{node}"


def announcements(mesh: MeshName, of: Role) -> str:
    return f"aimesh.{mesh}.announce.{of}.*"


def who(mesh: MeshName) -> str:
    """A joiner asks here; every service answers at once with its announcement."""
    return f"aimesh.{mesh}.who"


def event(mesh: MeshName, role: Role, node: NodeId, name: str) -> str:
    return f"aimesh.{mesh}.event.{role}.{node}.{name}"


def event_sender(subject: str) -> Role:
    """The role that published an ``event``, as NATS permissions vouch for it; raises ValueError."""
    return Role(subject.split(".")[3])


def events(mesh: MeshName) -> str:
    return f"aimesh.{mesh}.event.>"


def micro_endpoint(mesh: MeshName, role: Role, method: str) -> str:
    """Where a stock NATS client calls a method: ``aimesh.<mesh>.rpc.<role>.<method without the service>``."""
    return f"aimesh.{mesh}.rpc.{role}.{method.rpartition('.')[2]}"


def micro_endpoints(mesh: MeshName, role: Role) -> tuple[str, ...]:
    """All endpoints of a role, under its name and, for workers, under that of their service too: ``rpc.inference`` is the seed's."""
    return tuple(f"aimesh.{mesh}.rpc.{name}.*" for name in dict.fromkeys((role, SERVICE_NAMES[role])))


def micro_subjects(role: Role) -> tuple[str, ...]:
    """The discovery subjects of NATS micro that a service of this role answers."""
    return tuple(
        subject for verb in ("PING", "INFO", "STATS") for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{role}", f"$SRV.{verb}.{role}.*")
    )


def permissions(mesh: MeshName, role: Role, node: NodeId) -> Permissions:
    """The rights of one node's NATS user."""
    if role is Role.OPERATOR:
        return Permissions(
            publish=("$SRV.>", f"aimesh.{mesh}.rpc.>"),
            subscribe=("_INBOX.>", *(announcements(mesh, of) for of in SEES_ANNOUNCEMENTS_OF[role])),
        )
    publish = [f"aimesh.{mesh}.{to}.*.{role}.{node}" for to in SPEAKS_TO[role]]
    subscribe = [inbox(mesh, role, node), *(announcements(mesh, of) for of in SEES_ANNOUNCEMENTS_OF[role])]
    publish.append(who(mesh))
    if role in SERVICE_ROLES:
        publish += [announcement(mesh, role, node), "_INBOX.>", f"aimesh.{mesh}.event.{role}.{node}.>"]
        subscribe += [who(mesh), *micro_subjects(role), *micro_endpoints(mesh, role)]
    if role is Role.METRICS:
        subscribe.append(events(mesh))
    return Permissions(tuple(publish), tuple(subscribe))
