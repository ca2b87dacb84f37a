"""Decide about a login at a NATS server, which asks auth with an auth callout. Pure.

A node proves its key by signing the server's nonce; the server leaves that check to us. What it is comes from its certificate, from a
ticket, or from ``enrollment.json``, the list of the nodes that the operator made. For a certified node nothing is looked up, so that a
server that restarts during a database outage gets its nodes back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from services.auth.nodes import enrollment_rules
from services.auth.nodes.enrollment_rules import KnownNode, KnownTicket
from shared import errors
from shared.api.membership import MemberState
from shared.identity import base64url, certificates, login_tokens, node_keys
from shared.identity.login_tokens import CertificateToken, NewcomerToken, TicketToken
from shared.identity.trust import NEWCOMER_SECONDS
from shared.types import AuthorityId, NodeId, Role

#: A request is some 2 KB, with the longest certificate 7 KB.
_MAX_BYTES = 32 * 1024


class _ServerId(msgspec.Struct, frozen=True):
    id: str


class _ClientInfo(msgspec.Struct, frozen=True):
    #: Of a WebSocket the proxy's: nats-server keeps X-Forwarded-For for its log.
    host: str = ""
    type: str = ""
    nonce: str = ""


class _ConnectOptions(msgspec.Struct, frozen=True):
    nkey: str = ""
    sig: str = ""
    auth_token: str = ""
    #: See ``NatsTransport``.
    name: str = ""


class LoginRequest(msgspec.Struct, frozen=True):
    """What the server tells about the login."""

    server_id: _ServerId
    #: The server's name for this connection's user.
    user_nkey: str
    client_info: _ClientInfo = _ClientInfo()
    connect_opts: _ConnectOptions = _ConnectOptions()

    @property
    def node(self) -> NodeId:
        """Return the key that the client claims to have."""
        return NodeId(self.connect_opts.nkey)

    @property
    def address(self) -> str:
        return self.client_info.host

    @property
    def is_over_web(self) -> bool:
        return self.client_info.type == "websocket"

    @property
    def origin(self) -> str:
        """Return what its logins count for: nobody behind a proxy counts as a neighbor of the proxy."""
        return f"behind {self.address}" if self.is_over_web else self.address


class _Claims(msgspec.Struct, frozen=True):
    nats: LoginRequest


@dataclass(frozen=True, slots=True)
class LoginTrust:
    """What auth knows without asking a store."""

    authorities: tuple[AuthorityId, ...]
    revoked: frozenset[NodeId]
    #: The operator's nodes, from ``enrollment.json``.
    enrolled: Mapping[NodeId, Role]


@dataclass(frozen=True, slots=True)
class Allow:
    role: Role
    node: NodeId
    #: Seconds since 1970; None for a node of ``enrollment.json``, which lasts until it is revoked.
    until: int | None


@dataclass(frozen=True, slots=True)
class Refuse:
    reason: str


@dataclass(frozen=True, slots=True)
class AskStore:
    """The decision needs the node's row, and the ticket's if there is one: see ``decide_newcomer``."""

    ticket: TicketToken | None = None


NOT_SIGNED = Refuse("the login is not signed by the node's key")
#: Worth another decision if ``enrollment.json`` has changed.
NOT_ENROLLED = Refuse("this key is not enrolled, and shows neither a certificate nor a ticket")
_decode = msgspec.json.Decoder(_Claims).decode


def read_request(payload: bytes) -> LoginRequest:
    """Raises ProtocolViolation. The server's signature is not checked: only auth's own login can reach the subject."""
    try:
        if len(payload) > _MAX_BYTES:
            raise ValueError(f"{len(payload)} bytes")
        _, body, _ = payload.decode().split(".")
        return _decode(base64url.decode(body)).nats
    except (ValueError, RecursionError) as error:  # msgspec's and binascii's errors are ValueErrors
        raise errors.ProtocolViolation("this is not a callout of a NATS server") from error


def claimed_role(request: LoginRequest, enrolled: Mapping[NodeId, Role]) -> Role | None:
    """Return what the node says it is, unchecked; None if that can't be read."""
    if (role := enrolled.get(request.node)) is not None:
        return role
    try:
        token = login_tokens.parse(request.connect_opts.auth_token)
        return certificates.read(token.certificate).role if isinstance(token, CertificateToken) else None
    except errors.NotCertified:
        return None


