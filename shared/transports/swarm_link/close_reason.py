"""The last words of a connection: why it is closed, for whoever is closed out."""

from shared import errors
from shared.frames import wire
from shared.frames.wire import Error
from shared.transports.hyperswarm import PeerConnection

#: No call has it.
NO_CALL = 0


def part(connection: PeerConnection, why: errors.AimeshError) -> None:
    """Say why, and close. A peer that does not read does not learn it."""
    if connection.closed is not None:
        return
    is_full = connection.is_full
    if not is_full:
        connection.send(wire.encode([Error(NO_CALL, why.to_problem())]))
    connection.close(why.message, abort=is_full)
