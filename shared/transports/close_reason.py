"""Closes a connection and tells the peer why."""

from pyhyperswarm.peer_connection import PeerConnection

from shared import errors
from shared.protocol import wire
from shared.protocol.wire import Error

NO_CALL = 0


def part(connection: PeerConnection, why: errors.AimeshError) -> None:
    """Send the reason and close. A peer that does not read does not get it."""
    if connection.closed is not None:
        return
    is_full = connection.is_full
    if not is_full:
        connection.send(wire.encode([Error(NO_CALL, why.to_problem())]))
    connection.close(why.message, abort=is_full)
