"""Links over core NATS: one subject per direction and pair, one wildcard subscription per node.

Core NATS delivers at most once, so every message has the link's id and a sequence number. A gap ends the link and its calls, as retryable
``link_lost``. The server's permissions guarantee the last two parts of a subject, which are the peer's role and id; its HELLO must match.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable

import msgspec

from shared import config_releases, errors
from shared.identity import login_tokens, node_keys
from shared.identity.trust import Trust
from shared.protocol import topics, wire
from shared.protocol.wire import Frame, Hello
from shared.transports.link import HELLO_SECONDS, SILENCE_SECONDS, TICK_SECONDS, Link, LocalNode
from shared.transports.nats.login import NatsFiles, NatsLoginRefused
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats.server_connection import NatsMessage
from shared.types import FIRST_ROLES, SERVICE_ROLES, NodeId, Peer

#: Links without a HELLO. Unauthenticated peers cannot get this far, so this only bounds our own mistakes.
MAX_DIALLING = 256
CONNECT_SECONDS = 5.0
#: Frames that have waited this long mean that nothing can be written. Peers consider us dead by then.
STUCK_SECONDS = SILENCE_SECONDS
#: A server with a smaller max_payload cannot carry the largest frame.
MIN_PAYLOAD_BYTES = 128 * 1024
_ROOM_BYTES = 32 * 1024


class _Data(msgspec.Struct, array_like=True, tag=0, frozen=True):
    link: int
    #: Counts the writes of one direction of a link from 0.
    sequence: int
    frames: list[Frame]


class _Reset(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """The sender does not know the link, or has just closed it. Never answered."""

    link: int
    why: str
    #: The error code; empty without an error.
    code: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Data | _Reset).decode


class NatsLink(Link):
    def __init__(self, transport: "NatsTransport", peer: Peer, link_id: int, *, dialled: bool) -> None:
        super().__init__(peer, transport="nats", path="nats", dialled=dialled, now=transport.now())
        self.id = link_id
        self.subject = topics.link(transport.me.mesh, peer.role, peer.node, transport.me.role, transport.me.node)
        #: The key in the transport's table: the peer writes to this subject.
        from_peer = topics.link(transport.me.mesh, transport.me.role, transport.me.node, peer.role, peer.node)
        self.key = (from_peer.encode(), link_id)
        self.greeting = (b"", "")
        self.sent = 0
        self.received = 0
        #: Done once the peer's HELLO was valid.
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.revocations = lambda: transport.trust.number
        self.on_revocations = lambda number: transport.on_number(self, number)
        self._transport = transport

    def _wake_writer(self) -> None:
        self._transport.wake_writer(self)

    def _write_now(self) -> None:
        self._transport.write_link(self)

    def _forget(self, why: errors.AimeshError) -> None:
        if not self.opened.done():
            self.opened.set_exception(why)
            self.opened.exception()  # mark as retrieved: a caller that gave up does not read it
        self._transport.forget(self, why)


class NatsTransport:
    """A node's connection to the NATS server and its links. ``run`` must be running while it is used."""

    def __init__(
        self,
        me: LocalNode,
        urls: str,
        files: NatsFiles | None = None,
        trust: Trust | None = None,
        token: Callable[[str], str] | None = None,
    ) -> None:
        """``token`` returns what to send with the login, for a nonce; by default the certificate, if there is one."""
        self.me = me
        self.trust = trust or Trust(me.key, me.role)
        self.trust.on_revoked.append(self._close_revoked)
        self._logged_in_with = self.trust.certificate
        self.nats = NatsClient(
            urls,
            me.key,
            # Auth refuses gateways that are too old, before they can announce anything.
            name=f"aimesh {me.role} {config_releases.READS}",
            files=files,
            least_payload_bytes=MIN_PAYLOAD_BYTES,
            token=token or (lambda nonce: self._certificate_token()),
            hurries=me.role in FIRST_ROLES,
        )
        self.nats.on_connection = self._on_connection
        self.nats.on_refused = self._on_refused
        self.nats.on_room = self._write_soon
        #: Called with every link that a peer opens, after its HELLO. None for clients, which accept no links.
        self.on_link: Callable[[Link], None] | None = None
        #: Called with the number of a peer's revocation list whenever the peer sends it.
        self.on_number: Callable[[Link, int], None] = lambda link, number: None
        #: Called with False when the server is lost and with True when it is back.
        self.on_connection: Callable[[bool], None] = lambda connected: None
        #: Called with the server's text when it forbids a publish or subscription.
        self.on_refused: Callable[[str], None] = lambda words: None
        #: The server's text if it forbids our inbox subscription.
        self._refusal = ""
        self._links: dict[tuple[bytes, int], NatsLink] = {}
        #: Links with unwritten frames, and since when; oldest first.
        self._dirty: deque[tuple[NatsLink, float]] = deque()
        self._write_is_due = False
        self._loop = asyncio.get_running_loop()

    def now(self) -> float:
        return self._loop.time()

    @property
    def connected(self) -> bool:
        return self.nats.connected

    @property
    def hears(self) -> bool:
        """Return whether peers can be heard: the connection is open, and its server is not silent."""
        return self.connected and self.nats.silent_seconds < SILENCE_SECONDS

    @property
    def unwritten_seconds(self) -> float:
        """Return how long the oldest unwritten frame has waited; 0 if there is none."""
        return max(0.0, self.now() - self._dirty[0][1]) if self._dirty else 0.0

    @property
    def trouble(self) -> str:
        """Return why no peer can be reached over NATS now; empty if peers can be reached."""
        if not self.connected:
            why = self.nats.trouble
            return "not connected; retrying" if why is None else f"not connected: {why.message}; {why.hint}"
        if self._refusal:
            return f"connected, but not allowed to receive: {self._refusal}; run `aicli stack init`, which writes the permissions of nodes"
        if (seconds := self.unwritten_seconds) > STUCK_SECONDS:
            return f"connected, but nothing could be written for {seconds:.0f} s"
        return ""

    @property
    def is_trouble_ours(self) -> bool:
        """Return whether the trouble is this node's alone: the server refuses its login, or its connection can't be used."""
        return bool(self.trouble) if self.connected else isinstance(self.nats.trouble, NatsLoginRefused)

    async def connect(self, *, deadline_seconds: float = CONNECT_SECONDS, is_needed: bool = True) -> None:
        """Raises Unavailable if the server refuses our key, or is not there and ``is_needed``. After that it reconnects forever."""
        self.nats.subscribe(topics.inbox(self.me.mesh, self.me.role, self.me.node), self._on_message)
        self._logged_in_with = self.trust.certificate
        try:
            await self.nats.connect(deadline_seconds=deadline_seconds)
        except errors.Unavailable as error:
            if is_needed or isinstance(error, NatsLoginRefused):
                raise
            self.nats.connect_later()

    def renew_login(self) -> None:
        """Log in again if there is a new certificate."""
        if self._logged_in_with != self.trust.certificate:
            self._logged_in_with = self.trust.certificate
            self.nats.renew_login()

    async def run(self) -> None:
        """Keep the connection and monitor the links. Ends by cancellation."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.nats.run())
            tasks.create_task(self._tick())

    async def close(self, why: errors.AimeshError | None = None) -> None:
        """Close every link, tell the peers, and disconnect."""
        for link in self.links():
            link.close(why or errors.LinkLost("this node is stopping"))
        await self.nats.close()

    async def dial(self, peer: Peer) -> Link:
        """Open a link. Raises NotReachable if the peer does not answer our HELLO in time, and NotConnected if the server doesn't either."""
        self.trust.check_not_revoked(peer.node)
        if not self.connected:
            trouble = self.nats.trouble or errors.Unavailable("the NATS server is not reachable", hint="run `aicli doctor`")
            raise errors.NotConnected(trouble.message, hint=trouble.hint, retry_after_seconds=1)
        if sum(1 for link in self._links.values() if not link.opened.done()) >= MAX_DIALLING:
            raise errors.Overloaded("too many links are being opened", retry_after_seconds=1)
        link = NatsLink(self, peer, secrets.randbits(63), dialled=True)
        self._links[link.key] = link
        link.send(self._hello(link))
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                await asyncio.shield(link.opened)
        except TimeoutError:
            is_ours = self.nats.silent_seconds >= HELLO_SECONDS
            kind, who = (errors.NotConnected, "the NATS server") if is_ours else (errors.NotReachable, f"{peer.role} {peer.node[:8]}")
            why = kind(f"{who} did not answer within {HELLO_SECONDS} s", retry_after_seconds=1)
            link.close(why)
            raise why from None
        except BaseException:
            link.close(errors.LinkLost("the caller gave up while the link was opening"))
            raise
        return link

    def links(self) -> list[NatsLink]:
        return list(self._links.values())

    def wake_writer(self, link: NatsLink) -> None:
        self._dirty.append((link, self.now()))
        self._write_soon()

    def forget(self, link: NatsLink, why: errors.AimeshError) -> None:
        if self._links.pop(link.key, None) is not None:
            self._reset(link.subject, link.id, why.message, errors.code_of(why))

    def _certificate_token(self) -> str:
        return login_tokens.of_certificate(self.trust.certificate) if self.trust.certificate else ""

    def _hello(self, link: NatsLink) -> Hello:
        me = self.me
        sent_at = time.time_ns() // 1_000_000
        unsigned = Hello(wire.VERSION, me.role, me.node, sent_at, me.software, b"", instance=me.instance)
        signature = me.key.sign("hello", wire.hello_text(unsigned, link.peer.node, link.id))
        return msgspec.structs.replace(unsigned, signature=signature)

    def _write_soon(self) -> None:
        """Write after this tick, so that its frames share a write."""
        if self._dirty and not self._write_is_due:
            self._write_is_due = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._write_is_due = False
        # The rest is written when there is room (on_room) or a connection (_on_connection). Each write may fill the socket.
        while self._dirty and self.connected and not self.nats.is_full:
            link, _ = self._dirty.popleft()
            self.write_link(link)

    def write_link(self, link: NatsLink) -> None:
        if self.nats.is_full or not self.connected:
            return
        for frames in link.take_writes(min(wire.MAX_WRITE_BYTES, self.nats.max_payload_bytes - _ROOM_BYTES)):
            try:
                self.nats.publish(link.subject, _encode(_Data(link.id, link.sent, frames)))
            except errors.TooLarge as error:
                link.close(errors.LinkLost(error.message, hint=error.hint))
                return
            link.sent += 1
        link.wrote_all()

    def _reset(self, subject: str, link_id: int, why: str, code: str = "") -> None:
        if self.connected:
            self.nats.publish(subject, _encode(_Reset(link_id, why[:200], code)))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self.now()
            silent_seconds = self.nats.silent_seconds
            for link in self.links():
                if link.opened.done():
                    link.tick(now, silent_seconds)

    def _on_connection(self, connected: bool) -> None:
        if not connected:
            for link in self.links():
                link.close(errors.TransportLost("the connection to the NATS server was lost", retry_after_seconds=1))
            self._dirty.clear()
        else:
            self._refusal = ""
            self._write_soon()
        self.on_connection(connected)

    def _on_refused(self, words: str) -> None:
        if "subscription" in words and topics.inbox(self.me.mesh, self.me.role, self.me.node).lower() in words:
            self._refusal = words
        self.on_refused(words)

    def _on_message(self, message: NatsMessage) -> None:
        """Handle one write of a peer. An invalid one only ends the link that it names."""
        try:
            envelope = _decode(message.payload)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            self._refuse(message.subject, f"not frames: {error}")
            return
        link = self._links.get((message.subject, envelope.link))
        if isinstance(envelope, _Reset):
            if link is not None:
                who = f"{link.peer.role} {link.peer.node[:8]}"
                self.trust.was_revoked |= envelope.code == errors.NodeRevoked.code
                link.close(errors.LinkLost(f"{who} closed the link: {envelope.why}", hint="try again"))
        elif link is None:
            self._accept(message.subject, envelope, len(message.payload))
        else:
            self._receive(link, envelope, len(message.payload))

    def _receive(self, link: NatsLink, data: _Data, size: int) -> None:
        if data.sequence < link.received:
            hello = data.frames[0] if data.sequence == 0 and data.frames else None
            if isinstance(hello, Hello) and link.opened.done() and (hello.signature, hello.instance) != link.greeting:
                link.close(errors.LinkLost("two processes with one key have answered", hint="try again", retry_after_seconds=1))
            return  # a duplicate
        try:
            if data.sequence > link.received:
                raise errors.LinkLost(f"{data.sequence - link.received} messages were lost in transit")
            if size > wire.MAX_WRITE_BYTES + 1024 or not data.frames:
                raise errors.ProtocolViolation(f"a write of {size} bytes with {len(data.frames)} frames")
            link.received += 1
            frames = data.frames
            if not link.opened.done():
                self._check_hello(link, frames[0], size)
                frames = frames[1:]
                link.opened.set_result(None)
            if frames:
                link.receive(frames, self.now())
        except (errors.LinkLost, errors.ProtocolViolation, errors.NotAllowed) as error:
            link.close(error)

    def _accept(self, subject: bytes, data: _Data, size: int) -> None:
        """Handle a message for an unknown link: a HELLO opens it; anything else is from before our restart."""
        try:
            peer = Peer(*topics.sender_of(subject.decode()))
        except ValueError:
            return  # a role of a newer version
        is_hello = data.sequence == 0 and data.frames and isinstance(data.frames[0], Hello)
        if self.on_link is None or self.me.role not in SERVICE_ROLES:
            return  # another process with this client profile shares the inbox; the link is that one's
        if not is_hello:
            back = topics.link(self.me.mesh, peer.role, peer.node, self.me.role, self.me.node)
            self._reset(back, data.link, "this node was restarted or had closed the link")
            return
        link = NatsLink(self, peer, data.link, dialled=False)
        self._links[link.key] = link
        link.received = 1
        try:
            self.trust.check_not_revoked(peer.node)
            self._check_hello(link, data.frames[0], size)
        except (errors.ProtocolViolation, errors.NotAllowed) as error:
            link.close(error)
            return
        link.opened.set_result(None)
        link.send(self._hello(link))
        self.on_link(link)
        if len(data.frames) > 1:
            link.receive(data.frames[1:], self.now())

    def _check_hello(self, link: NatsLink, hello: Frame, size: int) -> None:
        if not isinstance(hello, Hello) or size > wire.MAX_BYTES_BEFORE_HELLO:
            raise errors.ProtocolViolation("the first frame must be a HELLO of at most 4 KiB")
        if hello.version != wire.VERSION:
            raise errors.ProtocolViolation(f"the peer uses version {hello.version}, we use {wire.VERSION}")
        if (hello.role, hello.node) != (link.peer.role, link.peer.node):
            raise errors.NotAllowed("the HELLO names another node than NATS does")
        if not node_keys.verify(hello.node, "hello", wire.hello_text(hello, self.me.node, link.id), hello.signature):
            raise errors.NotAllowed("the HELLO is not signed by the node's key")
        link.greeting = (hello.signature, hello.instance)
        link.agree(hello)

    def _refuse(self, subject: bytes, why: str) -> None:
        """Close all links of a peer that sends anything but frames."""
        for link in self.links():
            if link.key[0] == subject:
                link.close(errors.ProtocolViolation(why))

    def _close_revoked(self, nodes: frozenset[NodeId]) -> None:
        for link in self.links():
            if link.peer.node in nodes:
                link.close(errors.NodeRevoked("this node was revoked"))
