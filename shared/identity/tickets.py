"""Tickets: one line that carries all that is needed to find a mesh, to recognise it, and to be let in once. Pure.

A ticket is a key and not a password: the newcomer signs with it, and it never crosses the wire. It shows its public half
to nobody but an auth service that the mesh CA in the ticket has certified.
"""

import base64
import hashlib

import msgspec

from shared import errors
from shared.identity import node_keys
from shared.types import AuthorityId, MeshName, NodeId

PREFIX = "aip_join_"
#: A longer line is something else that was pasted.
_MAX_CHARACTERS = 4096
_CHECKSUM_BYTES = 4


class Ticket(msgspec.Struct, array_like=True, frozen=True):
    version: int
    #: Names the row in auth's table; no secret.
    id: str
    #: 32 raw bytes; whoever has them may use the ticket.
    seed: bytes
    #: The mesh CA's public key, raw.
    authority: bytes
    mesh: MeshName
    #: DHT nodes as host:port, by address or DNS name; none means the public DHT.
    bootstrap: tuple[str, ...] = ()
    #: Raw public keys of the mesh's blind relays.
    relays: tuple[bytes, ...] = ()

    @property
    def authority_id(self) -> AuthorityId:
        return node_keys.authority_of(self.authority)

    @property
    def key(self) -> node_keys.NodeKey:
        """The key that signs for it."""
        return node_keys.NodeKey(node_keys.seed_of(self.seed))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Ticket).decode


def render(ticket: Ticket) -> str:
    body = _encode(ticket)
    return PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")


def parse(text: str) -> Ticket:
    """Raises BadTicket for what is not a whole ticket."""
    text = "".join(text.split())  # terminals and mails break long lines
    if not text.startswith(PREFIX):
        raise errors.BadTicket(f"a ticket begins with {PREFIX}", hint="aicli admin tickets create makes one")
    if len(text) > _MAX_CHARACTERS:
        raise _not_whole()
    encoded = text.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        # Base64 lets several texts stand for the same bytes; only the one that was printed is the ticket.
        if _checksum(body) != checksum or base64.urlsafe_b64encode(raw).decode().rstrip("=") != encoded:
            raise _not_whole()
        found = _decode(body)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise _not_whole() from error
    if found.version != 1:
        raise errors.BadTicket("the ticket is of a newer aimesh than this", hint="update aimesh on this machine")
    if len(found.seed) != 32 or len(found.authority) != 32 or any(len(key) != 32 for key in found.relays):
        raise _not_whole()
    return found


def use_text(ticket_id: str, newcomer: NodeId, auth: NodeId, channel: bytes) -> bytes:
    """What the ticket's key and the newcomer's key sign: this use, at this auth, on this connection, so that it is worth
    nothing anywhere else. ``channel`` is the hash of the Noise handshake, to which both sides gave their randomness."""
    return _encode([1, ticket_id, newcomer, auth, channel])


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]


def _not_whole() -> errors.BadTicket:
    return errors.BadTicket("the ticket was not copied whole", hint="copy the line again, from aip_join_ to its end")
