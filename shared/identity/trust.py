"""Whom this node believes: the mesh CAs, its own certificate, and who is cut off. Pure; the shell brings bytes and the time.

One object per node, owned by its loop and shared by its transports. A peer's HELLO comes in, a decision goes out.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from shared import errors
from shared.discovery import topics
from shared.frames import wire
from shared.frames.wire import Hello
from shared.identity import certificates, node_keys
from shared.identity.certificates import Certificate, RevocationList
from shared.types import AuthorityId, NodeId, Peer, Role

#: The CA key of now and the one after it.
MAX_AUTHORITIES = 2


@dataclass(frozen=True, slots=True)
class TrustedPeer:
    """A peer whose HELLO was good."""

    peer: Peer
    #: Seconds since 1970: the link ends then, unless a newer certificate has come.
    until: float
    #: Its clock minus ours.
    clock_offset_seconds: float


class Trust:
    def __init__(self, me: node_keys.NodeKey, role: Role, authorities: tuple[AuthorityId, ...] = ()) -> None:
        self.me = me
        self.role = role
        self.authorities = authorities
        #: Our own, as it travels; empty until we have one.
        self.certificate = b""
        #: Of the profile that this process speaks for, where it has a key of its own.
        self.delegation = b""
        #: Epoch and secret, from which the meeting places of that epoch are derived; the current one first.
        self.topics: tuple[tuple[int, bytes], ...] = ()
        #: The revocation list as it travels, and as it reads; empty and None until one was seen.
        self.list_body = b""
        self.list: RevocationList | None = None
        #: A certified peer has closed us out with the word that we were revoked: the list that says so does not reach us any more.
        self.told_revoked = False
        #: Called with the nodes that a new list has cut off.
        self.on_revoked: list[Callable[[frozenset[NodeId]], None]] = []
        self._revoked: frozenset[NodeId] = frozenset()

    # --- what we hold -------------------------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """Of the revocation list that we hold; 0 for none."""
        return 0 if self.list is None else self.list.number

    @property
    def revoked(self) -> frozenset[NodeId]:
        return self._revoked

    @property
    def is_revoked(self) -> bool:
        """Whether we are cut off ourselves, as far as we have heard."""
        return self.told_revoked or self.me.id in self._revoked

    def standing(self) -> Certificate | None:
        """Our own certificate, as it reads, whether or not it is still good."""
        return certificates.read(self.certificate) if self.certificate else None

    def has_certificate(self, now: float) -> bool:
        """Whether peers would take ours now."""
        with contextlib.suppress(errors.NotCertified):
            certificates.check(self.certificate, self.authorities, now)
            return True
        return False

    def take_list(self, body: bytes) -> bool:
        """Believe a revocation list from whoever had it; True if it is news. Raises NotCertified; an older one than ours,
        which is how somebody would bring a revoked node back, is ignored."""
        found = certificates.check_list(body, self.authorities)
        if self.list is not None and (found.number, found.issued_at) <= (self.list.number, self.list.issued_at):
            return False
        self.list_body, self.list = body, found
        fresh, self._revoked = frozenset(found.nodes) - self._revoked, frozenset(found.nodes)
        if fresh:
            for told in self.on_revoked:
                told(fresh)
        return True

    def take_successor(self, body: bytes) -> None:
        """Trust the CA key that a trusted one names as the next. Raises NotCertified."""
        found = certificates.check_succession(body, self.authorities)
        if found.successor not in self.authorities:
            self.authorities = (found.authority, found.successor)[:MAX_AUTHORITIES]

    # --- HELLO ----------------------------------------------------------------------------------------------------------

    def hello(self, to: NodeId, link_id: int, software: str, now: float) -> Hello:
        """Ours, for this peer on this link. Whoever has no good certificate comes as a newcomer: renewal needs the key alone.
        One that has ended is shown all the same, so that whoever refuses it can say whom and why."""
        role = self.role
        try:
            certificates.check(self.certificate, self.authorities, now)
        except errors.ClockSkew:
            pass  # ours is behind: it is good by the clocks of the others
        except errors.NotCertified:
            role = Role.NEWCOMER
        sent_at = int(now * 1000)
        unsigned = Hello(
            wire.VERSION, role, self.me.id, sent_at, software, b"", self.certificate, self.number, self.delegation, wire.MAX_CALLS
        )
        return msgspec.structs.replace(unsigned, signature=self.me.sign("hello", wire.hello_text(unsigned, to, link_id)))

    def admit(self, hello: Hello, proved: NodeId, link_id: int, now: float) -> TrustedPeer:
        """Who the peer is whose key the transport has proved. Raises ProtocolViolation, NotAllowed and what ``certificates`` raises."""
        if hello.version != wire.VERSION:
            raise errors.ProtocolViolation(f"the peer speaks version {hello.version}, we speak {wire.VERSION}: update the older one")
        if hello.node != proved:
            raise errors.NotCertified("the HELLO names another key than the one that was proved")
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
            # It lets a process in; the link then lives as long as the profile may.
            with _naming_the_clock(offset):
                certificates.check_delegation(hello.delegation, proved, certificate, now)
        self.check_not_revoked(certificate.node)
        if not topics.may_link(self.role, certificate.role):
            raise errors.WrongRole(f"a {self.role} and a {certificate.role} have nothing to say to each other")
        labels = certificate.labels
        return TrustedPeer(Peer(certificate.role, proved, certificate.node, certificate.owner, labels), certificate.not_after, offset)

    def role_of(self, hello: Hello, proved: NodeId) -> Role | None:
        """What a certificate of this mesh says that the key is, good now or not; for people, who ask why somebody is missing."""
        with contextlib.suppress(errors.NotCertified):
            certificate = certificates.check_origin(hello.certificate, self.authorities)
            if certificate.node != proved:
                certificates.check_delegation_origin(hello.delegation, proved, certificate)
            return certificate.role
        return None

    def check_not_revoked(self, node: NodeId) -> None:
        """Raises NodeRevoked. For every transport: NATS vouches for who a node is, and not for whether it is still welcome."""
        if node in self._revoked:
            raise errors.NodeRevoked("this node was revoked", hint="an administrator can make a new ticket for the machine")

    def _admit_newcomer(self, hello: Hello, now: float, offset: float) -> TrustedPeer:
        if self.role is not Role.AUTH:
            if hello.certificate:
                with _naming_the_clock(offset):
                    certificates.check(hello.certificate, self.authorities, now)
                    raise errors.CertificateExpired("the peer says that its own certificate has ended", hint="the node renews it by itself")
            raise errors.NotCertified("the peer shows no certificate", hint="it has to join with a ticket")
        return TrustedPeer(Peer(Role.NEWCOMER, hello.node, hello.node), now + NEWCOMER_SECONDS, offset)


#: How long a peer without a certificate may stay: long enough for one enrolment, and a few words.
NEWCOMER_SECONDS = 30


@contextlib.contextmanager
def _naming_the_clock(offset: float) -> Iterator[None]:
    """Where the clocks are apart, that is what to mend, and not the certificate."""
    try:
        yield
    except (errors.CertificateExpired, errors.ClockSkew) as error:
        if abs(offset) <= certificates.LEEWAY_SECONDS:
            raise
        minutes = abs(offset) / 60
        way = "ahead of" if offset > 0 else "behind"
        raise errors.ClockSkew(f"its clock is {minutes:.0f} min {way} ours", hint="set both clocks, as by NTP") from error
