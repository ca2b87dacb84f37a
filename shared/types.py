"""The ids, roles and value types that all programs share."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, NewType
from uuid import UUID

import msgspec

UserId = NewType("UserId", UUID)
KeyId = NewType("KeyId", UUID)
#: An organization, or a user's personal one, whose id is the user's. Usage, payment and limits belong to tenants.
TenantId = NewType("TenantId", UUID)
#: UUIDv7, created where the request arrives, and the same in the logs, rows and answers of all hops.
RequestId = NewType("RequestId", UUID)
#: The public nkey of a node, ``U…``: 56 characters of base32.
NodeId = NewType("NodeId", str)
#: The public key of a mesh CA as an nkey, ``A…``. The prefix differs, so that it is never mistaken for a node.
AuthorityId = NewType("AuthorityId", str)
MeshName = NewType("MeshName", str)
#: A time with a zone. One without is refused where it arrives: comparing it with another raises.
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
#: 1 credit is 1,000,000 of these.
MicroCredits = NewType("MicroCredits", int)
ModelName = NewType("ModelName", str)
#: What a worker serves once it has joined: a source to pull from, or a file of the machine; empty for nothing.
ModelOfWorker = Annotated[str, msgspec.Meta(max_length=300, pattern=r"^((hf:|oci:/{2}|https:/{2})[^\s,]+|/[^\x00-\x1f,]+\.gguf)?\Z")]
#: A whole API key or access token. Never logged; only auth compares it or looks it up.
Credential = NewType("Credential", str)


class Role(StrEnum):
    """The role of a node. NATS permissions and each method's callers refer to these."""

    AUTH = "auth"
    GATEWAY = "gateway"
    WORKER = "worker"
    METRICS = "metrics"
    WEB = "web"
    CLIENT = "client"
    OPERATOR = "operator"
    #: The backup agent of a stack.
    BACKUP = "backup"
    #: A peer that proved a key but has no certificate yet: it may only ask auth for one.
    NEWCOMER = "newcomer"


SERVICE_ROLES = (Role.AUTH, Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB)

#: Clients wait for these, so they log in first after a restart of NATS.
FIRST_ROLES = (Role.AUTH, Role.GATEWAY, Role.METRICS, Role.WEB)

#: The name of the service that each role runs, as in the package, the settings and the `service` label.
SERVICE_NAMES = {Role.AUTH: "auth", Role.GATEWAY: "gateway", Role.WORKER: "inference", Role.METRICS: "metrics", Role.WEB: "web"}


class UserRole(StrEnum):
    """What a user may do, as opposed to a node's ``Role``."""

    ADMIN = "admin"
    DEVELOPER = "developer"
    USER = "user"
    #: A user who adds their own machines.
    NODE_OWNER = "node-owner"


class Permission(StrEnum):
    """What a user may do. These are also the scopes of API keys, which never exceed the rights of the creator."""

    INFER = "inference:execute"
    READ_MODELS = "model:read"
    WRITE_MODELS = "model:write"
    OWN_NODES = "node:own"
    READ_USAGE = "usage:read"
    READ_SCALING = "scale:read"
    WRITE_KEYS = "key:write"
    WRITE_ACCOUNT = "account:write"
    #: Each request says whose it is; see ``Principal.named_by``. Only of a key that lists it.
    NAME_USERS = "users:name"
    #: With ``NAME_USERS``: also requests of people without an account, as the key's own.
    SERVE_STRANGERS = "users:unknown"
    EVERYTHING = "*"


class Tier(StrEnum):
    """The names of the built-in plans. Those of an account may be any ``PlanName``."""

    FREE = "free"
    PRO = "pro"
    ENTERPRISE = "enterprise"


#: What an account includes and may use: a built-in plan, or one that the configuration adds. A subscription keeps a version, as in `pro@3`.
PlanName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}(@[0-9]{1,9})?\Z")]


class RequestStatus(StrEnum):
    """How a request ended, as in request_logs.status."""

    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    LIMITED = "limited"
    #: The caller must change something: a field, the model, the credits. Not an error of the platform.
    REJECTED = "rejected"


class Ability(StrEnum):
    """What a model can do besides answering text with text."""

    TOOLS = "tools"
    REASONING = "reasoning"
    IMAGES = "images"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    INFILL = "infill"


class LoadPurpose(StrEnum):
    """What a model is loaded for."""

    #: Several slots, each with a moderate context.
    CHATS = "chats"
    #: One slot with a long context before a second one.
    AGENTS = "agents"


class FinishReason(StrEnum):
    """Why a generation ended. An error comes in an error frame instead."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    #: A policy ends the answer before what it refuses.
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class Peer:
    """The node at the other end of a link, verified by the transport and its HELLO."""

    role: Role
    node: NodeId
    #: The certified key: ``node`` itself, or the client profile that the process acts for. Empty on NATS.
    certified: NodeId = NodeId("")
    #: The user responsible for it, from its certificate; empty for the platform's own nodes.
    owner: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    #: The hash of the connection's Noise handshake, which only its two ends know.
    channel: bytes = b""
