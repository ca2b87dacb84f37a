"""The file with a node's membership, beside its key: certificate, revocation list, and how to find the other nodes.

It is useless without the node's key, and auth can provide it again. But a restart must not forget the revocation list, and a machine
that was asleep for a week must find its way back.
"""

from pathlib import Path

import msgspec

from shared import errors
from shared.api.membership import Membership, TopicSecret
from shared.identity import certificates, node_keys, private_file
from shared.identity.tickets import Ticket
from shared.identity.trust import Trust
from shared.types import AuthorityId, MeshName, NodeId, Role

_MAX_BYTES = 4 * 1024 * 1024


class MembershipFile(msgspec.Struct, frozen=True, rename="camel"):
    """The file's content: JSON, with bytes in base64."""

    mesh: MeshName
    role: Role
    certificate: bytes = b""
    revocations: bytes = b""
    authorities: tuple[AuthorityId, ...] = ()
    topics: tuple[TopicSecret, ...] = ()
    bootstrap: tuple[str, ...] = ()
    relays: tuple[bytes, ...] = ()
    #: DHT nodes (host:port) that were recently online, and when, in seconds since 1970.
    nodes: tuple[str, ...] = ()
    nodes_seen_at: float = 0.0
    #: Former values of ``bootstrap``, newest first, tried while the current ones do not answer.
    older_bootstrap: tuple[str, ...] = ()
    #: URLs of the NATS servers, of the ticket; empty for a node that joined over Hyperswarm or has NATS_URL.
    nats: tuple[str, ...] = ()
    #: Of the ticket; see ``Ticket``.
    model: str = ""
    #: The owner may change it.
    accept_models: bool | None = None
    #: Nobody answers a revoked node, so it would not learn it again after a restart.
    was_revoked: bool = False
    #: Of the ticket: Hyperswarm is tried beside NATS.
    beside: bool = False


NODES_LAST_SECONDS = 24 * 3600.0
#: Current and older nodes together. Each costs packets while none answers.
MAX_BOOTSTRAP = 16

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(MembershipFile).decode


def of(membership: Membership, before: MembershipFile | None = None) -> MembershipFile:
    """Return what to save from auth's answer, with the DHT nodes known before."""
    return MembershipFile(
        membership.mesh,
        membership.role,
        membership.certificate,
        membership.revocations,
        membership.authorities,
        membership.topics,
        membership.bootstrap,
        membership.relays,
        () if before is None else before.nodes,
        0.0 if before is None else before.nodes_seen_at,
        () if before is None else _older_bootstrap(membership.bootstrap, before),
        () if before is None else before.nats,
        "" if before is None else before.model,
        None if before is None else before.accept_models,
        beside=before is not None and before.beside,
    )


def with_choices(kept: MembershipFile, ticket: Ticket) -> MembershipFile:
    """Return the membership with what the ticket's creator chose for the machine."""
    return msgspec.structs.replace(kept, model=ticket.model, accept_models=ticket.accept_models)


def by_ticket(kept: MembershipFile, ticket: Ticket) -> MembershipFile:
    """Return the membership with what only the ticket says, also where to find NATS."""
    return msgspec.structs.replace(with_choices(kept, ticket), nats=ticket.nats, beside=ticket.beside)


def _older_bootstrap(present: tuple[str, ...], before: MembershipFile) -> tuple[str, ...]:
    former = dict.fromkeys((*before.bootstrap, *before.older_bootstrap))
    return tuple(node for node in former if node not in present)[: max(0, MAX_BOOTSTRAP - len(present))]


def load(path: Path) -> MembershipFile | None:
    """Return None if there is no file. Raises BadSettings if it cannot be read or is invalid."""
    try:
        body = node_keys.read_private(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise errors.BadSettings(f"cannot read {path}: {error.strerror}") from error
    try:
        if len(body) > _MAX_BYTES:
            raise ValueError(f"{len(body)} bytes")
        return _decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise errors.BadSettings(f"{path} is damaged", hint="delete it; a node that uses NATS gets its contents from auth again") from error


def for_key(membership: MembershipFile, node: NodeId) -> MembershipFile:
    """Return what is left of the membership if the node's key was lost and replaced: peers refuse the certificate of the lost key."""
    try:
        is_ours = not membership.certificate or certificates.read(membership.certificate).node == node
    except errors.NotCertified:
        is_ours = False
    return membership if is_ours else msgspec.structs.replace(membership, certificate=b"", was_revoked=False)


def save(path: Path, membership: MembershipFile) -> None:
    """Write the file atomically with mode 0600. Raises OSError."""
    private_file.replace(path, _encode(membership), synced=True)


def nodes_of(membership: MembershipFile, now: float) -> tuple[str, ...]:
    """Return the DHT nodes that may still be online."""
    return membership.nodes if 0 <= now - membership.nodes_seen_at <= NODES_LAST_SECONDS else ()


def load_into(trust: Trust, membership: MembershipFile) -> None:
    """Load the saved membership into ``trust``. Raises NotCertified if the file was tampered with: the list is another mesh's."""
    trust.authorities = membership.authorities
    trust.certificate = membership.certificate
    trust.was_revoked = membership.was_revoked
    trust.topics = tuple((secret.epoch, secret.secret) for secret in membership.topics)
    if membership.revocations:
        trust.take_list(membership.revocations)