def decide(request: LoginRequest, trust: LoginTrust, now: float) -> Allow | Refuse | AskStore:
    node = request.node
    if not _is_signed(request):
        return NOT_SIGNED
    if node in trust.revoked:
        return Refuse("this node was revoked")
    try:
        return _decide_by_token(node, request.connect_opts.auth_token, trust, now)
    except (errors.NotCertified, errors.CertificateExpired, errors.ClockSkew) as error:
        return Refuse(error.message)


def decide_newcomer(
    request: LoginRequest, token: TicketToken | None, ticket: KnownTicket | None, node: KnownNode | None, now: float
) -> Allow | Refuse:
    """Decide about a node that has no certificate, by the rows of the store."""
    if node is not None and node.state is MemberState.REVOKED:
        return Refuse("this node was revoked")
    if token is None:
        return Refuse("this mesh does not know the node; it needs a ticket") if node is None else _newcomer(request.node, now)
    if ticket is None:
        return Refuse("this mesh does not know the ticket")
    text = login_tokens.ticket_text(ticket.id, request.node, request.client_info.nonce)
    if not node_keys.verify(ticket.public_key, login_tokens.PURPOSE, text, token.signature):
        return Refuse("the ticket's signature is wrong")
    try:
        # A node whose answer was lost comes again with the ticket that it has used.
        if node is None or node.ticket_id != ticket.id:
            enrollment_rules.check_usable(ticket, datetime.fromtimestamp(now, UTC))
        enrollment_rules.check_address(ticket, None if request.is_over_web else request.address)
    except errors.BadTicket as error:
        return Refuse(error.message)
    return _newcomer(request.node, now)


def _decide_by_token(node: NodeId, token: str, trust: LoginTrust, now: float) -> Allow | Refuse | AskStore:
    match login_tokens.parse(token):
        case CertificateToken(body):
            return _decide_certified(node, body, trust, now)
        case NewcomerToken(b""):
            return AskStore()
        case NewcomerToken(body):
            return _decide_renewing(node, body, trust, now)
        case TicketToken() as ticket:
            return AskStore(ticket)
    return _decide_enrolled(node, trust)


def _decide_enrolled(node: NodeId, trust: LoginTrust) -> Allow | Refuse:
    """The operator's node that has no certificate yet, or software that shows none."""
    role = trust.enrolled.get(node)
    return NOT_ENROLLED if role is None else Allow(role, node, None)


def _decide_certified(node: NodeId, body: bytes, trust: LoginTrust, now: float) -> Allow | Refuse:
    certificate = certificates.check(body, trust.authorities, now)
    if certificate.node != node:
        return Refuse("the certificate is for another key")
    return Allow(certificate.role, node, certificate.not_after + certificates.LEEWAY_SECONDS)


def _decide_renewing(node: NodeId, body: bytes, trust: LoginTrust, now: float) -> Allow | Refuse:
    certificate = certificates.check_origin(body, trust.authorities)
    return _newcomer(node, now) if certificate.node == node else Refuse("the certificate is for another key")


def _newcomer(node: NodeId, now: float) -> Allow:
    return Allow(Role.NEWCOMER, node, int(now) + NEWCOMER_SECONDS)


def _is_signed(request: LoginRequest) -> bool:
    try:
        # nats-py sends the standard form, with padding.
        signature = base64url.decode(request.connect_opts.sig.rstrip("="))
    except ValueError:
        return False
    nonce = request.client_info.nonce
    return bool(nonce) and node_keys.verify_bare(request.node, nonce.encode(), signature)
