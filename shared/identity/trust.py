"""Decide which peers this node trusts, from the CA keys, its own certificate and the revocation list. Pure; the caller brings bytes and the
time.

One object per node, owned by its loop and shared by its transports. A peer's HELLO comes in, a decision goes out.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from shared import errors
from shared.identity import certificates, node_keys
from shared.identity.certificates import Certificate, RevocationList
from shared.protocol import topics, wire
from shared.protocol.wire import Hello
from shared.types import AuthorityId, NodeId, Peer, Role

#: The current CA key and the next one.
MAX_AUTHORITIES = 2


@dataclass(frozen=True, slots=True)
class TrustedPeer:
    """A peer with a valid HELLO."""

    peer: Peer
    #: Seconds since 1970: when the link ends, unless a newer certificate has arrived.
    until: float
    #: Its clock minus ours.
    clock_offset_seconds: float


class Trust:
    def __init__(self, me: node_keys.NodeKey, role: Role, authorities: tuple[AuthorityId, ...] = ()) -> None:
        self.me = me
        self.role = role
        self.authorities = authorities
        #: Our own, encoded; empty until we have one.
        self.certificate = b""
        #: The profile's delegation, if this process has its own key.
        self.delegation = b""
        #: Epoch and secret, from which the topics of that epoch are derived; the current one first.
        self.topics: tuple[tuple[int, bytes], ...] = ()
        #: The revocation list, encoded and decoded; empty and None until one was received.
        self.list_body = b""
        self.list: RevocationList | None = None
        #: A certified peer closed our connection because we were revoked: the list that says so can no longer reach us.
        self.was_revoked = False
        #: Called with the nodes that a new list has revoked.
        self.on_revoked: list[Callable[[frozenset[NodeId]], None]] = []
        self.revoked: frozenset[NodeId] = frozenset()

    @property
    def number(self) -> int:
        """Return the number of our revocation list; 0 for none."""
        return 0 if self.list is None else self.list.number

    @property
    def is_revoked(self) -> bool:
        """Return whether we are revoked, as far as we know."""
        return self.was_revoked or self.me.id in self.revoked

    def standing(self) -> Certificate | None:
        """Return our own certificate, valid or not."""
        return certificates.read(self.certificate) if self.certificate else None

    def has_certificate(self, now: float) -> bool:
        """Return whether peers would accept our certificate now."""
        with contextlib.suppress(errors.NotCertified):
            certificates.check(self.certificate, self.authorities, now)
            return True
        return False

    def take_list(self, body: bytes) -> bool:
        """Accept a revocation list from any peer; return whether it is new. Raises NotCertified. An older one is ignored, because it could
        bring a revoked node back."""
        found = certificates.check_list(body, self.authorities)
        if self.list is not None and (found.number, found.issued_at) <= (self.list.number, self.list.issued_at):
            return False
        self.list_body, self.list = body, found
        fresh, self.revoked = frozenset(found.nodes) - self.revoked, frozenset(found.nodes)
        if fresh:
            for callback in self.on_revoked:
                callback(fresh)
        return True

    def take_successor(self, body: bytes) -> None:
        """Trust the CA key that a trusted one names as its successor. Raises NotCertified."""
        found = certificates.check_succession(body, self.authorities)
        if found.successor not in self.authorities:
            self.authorities = (found.authority, found.successor)[:MAX_AUTHORITIES]

    def hello(self, to: NodeId, link_id: int, software: str, now: float) -> Hello:
        """Return our HELLO for this peer on this link. Without a valid certificate we connect as a newcomer, since renewal only needs the
        key. An expired certificate is still sent, so the peer can say why it refuses."""
        role = self.role
        try:
            certificates.check(self.certificate, self.authorities, now)
        except errors.ClockSkew:
            pass  # ours is behind: it is good by the clocks of the others
        except errors.NotCertified:
            role = Role.NEWCOMER
        sent_at = int(now * 1000)
        unsigned = Hello(
            wire.VERSION,
            role,
            self.me.id,
            sent_at,
            software,
            b"",
            self.certificate,
            self.number,
            self.delegation,
        )
        return msgspec.structs.replace(unsigned, signature=self.me.sign("hello", wire.hello_text(unsigned, to, link_id)))

    def admit(self, hello: Hello, proved: NodeId, link_id: int, now: float) -> TrustedPeer:
        """Return the peer whose key the transport has proven. Raises ProtocolViolation, NotAllowed and what ``certificates`` raises."""
        if hello.version != wire.VERSION:
            raise errors.ProtocolViolation(f"the peer speaks version {hello.version}, we speak {wire.VERSION}: update the older one")
        if hello.node != proved:
            raise errors.NotCertified("the HELLO names a different key than the connection proved")
        self.check_not_revoked(proved)
        if not node_keys.verify(hello.node, "hello", wire.hello_text(hello, self.me.id, link_id), hello.signature):
            raise errors.NotCertified("the HELLO is not signed for this connection")
        offset = hello.sent_at_ms / 1000 - now
        if hello.role is Role.NEWCOMER or not hello.certificate:
            return self._admit_newcomer(hello, now, offset)
        with _naming_the_clock(offset):
            certificate = certificates.check(hello.certificate, self.authorities, now)
        if certificate.role != hello.role:
            raise errors.NotCertified(f"a {certificate.role}'s certificate, shown by a {hello.role}")
        if certificate.node != proved:
            # A delegation admits a process; its link may then last as long as the profile's.
            with _naming_the_clock(offset):
                certificates.check_delegation(hello.delegation, proved, certificate, now)
        self.check_not_revoked(certificate.node)
        if not topics.may_link(self.role, certificate.role):
            raise errors.WrongRole(f"a {self.role} may not connect to a {certificate.role}")
        labels = certificate.labels
        return TrustedPeer(Peer(certificate.role, proved, certificate.node, certificate.owner, labels), certificate.not_after, offset)

    def role_of(self, hello: Hello, proved: NodeId) -> Role | None:
        """Return the role in a certificate of this mesh, valid or not, to explain why a node is missing."""
        with contextlib.suppress(errors.NotCertified):
            certificate = certificates.check_origin(hello.certificate, self.authorities)
            if certificate.node != proved:
                certificates.check_delegation_origin(hello.delegation, proved, certificate)
            return certificate.role
        return None

    def check_not_revoked(self, node: NodeId) -> None:
        """Raises NodeRevoked. For every transport: NATS proves who a node is, but not that it is still allowed."""
        if node in self.revoked:
            raise errors.NodeRevoked("this node was revoked", hint="ask an administrator for a new ticket for the machine")

    def _admit_newcomer(self, hello: Hello, now: float, offset: float) -> TrustedPeer:
        if self.role is not Role.AUTH:
            if hello.certificate:
                with _naming_the_clock(offset):
                    certificates.check(hello.certificate, self.authorities, now)
                    raise errors.CertificateExpired(
                        "the peer says that its certificate has expired", hint="the node renews it automatically"
                    )
            raise errors.NotCertified("the peer shows no certificate", hint="it must join with a ticket")
        return TrustedPeer(Peer(Role.NEWCOMER, hello.node, hello.node), now + NEWCOMER_SECONDS, offset)


#: How long a peer without a certificate may stay: enough for one enrollment.
NEWCOMER_SECONDS = 30


@contextlib.contextmanager
def _naming_the_clock(offset: float) -> Iterator[None]:
    """If the clocks differ, name that as the cause, and not the certificate."""
    try:
        yield
    except (errors.CertificateExpired, errors.ClockSkew) as error:
        if abs(offset) <= certificates.LEEWAY_SECONDS:
            raise
        minutes = abs(offset) / 60
        way = "ahead of" if offset > 0 else "behind"
        raise errors.ClockSkew(f"its clock is {minutes:.0f} min {way} ours", hint="set both clocks, for example with NTP") from error
