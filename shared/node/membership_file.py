"""What a node keeps of its mesh on disk, beside its key: certificate, revocation list, and how to find the others again.

Nothing in it is of use without the node's key, and all of it comes anew from auth; but the revocation list must not be
forgotten by a restart, and a box that was asleep for a week has to find its way back.
"""

from pathlib import Path

import msgspec

from shared import errors
from shared.api.membership import Membership, TopicSecret
from shared.identity import private_file
from shared.identity.trust import Trust
from shared.types import AuthorityId, MeshName, Role

#: Two epochs, two CA keys, a list of 10,000 nodes.
_MAX_BYTES = 4 * 1024 * 1024


class MembershipFile(msgspec.Struct, frozen=True, rename="camel"):
    """The file: JSON, bytes in base64."""

    mesh: MeshName
    role: Role
    certificate: bytes = b""
    revocations: bytes = b""
    authorities: tuple[AuthorityId, ...] = ()
    topics: tuple[TopicSecret, ...] = ()
    bootstrap: tuple[str, ...] = ()
    relays: tuple[bytes, ...] = ()
    #: DHT nodes that were there lately, host:port, and when, in seconds since 1970.
    nodes: tuple[str, ...] = ()
    nodes_seen_at: float = 0.0
    #: Where ``bootstrap`` was before, newest first: asked while nobody at the present addresses answers.
    older_bootstrap: tuple[str, ...] = ()


#: What was there longer ago than this is most likely gone.
NODES_LAST_SECONDS = 24 * 3600.0
#: Present and older nodes together; each costs packets while nobody answers.
MAX_BOOTSTRAP = 16

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(MembershipFile).decode


def of(membership: Membership, before: MembershipFile | None = None) -> MembershipFile:
    """What of auth's answer is kept, with the DHT nodes that were known before."""
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
    )


def _older_bootstrap(present: tuple[str, ...], before: MembershipFile) -> tuple[str, ...]:
    former = dict.fromkeys((*before.bootstrap, *before.older_bootstrap))
    return tuple(node for node in former if node not in present)[: max(0, MAX_BOOTSTRAP - len(present))]


def load(path: Path) -> MembershipFile | None:
    """None where there is no such file; raises BadSettings for one that cannot be read or is not one."""
    try:
        if path.stat().st_mode & 0o077:
            raise errors.BadSettings(f"{path} can be read by others", hint=f"chmod 600 {path}")
        body = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise errors.BadSettings(f"cannot read {path}: {error.strerror}") from error
    try:
        if len(body) > _MAX_BYTES:
            raise ValueError(f"{len(body)} bytes")
        return _decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise errors.BadSettings(f"{path} is damaged", hint="delete it; a node in the house gets all of it anew") from error


def save(path: Path, kept: MembershipFile) -> None:
    """Put it in place whole or not at all, 0600; raises OSError."""
    private_file.replace(path, _encode(kept), synced=True)


def nodes_of(kept: MembershipFile, now: float) -> tuple[str, ...]:
    """The DHT nodes that may still be there."""
    return kept.nodes if 0 <= now - kept.nodes_seen_at <= NODES_LAST_SECONDS else ()


def believe(trust: Trust, kept: MembershipFile) -> None:
    """Take over into ``trust`` what was kept. Raises NotCertified if the list is not of this mesh: the file was tampered with."""
    trust.authorities = kept.authorities
    trust.certificate = kept.certificate
    trust.topics = tuple((secret.epoch, secret.secret) for secret in kept.topics)
    if kept.revocations:
        trust.take_list(kept.revocations)
