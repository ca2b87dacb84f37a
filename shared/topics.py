"""Every NATS subject of the mesh, and who may publish or subscribe to it.

The table below is the only source: ``nats.conf`` is generated from it, and the permission test walks all of it against a
real server. ``m`` is the mesh's name, ``N`` a node's public nkey.
"""

from dataclasses import dataclass

from shared.types import SERVICE_ROLES, MeshName, NodeId, Role

#: to role -> who may send to it is the reverse of this: from role -> to roles.
SPEAKS_TO: dict[Role, tuple[Role, ...]] = {
    Role.AUTH: (Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT),
    Role.GATEWAY: (Role.AUTH, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT),
    Role.WORKER: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.METRICS: (Role.AUTH, Role.GATEWAY, Role.WORKER, Role.WEB),
    Role.WEB: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.CLIENT: (Role.AUTH, Role.GATEWAY),
    Role.OPERATOR: (),
}

_ALL = SERVICE_ROLES
SEES_ANNOUNCEMENTS_OF: dict[Role, tuple[Role, ...]] = {
    Role.AUTH: _ALL,
    Role.GATEWAY: _ALL,
    Role.WORKER: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.METRICS: _ALL,
    Role.WEB: (Role.AUTH, Role.GATEWAY, Role.METRICS),
    Role.CLIENT: (Role.AUTH, Role.GATEWAY),
    Role.OPERATOR: _ALL,
}


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
    """Where a stock NATS client calls a unary method: ``aimesh.<mesh>.rpc.<role>.<method without the service>``."""
    return f"aimesh.{mesh}.rpc.{role}.{method.rpartition('.')[2]}"


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
        subscribe += [who(mesh), *micro_subjects(role), f"aimesh.{mesh}.rpc.{role}.*"]
    if role is Role.METRICS:
        subscribe.append(events(mesh))
    return Permissions(tuple(publish), tuple(subscribe))
