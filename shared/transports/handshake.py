"""Checks new connections: each may send one HELLO, and few unknown peers may try at a time.

A connection with a valid HELLO becomes a link. All others are closed or parked.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pyhyperswarm.peer_connection import PeerConnection

from shared import errors
from shared.identity import node_keys
from shared.identity.trust import Trust, TrustedPeer
from shared.protocol import wire
from shared.protocol.wire import Frame, Hello
from shared.timing.concurrency_limit import ConcurrencyLimit
from shared.transports import close_reason
from shared.transports.link import HELLO_SECONDS
from shared.types import NodeId, Role

Value = TypeVar("Value")

#: Unknown peers without a HELLO. Each is gone after HELLO_SECONDS, so a real newcomer gets its chance.
MAX_PENDING = 20
#: Refused keys reconnect three times within a few seconds, with the same result.
REFUSED_SECONDS = 5.0
#: Keys are cheap, so only so many are remembered. The oldest are dropped.
MAX_KNOWN = MAX_REFUSED = 4096
#: Certified peers that we have no link with, such as other gateways. Their connections stay open but unused, because Hyperswarm would
#: reopen closed ones again and again.
MAX_PARKED = 64


@dataclass(slots=True, eq=False)
class HandshakeAttempt:
    """What ``HandshakeLimits`` knows about a connection without a HELLO yet."""

    key: bytes
    is_unknown: bool


class HandshakeLimits:
    """Limits what unauthenticated peers can cost: topics are not secret, so anyone may connect. Pure.

    Owned by one transport, which reports how each attempt ended: exactly one of ``welcome`` (a valid certificate), ``refuse`` (an
    invalid HELLO) and ``leave``. A key that has shown a valid certificate before is known.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._refused_until: OrderedDict[bytes, float] = OrderedDict()
        self._pending = ConcurrencyLimit(MAX_PENDING)

    def arrive(self, key: bytes, now: float) -> HandshakeAttempt | None:
        """Return None if the connection must be closed at once, before anything is computed for it."""
        if now < self._refused_until.get(key, now):
            return None
        attempt = HandshakeAttempt(key, key not in self._known)
        if attempt.is_unknown:
            if self._pending.is_full:
                return None
            self._pending.enter()
        return attempt

    def welcome(self, attempt: HandshakeAttempt) -> None:
        self.leave(attempt)
        _remember(self._known, attempt.key, None, MAX_KNOWN)

    def refuse(self, attempt: HandshakeAttempt, now: float) -> None:
        self.leave(attempt)
        _remember(self._refused_until, attempt.key, now + REFUSED_SECONDS, MAX_REFUSED)

    def leave(self, attempt: HandshakeAttempt) -> None:
        """Handle a peer that left or timed out. It may come back at once, because the network may be the reason."""
        if attempt.is_unknown:
            attempt.is_unknown = False
            self._pending.leave()


def _remember(memory: OrderedDict[bytes, Value], key: bytes, value: Value, most: int) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > most:
        memory.popitem(last=False)


@dataclass(frozen=True, slots=True)
class HandshakeRefusal:
    """A peer that was refused, and why."""

    node: NodeId
    #: Only if a certificate of this mesh confirms it.
    role: Role | None
    software: str
    why: errors.AimeshError


class _Arrival:
    """A connection without a HELLO yet."""

    def __init__(self, handshake: "Handshake", connection: PeerConnection, attempt: HandshakeAttempt) -> None:
        self.connection = connection
        self.attempt = attempt
        self.own_role: Role | None = None
        self._handshake = handshake
        self._is_stopped = False
        self._timer = handshake.loop.call_later(HELLO_SECONDS, self._too_late)

    def start(self) -> None:
        self.connection.on_closed = self._on_lost
        self.connection.on_message = self._on_message

    def stop(self) -> None:
        self._is_stopped = True
        self._timer.cancel()
        self.connection.on_closed = None

    def _on_message(self, body: bytes) -> None:
        if not self._is_stopped:
            self.stop()
            self._handshake.check_hello(self, body)

    def _too_late(self) -> None:
        self.stop()
        self.connection.close(f"no HELLO within {HELLO_SECONDS} s", abort=True)
        self._handshake.give_up(self)

    def _on_lost(self, reason: str) -> None:
        self.stop()
        self._handshake.give_up(self)


