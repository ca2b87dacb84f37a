"""The services at whose doors people come in. They see who comes, and say it; what a client says of its address is its own word."""

from shared.api.auth import Client
from shared.rpc import Call
from shared.types import Role

DOORS = frozenset({Role.WEB, Role.GATEWAY})


def address_seen(client: Client, call: Call) -> str | None:
    """The address that a door has seen, empty where it sees none; None for whoever came by no door."""
    return client.address if call.caller_role in DOORS else None
