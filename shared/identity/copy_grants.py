"""Copy grants: a gateway's statement that a worker may read a file of models from another worker for a while. Pure: bytes in, facts or a
refusal out."""

import msgspec

from shared import errors
from shared.identity import certificates, node_keys
from shared.identity.trust import Trust
from shared.types import NodeId, Role

#: Long enough for most files. Who needs more asks the gateway again.
LIFETIME_SECONDS = 3600
_PURPOSE = "copy-grant"


class CopyGrant(msgspec.Struct, array_like=True, frozen=True):
    version: int
    reader: NodeId
    holder: NodeId
    #: The file's SHA-256.
    digest: bytes
    #: Seconds since 1970.
    not_after: int
    #: The gateway's own, because the holder may have no link to it.
    certificate: bytes
    signature: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(CopyGrant).decode


def issue(gateway: Trust, reader: NodeId, holder: NodeId, digest: bytes, now: float) -> bytes:
    """Return a grant for LIFETIME_SECONDS, signed with the node key of this gateway."""
    unsigned = CopyGrant(1, reader, holder, digest, int(now) + LIFETIME_SECONDS, gateway.certificate)
    return _encode(msgspec.structs.replace(unsigned, signature=gateway.me.sign(_PURPOSE, _encode(unsigned))))


def check(body: bytes, trust: Trust, reader: NodeId, digest: bytes, now: float) -> CopyGrant:
    """Return the grant if ``reader``, whose key was proved, may read the file from us now. Raises NotAllowed."""
    try:
        found = _decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.NotCertified("this is not a copy grant") from error
    if (found.version, found.reader, found.holder, found.digest) != (1, reader, trust.me.id, digest):
        raise errors.NotAllowed("the copy grant is for another node or file")
    if not now - certificates.LEEWAY_SECONDS <= found.not_after <= now + LIFETIME_SECONDS + certificates.LEEWAY_SECONDS:
        raise errors.NotAllowed("the copy grant has expired, or a clock is off", hint="the reader asks its gateway for another one")
    gateway = certificates.check(found.certificate, trust.authorities, now)
    if gateway.role is not Role.GATEWAY:
        raise errors.WrongRole(f"a {gateway.role} may not grant copies")
    for node in (gateway.node, reader):
        trust.check_not_revoked(node)
    if not node_keys.verify(gateway.node, _PURPOSE, _encode(msgspec.structs.replace(found, signature=b"")), found.signature):
        raise errors.NotCertified("the copy grant is not signed by the gateway that it names")
    return found
