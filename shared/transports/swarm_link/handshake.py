"""Who gets in: every new connection has one HELLO to show what it is, and few strangers may try at a time.

A good HELLO comes out as an ``Entrant``; everybody else is closed out, or parked.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from shared import errors
from shared.frames import wire
from shared.frames.wire import Frame, Hello
from shared.identity import node_keys
from shared.identity.trust import Trust, TrustedPeer
from shared.transports.hyperswarm import PeerConnection
from shared.transports.link import HELLO_SECONDS
from shared.transports.swarm_link import close_reason
from shared.transports.swarm_link.handshake_limits import HandshakeAttempt, HandshakeLimits
from shared.types import NodeId, Role

#: Certified peers that we have nothing to say to, as another gateway at the gateways' meeting place. Their connections stay
#: open and unused: closed, Hyperswarm would make them anew without end.
MAX_PARKED = 64


@dataclass(frozen=True, slots=True)
class HandshakeRefusal:
    """A peer that was not let in, and why, for people."""

    node: NodeId
    #: Only if a certificate of this mesh names it: anybody could claim any.
    role: Role | None
    software: str
    why: errors.AimeshError


@dataclass(frozen=True, slots=True)
class Entrant:
    """A connection whose HELLO was good, and to which ours was said."""

    connection: PeerConnection
    hello: Hello
    admitted: TrustedPeer
    #: What our HELLO said that we are.
    came_as: Role
    #: What came with its HELLO.
    frames: list[Frame]


class _Arrival:
    """A connection that has not shown its HELLO yet."""

    def __init__(self, door: "Handshake", connection: PeerConnection, visit: HandshakeAttempt) -> None:
        self.connection = connection
        self.visit = visit
        #: What our HELLO said that we are; None until it was said.
        self.came_as: Role | None = None
        self._door = door
        self._is_over = False
        self._timer = door.loop.call_later(HELLO_SECONDS, self._too_late)

    def start(self) -> None:
        self.connection.on_closed = self._on_lost
        self.connection.on_message = self._on_message

    def over(self) -> None:
        self._is_over = True
        self._timer.cancel()
        self.connection.on_closed = None

    def _on_message(self, body: bytes) -> None:
        if not self._is_over:
            self.over()
            self._door.judge(self, body)

    def _too_late(self) -> None:
        self.over()
        self.connection.close(f"no HELLO within {HELLO_SECONDS} s", abort=True)
        self._door.gave_up(self)

    def _on_lost(self, reason: str) -> None:
        self.over()
        self._door.gave_up(self)


class Handshake:
    """Owned by one transport."""

    def __init__(self, trust: Trust, software: str, clock: Callable[[], float]) -> None:
        self.loop = asyncio.get_running_loop()
        self.on_entrant: Callable[[Entrant], None] = lambda entrant: None
        self.on_refused: Callable[[HandshakeRefusal], None] = lambda refusal: None
        #: Connections that were turned away.
        self.refused = 0
        #: Topics where somebody was found who then did not answer.
        self.missed: set[bytes] = set()
        self._trust = trust
        self._software = software
        self._clock = clock
        self._strangers = HandshakeLimits()
        self._arrivals: set[_Arrival] = set()
        self._parked: set[PeerConnection] = set()

    def arrived(self, connection: PeerConnection) -> None:
        """A new connection."""
        visit = self._strangers.arrive(connection.key, self.loop.time())
        if visit is None:
            self.turn_away(connection)
            return
        arrival = _Arrival(self, connection, visit)
        self._arrivals.add(arrival)
        if not self._holds_back:
            self._say_hello(arrival)
        arrival.start()

    def turn_away(self, connection: PeerConnection) -> None:
        """Without a look at it, and without a word."""
        self.refused += 1
        connection.close("not now", abort=True)

    def hello(self, connection: PeerConnection) -> Hello:
        """Ours, for this connection."""
        return self._trust.hello(node_keys.node_of(connection.key), link_id(connection), self._software, self._clock())

    def admit(self, connection: PeerConnection, hello: Hello) -> TrustedPeer:
        """Raises what ``Trust.admit`` raises."""
        return self._trust.admit(hello, node_keys.node_of(connection.key), link_id(connection), self._clock())

    def close(self, why: errors.AimeshError) -> None:
        """Send away whoever still stands in it."""
        for arrival in list(self._arrivals):
            arrival.over()
            self._forget(arrival)
            self._strangers.leave(arrival.visit)
            arrival.connection.close(why.message, abort=True)
        for connection in list(self._parked):
            connection.close(why.message)

    # --- for arrivals -------------------------------------------------------------------------------------------------

    def judge(self, arrival: _Arrival, body: bytes) -> None:
        """The first message of a connection: a HELLO of at most 4 KiB, or nothing."""
        hello: Hello | None = None
        try:
            frames = wire.decode(body, limit=wire.MAX_BYTES_BEFORE_HELLO)
            if not frames or not isinstance(frames[0], Hello):
                raise errors.ProtocolViolation("the first frame must be a HELLO")
            hello = frames[0]
            admitted = self.admit(arrival.connection, hello)
            if arrival.came_as in (None, Role.NEWCOMER) and admitted.peer.role is not Role.AUTH:
                raise errors.WrongRole(f"a {admitted.peer.role} cannot certify us")
        except (errors.ProtocolViolation, errors.NotAllowed) as why:
            self._refuse(arrival, hello, why)
        else:
            self._let_in(arrival, hello, admitted, frames[1:])

    def gave_up(self, arrival: _Arrival) -> None:
        """It went, or showed nothing in time: a network may do that, so it may try again at once."""
        self._forget(arrival)
        self._strangers.leave(arrival.visit)
        self.refused += 1
        self.missed.update(arrival.connection.topics)

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _holds_back(self) -> bool:
        return self._trust.role is Role.NEWCOMER or not self._trust.certificate

    def _say_hello(self, arrival: _Arrival) -> Role:
        hello = self.hello(arrival.connection)
        arrival.came_as = hello.role
        arrival.connection.send(wire.encode([hello]))
        return hello.role

    def _let_in(self, arrival: _Arrival, hello: Hello, admitted: TrustedPeer, frames: list[Frame]) -> None:
        self._forget(arrival)
        if admitted.peer.role is Role.NEWCOMER:
            self._strangers.leave(arrival.visit)
        else:
            self._strangers.welcome(arrival.visit)
        came_as = arrival.came_as or self._say_hello(arrival)
        self.on_entrant(Entrant(arrival.connection, hello, admitted, came_as, frames))

    def _refuse(self, arrival: _Arrival, hello: Hello | None, why: errors.AimeshError) -> None:
        self._forget(arrival)
        connection, node = arrival.connection, node_keys.node_of(arrival.connection.key)
        if isinstance(why, errors.WrongRole) and arrival.came_as is not None and len(self._parked) < MAX_PARKED:
            self._strangers.welcome(arrival.visit)
            self._park(connection)
            return
        self._strangers.refuse(arrival.visit, self.loop.time())
        self.refused += 1
        role = None if hello is None else self._trust.role_of(hello, node)
        if role is not None and arrival.came_as is not None:
            close_reason.part(connection, why)  # one of ours, who can do something about it
        else:
            connection.close(why.message, abort=True)
        self.on_refused(HandshakeRefusal(node, role, "" if hello is None else _printable(hello.software), why))

    def _park(self, connection: PeerConnection) -> None:
        self._parked.add(connection)
        connection.on_closed = lambda reason: self._parked.discard(connection)
        connection.on_message = lambda body: None

    def _forget(self, arrival: _Arrival) -> None:
        self._arrivals.discard(arrival)


def link_id(connection: PeerConnection) -> int:
    """The number that the HELLOs of a connection sign: both sides gave their randomness to it."""
    return int.from_bytes(connection.channel[:8], "big") >> 1


def _printable(software: str) -> str:
    """It comes from anybody and goes to a person's terminal."""
    return "".join(letter for letter in software[:100] if letter.isprintable())
