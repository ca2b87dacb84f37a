"""One open link over a Hyperswarm connection.

Each message is one write of frames. Each side's first frame is a HELLO with a certificate, bound to this connection by its Noise handshake
hash. A newcomer sends nothing before the peer has proved to be auth. An ERROR for call 0 says why the sender closes the link.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from pyhyperswarm.peer_connection import PeerConnection

from shared import errors
from shared.identity import certificates
from shared.identity.trust import Trust, TrustedPeer
from shared.protocol import topics, wire
from shared.protocol.directory import MAX_ANNOUNCEMENT_BYTES
from shared.protocol.wire import Announce, Error, Frame, Hello
from shared.transports import close_reason
from shared.transports.link import Link
from shared.types import Role

#: A peer that pings but reads nothing for so long is cut off.
STUCK_SECONDS = 10.0
#: The total that a peer without a certificate may send, enough for one enrollment.
NEWCOMER_BYTES = 64 * 1024

_LINKS_OWN = frozenset({Hello, Announce, Error})
_SILENT = ("timed out", "timedout", "timeout")


class Owner(Protocol):
    """The transport."""

    loop: asyncio.AbstractEventLoop
    trust: Trust

    def admit(self, connection: PeerConnection, hello: Hello) -> TrustedPeer:
        """Raises what ``Trust.admit`` raises."""
        ...

    def handle_announcement(self, link: "SwarmLink", body: bytes) -> None: ...

    def handle_list_number(self, link: "SwarmLink", number: int) -> None: ...

    def forget(self, link: "SwarmLink") -> None: ...


class SwarmLink(Link):
    """Created for an admitted peer. ``start`` takes the connection over."""

    def __init__(self, owner: Owner, connection: PeerConnection, hello: Hello, admitted: TrustedPeer, own_role: Role) -> None:
        peer = replace(admitted.peer, channel=connection.channel)
        super().__init__(peer, transport="swarm", path=str(connection.path), dialled=connection.initiator, now=owner.loop.time())
        self.agree(hello)
        self.connection = connection
        self.own_role = own_role
        self.until = admitted.until
        offset = admitted.clock_offset_seconds
        self.clock_offset_seconds = offset if abs(offset) > certificates.LEEWAY_SECONDS else 0.0
        self.revocations = lambda: owner.trust.number
        self.on_revocations = lambda number: owner.handle_list_number(self, number)
        self._owner = owner
        #: Since when the peer has had no room for queued frames.
        self._full_since: float | None = None
        self._received_bytes = 0
        self._says_goodbye = True

    def start(self) -> None:
        """Take the connection over. Messages that have arrived meanwhile are read at once."""
        self.connection.on_room = self._write_now
        self.connection.on_closed = self._on_lost
        self.connection.on_message = self._on_message

    def read(self, frames: list[Frame]) -> None:
        """Handle the frames of one write. Forbidden ones end the link."""
        try:
            now = self._owner.loop.time()
            if not _LINKS_OWN.isdisjoint(map(type, frames)):
                self._received_at = now
                frames = [frame for frame in frames if not self._is_links_own(frame)]
            if frames and self.closed is None:
                self.receive(frames, now)
        except (errors.LinkLost, errors.ProtocolViolation, errors.NotAllowed) as error:
            self.close(error)

    def tick(self, now: float, transport_silent_seconds: float = 0.0) -> None:
        if self._full_since is not None and now - self._full_since >= STUCK_SECONDS:
            self.close(errors.LinkLost(f"{self._name} has read nothing for {STUCK_SECONDS:.0f} s"))
        else:
            super().tick(now, transport_silent_seconds)

    def check_certificate(self, now: float) -> None:
        """Close the link if the peer's certificate has expired; ``now`` is in seconds since 1970."""
        leeway = 0 if self.peer.role is Role.NEWCOMER else certificates.LEEWAY_SECONDS
        if self.closed is None and now > self.until + leeway:
            self.close(errors.CertificateExpired(f"the certificate of {self._name} has expired", hint="the node renews it automatically"))

    def _on_message(self, body: bytes) -> None:
        if self.closed is not None:
            return
        try:
            if self.peer.role is Role.NEWCOMER:
                self._received_bytes += len(body)
                if self._received_bytes > NEWCOMER_BYTES:
                    raise errors.ProtocolViolation(f"a newcomer has sent more than {NEWCOMER_BYTES} bytes")
            frames = wire.decode(body)
        except errors.ProtocolViolation as error:
            self.close(error)
        else:
            self.read(frames)

    def _is_links_own(self, frame: Frame) -> bool:
        if isinstance(frame, Hello):
            self._renew(frame)
        elif isinstance(frame, Announce):
            if self.peer.role not in topics.SEES_ANNOUNCEMENTS_OF[self._owner.trust.role]:
                raise errors.ProtocolViolation(f"a {self.peer.role} must not announce itself to a {self._owner.trust.role}")
            if len(frame.body) > MAX_ANNOUNCEMENT_BYTES:
                raise errors.ProtocolViolation(f"an announcement of {len(frame.body)} bytes")
            self._owner.handle_announcement(self, frame.body)
        elif isinstance(frame, Error) and frame.id == close_reason.NO_CALL:
            self._says_goodbye = False
            self._handle_goodbye(errors.from_problem(frame.problem))
        else:
            return False
        return True

    def _handle_goodbye(self, why: errors.AimeshError) -> None:
        if errors.code_of(why) == errors.NodeRevoked.code:
            self._owner.trust.was_revoked = True
        self.close(errors.LinkLost(f"{self._name} closed the link: {why.message[:200]}", hint=why.hint[:200] or "try again"))

    def _renew(self, hello: Hello) -> None:
        """Apply a newer certificate, which may change the expiry and the labels but not the identity."""
        admitted = self._owner.admit(self.connection, hello)
        was, peer = self.peer, replace(admitted.peer, channel=self.peer.channel)
        if was.role is Role.NEWCOMER and peer.role is not Role.NEWCOMER:
            raise errors.LinkLost("you are certified now: connect again", retry_after_seconds=0.2)
        if replace(peer, labels=was.labels) != was:
            raise errors.ProtocolViolation("the peer has changed its identity")
        if admitted.until < self.until:
            raise errors.ProtocolViolation("the peer shows an older certificate than before")
        self.peer = peer
        if was.role is not Role.NEWCOMER:
            self.until = admitted.until
        self._owner.handle_list_number(self, hello.revocations)

    def _on_lost(self, reason: str) -> None:
        self._says_goodbye = False
        # Hyperswarm's own timeout is as good as ours.
        self.fell_silent = any(word in reason.lower() for word in _SILENT)
        self.close(errors.LinkLost(f"the connection to {self._name} was lost: {reason or 'the peer closed it'}", retry_after_seconds=0.2))

    def _wake_writer(self) -> None:
        self._owner.loop.call_soon(self._write_now)

    def _write_now(self) -> None:
        """Write what the peer has room for. The rest stays queued until ``on_room``."""
        connection = self.connection
        if self.closed is not None:
            return
        if connection.is_full:
            if self._full_since is None:
                self._full_since = self._owner.loop.time()
            return
        writes = self.take_writes()
        for index, frames in enumerate(writes):
            if connection.is_full:
                self._unsent = [frame for write in writes[index:] for frame in write]
                break
            for message in _messages(frames):
                connection.send(message)
        self.wrote_all()
        self._full_since = self._owner.loop.time() if self._unsent else None

    def _forget(self, why: errors.AimeshError) -> None:
        connection = self.connection
        connection.on_closed = connection.on_room = None
        connection.on_message = lambda body: None
        if self._says_goodbye:
            close_reason.part(connection, why)
        elif connection.closed is None:
            connection.close(why.message)
        self._owner.forget(self)

    @property
    def _name(self) -> str:
        return f"{self.peer.role} {self.peer.node[:8]}"


def _messages(frames: list[Frame]) -> Iterator[bytes]:
    """Split a write whose frames are longer than estimated."""
    message = wire.encode(frames)
    if len(message) <= wire.MAX_WRITE_BYTES or len(frames) == 1:
        yield message
        return
    middle = len(frames) // 2
    yield from _messages(frames[:middle])
    yield from _messages(frames[middle:])
