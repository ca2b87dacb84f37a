"""Signed statements: certificates of nodes, delegations of client profiles, and the revocation list. Pure: bytes in, facts or a refusal
out.

Everything signed is canonical msgpack: arrays of fixed fields, so that equal content has equal bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from shared import errors
from shared.amounts import show_duration
from shared.identity import node_keys
from shared.types import AuthorityId, NodeId, Role

#: Allowed difference between the clocks of two machines.
LEEWAY_SECONDS = 60
#: Certificates are valid from a little before they were issued, for peers whose clock is behind.
BACKDATED_SECONDS = 600
LIFETIME_SECONDS = {Role.WORKER: 24 * 3600, Role.CLIENT: 24 * 3600}
SERVICE_LIFETIME_SECONDS = 7 * 24 * 3600
DELEGATION_SECONDS = 600
#: An unconfirmed list of this age is reported as degraded; certificates stay valid.
LIST_IS_OLD_AFTER_SECONDS = 600
#: A key stays on the list until no certificate of it can be valid.
LISTED_SECONDS = SERVICE_LIFETIME_SECONDS + 3600
#: More than this in one certificate belongs in a database.
MAX_LABELS = 16
#: Of the workers of a machine beside its first one, whose id it has. Nobody can give it: other labels begin with a letter or a digit.
MACHINE_LABEL = "@machine"
#: It is sent in a HELLO, which has 4 KiB together with a delegation and two signatures.
MAX_CERTIFICATE_BYTES = 3 * 1024
#: The list is sent whole: 2,000 keys are 70 KB.
MAX_LISTED = 10_000
OF_ANOTHER_MESH = "the certificate belongs to another mesh"

Word = Annotated[str, msgspec.Meta(max_length=100)]


class Certificate(msgspec.Struct, array_like=True, frozen=True):
    """The mesh CA's statement that a key is a node with a role, until ``not_after``."""

    version: int
    node: NodeId
    role: Role
    #: The user responsible for it; empty for a node of the operator.
    owner: Word
    labels: Annotated[tuple[tuple[Word, Word], ...], msgspec.Meta(max_length=MAX_LABELS)]
    #: Seconds since 1970.
    not_before: int
    not_after: int
    authority: AuthorityId
    signature: bytes = b""


class Delegation(msgspec.Struct, array_like=True, frozen=True):
    """A client profile's statement that a process with its own key acts for it."""

    version: int
    node: NodeId
    profile: NodeId
    not_after: int
    signature: bytes = b""


class RevocationList(msgspec.Struct, array_like=True, frozen=True):
    """The revoked keys. The number grows with every change, ``issued_at`` with every confirmation."""

    version: int
    number: int
    issued_at: int
    #: The epoch of the topic secrets.
    epoch: int
    nodes: Annotated[tuple[NodeId, ...], msgspec.Meta(max_length=MAX_LISTED)]
    authority: AuthorityId
    signature: bytes = b""


class Succession(msgspec.Struct, array_like=True, frozen=True):
    """The current CA key's statement that another one is its successor."""

    version: int
    authority: AuthorityId
    successor: AuthorityId
    signature: bytes = b""


Signed = TypeVar("Signed", Certificate, Delegation, RevocationList, Succession)

_encode = msgspec.msgpack.Encoder().encode
_decode_certificate = msgspec.msgpack.Decoder(Certificate).decode
_decode_delegation = msgspec.msgpack.Decoder(Delegation).decode
_decode_list = msgspec.msgpack.Decoder(RevocationList).decode
_decode_succession = msgspec.msgpack.Decoder(Succession).decode
_MALFORMED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Subject:
    node: NodeId
    role: Role
    owner: str = ""
    labels: tuple[tuple[str, str], ...] = ()


def lifetime_seconds(role: Role) -> int:
    return LIFETIME_SECONDS.get(role, SERVICE_LIFETIME_SECONDS)


def issue(authority: node_keys.Authority, subject: Subject, now: float) -> bytes:
    """Raises BadRequest for labels that don't fit: the node couldn't send its HELLO."""
    start, end = int(now) - BACKDATED_SECONDS, int(now) + lifetime_seconds(subject.role)
    labels = tuple(sorted(subject.labels))
    unsigned = Certificate(1, subject.node, subject.role, subject.owner, labels, start, end, authority.id)
    body = _encode(msgspec.structs.replace(unsigned, signature=authority.sign("certificate", _encode(unsigned))))
    if len(body) > MAX_CERTIFICATE_BYTES or len(labels) > MAX_LABELS:
        raise errors.BadRequest(
            f"a certificate with these labels has {len(body)} bytes, the limit is {MAX_CERTIFICATE_BYTES}",
            hint=f"give the node at most {MAX_LABELS} labels, and shorter ones",
        )
    return body


def delegate(profile: node_keys.NodeKey, node: NodeId, now: float) -> bytes:
    unsigned = Delegation(1, node, profile.id, int(now) + DELEGATION_SECONDS)
    return _encode(msgspec.structs.replace(unsigned, signature=profile.sign("delegation", _encode(unsigned))))


