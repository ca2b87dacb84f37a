"""The token that a node sends with its NATS login, beside the key that it proves: its certificate, or the proof of a ticket. Pure.

A node without either sends none. ``newcomer`` asks only for the right to get a certificate from auth.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from shared import errors
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
    return f"certificate.{_text(certificate)}"


def of_newcomer(certificate: bytes) -> str:
    return f"newcomer.{_text(certificate)}"


def of_ticket(ticket_id: str, sign: Callable[[str, bytes], bytes], node: NodeId, nonce: str) -> str:
    """Return the proof of a ticket, for one key on one connection. ``sign`` is the ticket key's; its seed is not in the proof."""
    return f"ticket.{ticket_id}.{_text(sign(PURPOSE, ticket_text(ticket_id, node, nonce)))}"


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
                return CertificateToken(_bytes(body))
            case "newcomer", [body]:
                return NewcomerToken(_bytes(body))
            case "ticket", [ticket_id, signature]:
                return TicketToken(ticket_id, _bytes(signature))
    except (binascii.Error, ValueError):
        pass
    raise errors.NotCertified("the login's token is neither a certificate nor a ticket's proof")


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
