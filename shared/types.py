"""The ids, roles and value objects that every program shares."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType
from uuid import UUID

UserId = NewType("UserId", UUID)
KeyId = NewType("KeyId", UUID)
#: An organisation, or the personal one of a user, whose id is then the user's. What is used, paid and limited is a tenant's.
TenantId = NewType("TenantId", UUID)
#: UUIDv7, made once at the door that a request came in by; the same in logs, rows and answers of all hops.
RequestId = NewType("RequestId", UUID)
#: The public nkey of a node, ``U…``: 56 characters of base32.
NodeId = NewType("NodeId", str)
#: The public key of a mesh CA as an nkey, ``A…``: another prefix, so that it is never taken for a node.
AuthorityId = NewType("AuthorityId", str)
MeshName = NewType("MeshName", str)
#: Money is whole numbers: 1 credit is 1,000,000 of these.
MicroCredits = NewType("MicroCredits", int)
ModelName = NewType("ModelName", str)
#: An API key or an access token, whole. Never logged; compare and look up only inside auth.
Credential = NewType("Credential", str)


class Role(StrEnum):
    """What a node may be; NATS permissions and each method's callers speak of these."""

    AUTH = "auth"
    GATEWAY = "gateway"
    WORKER = "worker"
    METRICS = "metrics"
    WEB = "web"
    CLIENT = "client"
    OPERATOR = "operator"
    #: A peer that proved a key and holds no certificate (yet): it may ask auth for one, and nothing else.
    NEWCOMER = "newcomer"


#: The roles that are one of the five services; the others only call.
SERVICE_ROLES = (Role.AUTH, Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB)

#: The name of the service that a role runs: the word of the package, the settings and the `service` label.
SERVICE_NAMES = {Role.AUTH: "auth", Role.GATEWAY: "gateway", Role.WORKER: "inference", Role.METRICS: "metrics", Role.WEB: "web"}


class UserRole(StrEnum):
    """What a person may do, as opposed to what a node may do."""

    ADMIN = "admin"
    DEVELOPER = "developer"
    USER = "user"
    #: A user who lends machines of their own.
    NODE_OWNER = "node-owner"


class Tier(StrEnum):
    """What a person has paid for; the gateway says what each means."""

    FREE = "free"
    PRO = "pro"
    ENTERPRISE = "enterprise"


class RequestStatus(StrEnum):
    """How a request ended, as request_logs.status has it."""

    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    LIMITED = "limited"
    #: Its caller has to change something: a field, the model's name, the credits. No error of the platform.
    REJECTED = "rejected"


class FinishReason(StrEnum):
    """Why a generation ended; ``error`` comes with an error frame instead of a usage."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Peer:
    """The node at the other end of a link, as the transport and its HELLO vouch for it."""

    role: Role
    node: NodeId
    #: The certified key: ``node`` itself, or the client profile that this process speaks for. Empty on NATS.
    certified: NodeId = NodeId("")
    #: The user who answers for it, by its certificate; empty for the house.
    owner: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    #: What both ends of this very connection know and nobody else can have made: the hash of its Noise handshake.
    channel: bytes = b""
