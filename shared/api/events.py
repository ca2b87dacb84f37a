"""Domain events: notifications that are published once. They are never the only copy of a fact."""

import msgspec

from shared.types import KeyId, ModelName, Moment, NodeId, RequestId, RequestStatus, Role, UserId


class _DomainEvent(msgspec.Struct, frozen=True, rename="camel", tag_field="event"):
    at: Moment


class UserRegistered(_DomainEvent, frozen=True, tag="user.registered"):
    user_id: UserId


class KeyCreated(_DomainEvent, frozen=True, tag="key.created"):
    key_id: KeyId
    user_id: UserId


class KeyRevoked(_DomainEvent, frozen=True, tag="key.revoked"):
    key_id: KeyId
    user_id: UserId


class RequestCompleted(_DomainEvent, frozen=True, tag="request.completed"):
    request_id: RequestId
    #: None for a request that was refused before authentication.
    user_id: UserId | None
    model: ModelName | None
    status: RequestStatus
    tokens: int
    duration_ms: int


class WorkerJoined(_DomainEvent, frozen=True, tag="worker.joined"):
    node: NodeId
    models: tuple[ModelName, ...]


class WorkerLeft(_DomainEvent, frozen=True, tag="worker.lost"):
    node: NodeId
    why: str


#: Which service may publish each event. NATS itself would allow any node to publish any event.
PUBLISHED_BY: dict[type[_DomainEvent], Role] = {
    UserRegistered: Role.AUTH,
    KeyCreated: Role.AUTH,
    KeyRevoked: Role.AUTH,
    RequestCompleted: Role.GATEWAY,
    WorkerJoined: Role.GATEWAY,
    WorkerLeft: Role.GATEWAY,
}

Event = UserRegistered | KeyCreated | KeyRevoked | RequestCompleted | WorkerJoined | WorkerLeft
