"""Links over core NATS: one subject per direction and pair, one wildcard subscription per node.

Core NATS is at most once, so every message begins with the link's id and a sequence number; a gap ends the link, and with
it its calls, as retryable ``link_lost``. The server's permissions vouch for the last two words of a subject, so a peer's
role and id are taken from there and its HELLO has to agree.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import nats
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from shared import errors, identity, topics
from shared.frames import wire
from shared.frames.wire import Frame, Hello
from shared.link import HELLO_SECONDS, PING_SECONDS, Link, Peer
from shared.types import SERVICE_ROLES, MeshName, NodeId, Role

#: A HELLO of ours that is this far from the peer's clock is answered, and the offset is shown.
CLOCK_LEEWAY_SECONDS = 60
#: Links that have not shown a HELLO yet; strangers cannot come this far, so this only bounds our own mistakes.
MAX_DIALLING = 256
#: How long the first connection to the NATS server may take before we say that it is not there.
CONNECT_SECONDS = 5.0


class _Data(msgspec.Struct, array_like=True, tag=0, frozen=True):
    link: int
    #: Counts the writes of one direction of one link from 0.
    sequence: int
    frames: list[Frame]


class _Reset(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """This end does not know that link, or has just closed it. Never answered."""

    link: int
    why: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Data | _Reset).decode


@dataclass(frozen=True, slots=True)
class Me:
    """Who this node is on the mesh."""

    mesh: MeshName
    role: Role
    key: identity.NodeKey
    #: The program's version, told in HELLO.
    software: str

    @property
    def node(self) -> NodeId:
        return self.key.id


class NatsLink(Link):
    def __init__(self, transport: "NatsTransport", peer: Peer, link_id: int, *, dialled: bool) -> None:
        super().__init__(peer, path="nats", dialled=dialled, now=transport.now())
        self.id = link_id
        self.subject = topics.link(transport.me.mesh, peer.role, peer.node, transport.me.role, transport.me.node)
        self.sent = 0
        self.received = 0
        #: Set once the peer's HELLO was good.
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport = transport

    def _wake_writer(self) -> None:
        self._transport.wake_writer(self)

    def _forget(self, why: errors.AimeshError) -> None:
        if not self.opened.done():
            self.opened.set_exception(why)
            self.opened.exception()  # a dialler that has given up reads it nowhere else
        self._transport.forget(self, why)


class NatsTransport:
    """A node's connection to the NATS server and the links that run over it. ``run`` must run while it is used."""

    def __init__(self, me: Me, url: str) -> None:
        self.me = me
        self._url = url
        #: Called with every link that a peer opened to us, after its HELLO. A client accepts none.
        self.on_link: Callable[[Link], None] | None = None
        #: Called when the server is lost and when it is back.
        self.on_connection: Callable[[bool], None] = lambda connected: None
        self.reconnects = 0
        self._nats = NatsClient()
        self._links: dict[tuple[NodeId, int], NatsLink] = {}
        self._dirty: list[NatsLink] = []
        self._resets: list[tuple[str, _Reset]] = []
        self._work = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._is_silent = False

    def now(self) -> float:
        return self._loop.time()

    @property
    def nats(self) -> NatsClient:
        """For announcements, events and the micro endpoints."""
        return self._nats

    @property
    def connected(self) -> bool:
        return bool(self._nats.is_connected) and not self._is_silent

    # --- life ---------------------------------------------------------------------------------------------------

    async def connect(self, *, deadline_seconds: float = CONNECT_SECONDS) -> None:
        """Raises Unavailable if the server is not there or refuses our key. Afterwards it reconnects for ever."""
        deadline = self.now() + deadline_seconds
        while True:
            try:
                # nats-py retries a refused nkey for ever when it may reconnect, so the first connection is made without.
                async with asyncio.timeout(max(0.1, deadline - self.now())):
                    await self._connect_once()
                return
            except (OSError, TimeoutError, nats.errors.Error) as error:
                if self.now() + 0.1 >= deadline:
                    raise _not_there(self._url, error) from error
                await asyncio.sleep(0.1)

    async def _connect_once(self) -> None:
        async def lost() -> None:
            self._lose_all()
            self.on_connection(False)

        async def back() -> None:
            self.reconnects += 1
            self.on_connection(True)

        is_up = False

        async def failed(error: Exception) -> None:
            # nats-py would retry a refused key for ever; raising here ends its connect(). Once up, errors show as lost
            # links and failed calls, and it may retry as long as it likes.
            if not is_up:
                raise error

        self._nats = NatsClient()
        try:
            await self._nats.connect(
                self._url,
                nkeys_seed_str=self.me.key.seed.decode(),
                error_cb=failed,
                disconnected_cb=lost,
                reconnected_cb=back,
                name=f"aimesh {self.me.role}",
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,  # type: ignore[arg-type]  # it sleeps this long; fractions work
                connect_timeout=2,
                ping_interval=5,
                pending_size=8 * 1024 * 1024,
                skip_subject_validation=True,
            )
        except BaseException:
            await self._close_client()
            raise
        is_up = True
        await self._nats.subscribe(topics.inbox(self.me.mesh, self.me.role, self.me.node), cb=self._on_message)
        await self._nats.flush(timeout=2)

    async def run(self) -> None:
        """Write what links have queued, and keep watch over their life. Ends by cancellation."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write())
            tasks.create_task(self._tick())

    async def close(self, why: errors.AimeshError | None = None) -> None:
        """Close every link, tell the peers, and leave the server."""
        for link in list(self._links.values()):
            link.close(why or errors.LinkLost("this node is stopping"))
        if self.connected:
            try:
                async with asyncio.timeout(1):
                    for subject, reset in self._resets:
                        await self._nats.publish(subject, _encode(reset))
                    await self._nats.flush(timeout=1)
            except (TimeoutError, nats.errors.Error, OSError):
                pass  # the peers find out by silence
        await self._close_client()

    def silence(self) -> None:
        """Say nothing more, as if the process had been killed; for tests of what the others then do."""
        self._links.clear()
        self._is_silent = True

    async def _close_client(self) -> None:
        try:
            async with asyncio.timeout(2):
                await self._nats.close()
        except (TimeoutError, nats.errors.Error, OSError):
            pass  # it is given up either way

    # --- links --------------------------------------------------------------------------------------------------

    async def dial(self, peer: Peer) -> Link:
        """Open a link; raises NotReachable if the peer does not answer our HELLO in time."""
        if not self.connected:
            raise errors.NotReachable("the NATS server is not reachable", hint="aicli doctor says more", retry_after_seconds=1)
        if sum(1 for link in self._links.values() if not link.opened.done()) >= MAX_DIALLING:
            raise errors.Overloaded("too many links are being opened", retry_after_seconds=1)
        link = NatsLink(self, peer, secrets.randbits(63), dialled=True)
        self._links[peer.node, link.id] = link
        link.send(self._hello(link))
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                await asyncio.shield(link.opened)
        except TimeoutError:
            why = errors.NotReachable(f"{peer.role} {peer.node[:8]} did not answer within {HELLO_SECONDS} s", retry_after_seconds=1)
            link.close(why)
            raise why from None
        except BaseException:
            link.close(errors.LinkLost("the caller gave up while the link was opening"))
            raise
        return link

    def links(self) -> list[NatsLink]:
        return list(self._links.values())

    def wake_writer(self, link: NatsLink) -> None:
        self._dirty.append(link)
        self._work.set()

    def forget(self, link: NatsLink, why: errors.AimeshError) -> None:
        if self._links.pop((link.peer.node, link.id), None) is not None:
            self._resets.append((link.subject, _Reset(link.id, why.message[:200])))
            self._work.set()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _hello(self, link: NatsLink) -> Hello:
        me = self.me
        unsigned = Hello(wire.VERSION, me.role, me.node, time.time_ns() // 1_000_000, me.software, b"")
        signature = me.key.sign("hello", wire.hello_text(unsigned, link.peer.node, link.id))
        return msgspec.structs.replace(unsigned, signature=signature)

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            dirty, self._dirty = self._dirty, []
            resets, self._resets = self._resets, []
            if not self.connected:
                continue
            try:
                for link in dirty:
                    for frames in link.take_writes():
                        await self._nats.publish(link.subject, _encode(_Data(link.id, link.sent, frames)))
                        link.sent += 1
                    link.wrote_all()
                for subject, reset in resets:
                    await self._nats.publish(subject, _encode(reset))
            except (nats.errors.Error, OSError):
                self._lose_all()  # what was not written is lost, and the links say so

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            now = self.now()
            for link in self.links():
                if link.opened.done():
                    link.tick(now)

    def _lose_all(self) -> None:
        for link in self.links():
            link.close(errors.LinkLost("the connection to the NATS server was lost", retry_after_seconds=1))
        self._resets.clear()

    async def _on_message(self, message: Msg) -> None:
        """One write of a peer. What is not exactly one ends the link it claims to be for, and nothing else."""
        try:
            peer = Peer(*topics.sender_of(message.subject))
        except ValueError:
            return  # the server's permissions make this impossible; not a peer's doing
        try:
            envelope = _decode(message.data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            self._refuse(peer, f"not frames: {error}")
            return
        link = self._links.get((peer.node, envelope.link))
        if isinstance(envelope, _Reset):
            if link is not None:
                link.close(errors.LinkLost(f"{peer.role} {peer.node[:8]} closed the link: {envelope.why}"))
        elif link is None:
            self._accept(peer, envelope, len(message.data))
        else:
            self._receive(link, envelope, len(message.data))

    def _receive(self, link: NatsLink, data: _Data, size: int) -> None:
        if data.sequence < link.received:
            return  # a duplicate
        try:
            if data.sequence > link.received:
                raise errors.LinkLost(f"{data.sequence - link.received} messages were lost on the way")
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

    def _accept(self, peer: Peer, data: _Data, size: int) -> None:
        """A message for a link that we do not know: a HELLO opens it; anything else is from before our restart."""
        is_hello = data.sequence == 0 and data.frames and isinstance(data.frames[0], Hello)
        if self.on_link is None or self.me.role not in SERVICE_ROLES:
            return  # processes of one client profile share an inbox: it is another's link
        if not is_hello:
            self._resets.append((self._subject_to(peer), _Reset(data.link, "this node does not know the link")))
            self._work.set()
            return
        link = NatsLink(self, peer, data.link, dialled=False)
        self._links[peer.node, link.id] = link
        link.received = 1
        try:
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
            raise errors.ProtocolViolation(f"the peer speaks version {hello.version}, we speak {wire.VERSION}")
        if (hello.role, hello.node) != (link.peer.role, link.peer.node):
            raise errors.NotAllowed("the HELLO names another node than the one that NATS vouches for")
        if not identity.verify(hello.node, "hello", wire.hello_text(hello, self.me.node, link.id), hello.signature):
            raise errors.NotAllowed("the HELLO is not signed by the node's key")

    def _refuse(self, peer: Peer, why: str) -> None:
        """A peer that sends what is not frames loses every link it has with us."""
        for link in self.links():
            if link.peer == peer:
                link.close(errors.ProtocolViolation(why))

    def _subject_to(self, peer: Peer) -> str:
        return topics.link(self.me.mesh, peer.role, peer.node, self.me.role, self.me.node)


def _not_there(url: str, error: Exception) -> errors.Unavailable:
    if "authorization" in str(error).lower():
        return errors.Unavailable("the NATS server refused this node's key", hint="aicli stack init writes the list of nodes it knows")
    return errors.Unavailable(f"no NATS server answers at {_without_password(url)}", hint="start it, or set NATS_URL")


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if rest else url
