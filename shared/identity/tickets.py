"""Tickets: one line with everything needed to find a mesh, to verify it, and to join once. Pure but for the randomness.

A ticket is a key and not a password: the new node signs with it and never sends it. It shows the public half only to an auth service that
the mesh CA in the ticket has certified.
"""

import hashlib
import secrets

import msgspec

from shared import errors
from shared.identity import base64url, node_keys
from shared.types import AuthorityId, MeshName, ModelOfWorker, NodeId

PREFIX = "aip_join_"
#: Longer lines are something else, pasted by mistake.
_MAX_CHARACTERS = 4096
_CHECKSUM_BYTES = 4


class Ticket(msgspec.Struct, array_like=True, frozen=True):
    version: int
    #: Identifies the row in auth's table; not secret.
    id: str
    #: 32 raw bytes: the secret that gives the right to use the ticket.
    seed: bytes
    #: The mesh CA's public key, raw.
    authority: bytes
    mesh: MeshName
    #: DHT nodes as host:port, by address or DNS name; none means the public DHT.
    bootstrap: tuple[str, ...] = ()
    #: Raw public keys of the mesh's blind relays.
    relays: tuple[bytes, ...] = ()
    #: URLs of the mesh's NATS servers.
    nats: tuple[str, ...] = ()
    #: See ``membership.CreateTicket``. None for a machine that decides alone.
    model: ModelOfWorker = ""
    accept_models: bool | None = None
    #: Whether nodes try Hyperswarm beside NATS. They always do if there is no NATS server.
    beside: bool = False

    @property
    def authority_id(self) -> AuthorityId:
        return node_keys.authority_of(self.authority)

    @property
    def key(self) -> node_keys.NodeKey:
        return node_keys.NodeKey(node_keys.seed_of(self.seed))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Ticket).decode


def new(
    authority: AuthorityId,
    mesh: MeshName,
    *,
    bootstrap: tuple[str, ...] = (),
    relays: tuple[bytes, ...] = (),
    nats: tuple[str, ...] = (),
    model: str = "",
    accept_models: bool | None = None,
    beside: bool = False,
) -> Ticket:
    """Return a ticket with an id and a key from the system's CSPRNG."""
    raw = node_keys.raw_of(authority)
    return Ticket(1, secrets.token_hex(8), secrets.token_bytes(32), raw, mesh, bootstrap, relays, nats, model, accept_models, beside)


def render(ticket: Ticket) -> str:
    body = _encode(ticket)
    return PREFIX + base64url.encode(body + _checksum(body))


def parse(text: str) -> Ticket:
    """Raises BadTicket."""
    text = "".join(text.split())  # terminals and mails break long lines
    if not text.startswith(PREFIX):
        raise errors.BadTicket(f"a ticket begins with {PREFIX}", hint="create one with `aicli admin tickets create`")
    if len(text) > _MAX_CHARACTERS:
        raise _not_whole()
    encoded = text.removeprefix(PREFIX)
    try:
        raw = base64url.decode(encoded)
        body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        # In base64 several texts encode the same bytes; only the printed one is valid.
        if _checksum(body) != checksum or base64url.encode(raw) != encoded:
            raise _not_whole()
        found = _decode(body)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise _not_whole() from error
    if found.version != 1:
        raise errors.BadTicket("the ticket was created by a newer version of aimesh", hint="update aimesh on this machine")
    if len(found.seed) != 32 or len(found.authority) != 32 or any(len(key) != 32 for key in found.relays):
        raise _not_whole()
    return found


def use_text(ticket_id: str, newcomer: NodeId, auth: NodeId, channel: bytes) -> bytes:
    """Return what the ticket's key and the new node's key sign: this use, at this auth, on this connection, so the signatures are worthless
    elsewhere. ``channel`` is the hash of the Noise handshake, to which both sides contributed randomness."""
    return _encode([1, ticket_id, newcomer, auth, channel])


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]


def _not_whole() -> errors.BadTicket:
    return errors.BadTicket("the ticket is incomplete", hint="copy the line again, from aip_join_ to its end")
