"""The token that a node sends with its NATS login, beside the key that it proves: its certificate, or the proof of a ticket. Pure.

A node without either sends none. ``newcomer`` asks only for the right to get a certificate from auth.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from shared import errors
from shared.identity import base64url
from shared.types import NodeId

#: Of the ticket's signature.
PURPOSE = "enroll-nats"
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class CertificateToken:
    certificate: bytes


@dataclass(frozen=True, slots=True)
class NewcomerToken:
    #: Expired; empty if the node never had one.
    certificate: bytes


@dataclass(frozen=True, slots=True)
class TicketToken:
    ticket_id: str
    signature: bytes


def without(nonce: str) -> str:
    """Return no token."""
    return ""


def of_certificate(certificate: bytes) -> str:
    return f"certificate.{base64url.encode(certificate)}"


def of_newcomer(certificate: bytes) -> str:
    return f"newcomer.{base64url.encode(certificate)}"


def of_ticket(ticket_id: str, sign: Callable[[str, bytes], bytes], node: NodeId, nonce: str) -> str:
    """Return the proof of a ticket, for one key on one connection. ``sign`` is the ticket key's; its seed is not in the proof."""
    return f"ticket.{ticket_id}.{base64url.encode(sign(PURPOSE, ticket_text(ticket_id, node, nonce)))}"


def ticket_text(ticket_id: str, node: NodeId, nonce: str) -> bytes:
    """Return what the ticket's key signs."""
    return _encode([1, ticket_id, node, nonce])


def parse(token: str) -> CertificateToken | NewcomerToken | TicketToken | None:
    """Return None for no token. Raises NotCertified for any other text."""
    if not token:
        return None
    kind, *parts = token.split(".")
    try:
        match kind, parts:
            case "certificate", [body]:
                return CertificateToken(base64url.decode(body))
            case "newcomer", [body]:
                return NewcomerToken(base64url.decode(body))
            case "ticket", [ticket_id, signature]:
                return TicketToken(ticket_id, base64url.decode(signature))
    except ValueError:
        pass
    raise errors.NotCertified("the login's token is neither a certificate nor a ticket's proof")