class Handshake:
    """Owned by one transport."""

    def __init__(self, trust: Trust, software: str, clock: Callable[[], float]) -> None:
        self.loop = asyncio.get_running_loop()
        #: Called with a connection whose HELLO was valid, its HELLO, its verified identity, the role in our HELLO, and its further frames.
        self.on_admitted: Callable[[PeerConnection, Hello, TrustedPeer, Role, list[Frame]], None] = lambda *admitted: None
        self.on_refused: Callable[[HandshakeRefusal], None] = lambda refusal: None
        self.refused = 0
        self.missed: set[bytes] = set()
        self._trust = trust
        self._software = software
        self._clock = clock
        self._limits = HandshakeLimits()
        self._arrivals: set[_Arrival] = set()
        self._parked: set[PeerConnection] = set()

    def handle_connection(self, connection: PeerConnection) -> None:
        attempt = self._limits.arrive(connection.key, self.loop.time())
        if attempt is None:
            self.reject(connection)
            return
        arrival = _Arrival(self, connection, attempt)
        self._arrivals.add(arrival)
        if not self._waits_for_peer_hello:
            self._send_hello(arrival)
        arrival.start()

    def reject(self, connection: PeerConnection) -> None:
        self.refused += 1
        connection.close("not now", abort=True)

    def hello(self, connection: PeerConnection) -> Hello:
        return self._trust.hello(node_keys.node_of(connection.key), link_id(connection), self._software, self._clock())

    def admit(self, connection: PeerConnection, hello: Hello) -> TrustedPeer:
        """Raises what ``Trust.admit`` raises."""
        return self._trust.admit(hello, node_keys.node_of(connection.key), link_id(connection), self._clock())

    def close(self, why: errors.AimeshError) -> None:
        """Close all connections that have not become links."""
        for arrival in list(self._arrivals):
            arrival.stop()
            self._forget(arrival)
            self._limits.leave(arrival.attempt)
            arrival.connection.close(why.message, abort=True)
        for connection in list(self._parked):
            connection.close(why.message)

    def check_hello(self, arrival: _Arrival, body: bytes) -> None:
        """Check the first message of a connection, which must be a HELLO of at most 4 KiB."""
        hello: Hello | None = None
        try:
            frames = wire.decode(body, limit=wire.MAX_BYTES_BEFORE_HELLO)
            if not frames or not isinstance(frames[0], Hello):
                raise errors.ProtocolViolation("the first frame must be a HELLO")
            hello = frames[0]
            admitted = self.admit(arrival.connection, hello)
            if arrival.own_role in (None, Role.NEWCOMER) and admitted.peer.role is not Role.AUTH:
                raise errors.WrongRole(f"a {admitted.peer.role} cannot certify us")
        except (errors.ProtocolViolation, errors.NotAllowed) as why:
            self._refuse(arrival, hello, why)
        else:
            self._admit_peer(arrival, hello, admitted, frames[1:])

    def give_up(self, arrival: _Arrival) -> None:
        """Handle a peer that left or timed out. It may try again at once, because the network may be the reason."""
        self._forget(arrival)
        self._limits.leave(arrival.attempt)
        self.refused += 1
        self.missed.update(arrival.connection.topics)

    @property
    def _waits_for_peer_hello(self) -> bool:
        return self._trust.role is Role.NEWCOMER or not self._trust.certificate

    def _send_hello(self, arrival: _Arrival) -> Role:
        hello = self.hello(arrival.connection)
        arrival.own_role = hello.role
        arrival.connection.send(wire.encode([hello]))
        return hello.role

    def _admit_peer(self, arrival: _Arrival, hello: Hello, admitted: TrustedPeer, frames: list[Frame]) -> None:
        self._forget(arrival)
        if admitted.peer.role is Role.NEWCOMER:
            self._limits.leave(arrival.attempt)
        else:
            self._limits.welcome(arrival.attempt)
        own_role = arrival.own_role or self._send_hello(arrival)
        self.on_admitted(arrival.connection, hello, admitted, own_role, frames)

    def _refuse(self, arrival: _Arrival, hello: Hello | None, why: errors.AimeshError) -> None:
        self._forget(arrival)
        connection, node = arrival.connection, node_keys.node_of(arrival.connection.key)
        if isinstance(why, errors.WrongRole) and arrival.own_role is not None and len(self._parked) < MAX_PARKED:
            self._limits.welcome(arrival.attempt)
            self._park(connection)
            return
        self._limits.refuse(arrival.attempt, self.loop.time())
        self.refused += 1
        role = None if hello is None else self._trust.role_of(hello, node)
        if role is not None and arrival.own_role is not None:
            close_reason.part(connection, why)  # one of our nodes, which can act on it
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
    """Return the number that the HELLOs of a connection sign. Both sides contribute randomness to it."""
    return int.from_bytes(connection.channel[:8], "big") >> 1


def _printable(software: str) -> str:
    """Remove control characters: the text is untrusted and shown in terminals."""
    return "".join(letter for letter in software[:100] if letter.isprintable())