def issue_list(authority: node_keys.Authority, number: int, epoch: int, nodes: tuple[NodeId, ...], now: float) -> bytes:
    unsigned = RevocationList(1, number, int(now), epoch, tuple(sorted(nodes)), authority.id)
    return _encode(msgspec.structs.replace(unsigned, signature=authority.sign("revocations", _encode(unsigned))))


def name_successor(authority: node_keys.Authority, successor: AuthorityId) -> bytes:
    unsigned = Succession(1, authority.id, successor)
    return _encode(msgspec.structs.replace(unsigned, signature=authority.sign("succession", _encode(unsigned))))


def read(body: bytes) -> Certificate:
    """Decode a certificate without checking it. Raises NotCertified."""
    try:
        if len(body) > MAX_CERTIFICATE_BYTES:
            raise errors.NotCertified(f"a certificate of {len(body)} bytes is too long")
        return _decode_certificate(body)
    except _MALFORMED as error:
        raise errors.NotCertified("this is not a certificate", hint="join the mesh with a ticket") from error


def check_origin(body: bytes, authorities: tuple[AuthorityId, ...]) -> Certificate:
    """Read a certificate of this mesh, valid now or not. Raises NotCertified."""
    found = read(body)
    if not _is_by_one_of(authorities, found, "certificate"):
        raise errors.NotCertified(OF_ANOTHER_MESH, hint="join this mesh with one of its tickets")
    if found.role is Role.NEWCOMER:
        raise errors.NotCertified("a certificate cannot have the role newcomer")
    return found


def check(body: bytes, authorities: tuple[AuthorityId, ...], now: float) -> Certificate:
    """Read a certificate of this mesh that is valid now. Raises NotCertified, CertificateExpired and ClockSkew."""
    found = check_origin(body, authorities)
    if now > found.not_after + LEEWAY_SECONDS:
        ago = show_duration(now - found.not_after)
        raise errors.CertificateExpired(f"the certificate expired {ago} ago", hint="the node renews it automatically when it reaches auth")
    if now < found.not_before - LEEWAY_SECONDS:
        behind = show_duration(found.not_before + BACKDATED_SECONDS - now)
        raise errors.ClockSkew(f"the certificate is from the future: a clock is {behind} off", hint="set both clocks, for example with NTP")
    return found


def check_delegation_origin(body: bytes, node: NodeId, certificate: Certificate) -> Delegation:
    """Read the certified profile's delegation for ``node``, valid now or not. Raises NotCertified."""
    found = _decoded(_decode_delegation, body, "this is not a delegation")
    if certificate.role is not Role.CLIENT:
        raise errors.NotCertified(f"a {certificate.role} cannot delegate: only clients can")
    is_right = found.version == 1 and found.node == node and found.profile == certificate.node
    if not is_right or not node_keys.verify(found.profile, "delegation", _text_of(found), found.signature):
        raise errors.NotCertified("the delegation is for another key, or of another profile")
    return found


def check_delegation(body: bytes, node: NodeId, certificate: Certificate, now: float) -> Delegation:
    """Read the certified profile's delegation for ``node`` that is valid now. Raises NotCertified, CertificateExpired and ClockSkew."""
    found = check_delegation_origin(body, node, certificate)
    if now > found.not_after + LEEWAY_SECONDS:
        raise errors.CertificateExpired(f"the delegation ended {show_duration(now - found.not_after)} ago", hint="repeat the command")
    if found.not_after > now + DELEGATION_SECONDS + LEEWAY_SECONDS:
        raise errors.ClockSkew(
            f"a clock is {show_duration(found.not_after - DELEGATION_SECONDS - now)} off", hint="set both clocks, for example with NTP"
        )
    return found


def check_list(body: bytes, authorities: tuple[AuthorityId, ...]) -> RevocationList:
    """Read a revocation list of this mesh. Raises NotCertified."""
    found = _decoded(_decode_list, body, "this is not a revocation list")
    if not _is_by_one_of(authorities, found, "revocations"):
        raise errors.NotCertified("the revocation list belongs to another mesh")
    return found


def check_succession(body: bytes, authorities: tuple[AuthorityId, ...]) -> Succession:
    """Read a trusted CA key's statement about its successor. Raises NotCertified."""
    found = _decoded(_decode_succession, body, "this names no successor")
    if not _is_by_one_of(authorities, found, "succession"):
        raise errors.NotCertified("no CA of this mesh has named the successor")
    return found


def _decoded(decode: Callable[[bytes], Signed], body: bytes, otherwise: str) -> Signed:
    try:
        return decode(body)
    except _MALFORMED as error:
        raise errors.NotCertified(otherwise) from error


def _is_by_one_of(authorities: tuple[AuthorityId, ...], found: Certificate | RevocationList | Succession, purpose: str) -> bool:
    is_ours = found.version == 1 and found.authority in authorities
    return is_ours and node_keys.verify_authority(found.authority, purpose, _text_of(found), found.signature)


def _text_of(found: Certificate | Delegation | RevocationList | Succession) -> bytes:
    """Return what the signature covers: the statement with an empty signature."""
    return _encode(msgspec.structs.replace(found, signature=b""))
