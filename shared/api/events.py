"""Domain events: hints and counts for whoever listens, published once and never the only copy of anything."""

from datetime import datetime

import msgspec

from shared.types import KeyId, ModelName, NodeId, RequestId, RequestStatus, UserId


class _Event(msgspec.Struct, frozen=True, rename="camel", tag_field="event"):
    at: datetime


class UserRegistered(_Event, frozen=True, tag="user.registered"):
    user_id: UserId


class KeyCreated(_Event, frozen=True, tag="key.created"):
    key_id: KeyId
    user_id: UserId


class KeyRevoked(_Event, frozen=True, tag="key.revoked"):
    key_id: KeyId
    user_id: UserId


class RequestCompleted(_Event, frozen=True, tag="request.completed"):
    request_id: RequestId
    #: None for a request that was refused before anybody was recognised.
    user_id: UserId | None
    model: ModelName | None
    status: RequestStatus
    tokens: int
    duration_ms: int


class WorkerJoined(_Event, frozen=True, tag="worker.joined"):
    node: NodeId
    models: tuple[ModelName, ...]


class WorkerLost(_Event, frozen=True, tag="worker.lost"):
    node: NodeId
    why: str


Event = UserRegistered | KeyCreated | KeyRevoked | RequestCompleted | WorkerJoined | WorkerLost
