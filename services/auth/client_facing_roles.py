"""The services at whose doors people come in. They see who comes, and say it; what a client says of its address is its own word."""

from shared.api.auth import ClientFacts
from shared.rpc import RpcCall
from shared.types import Role

DOORS = frozenset({Role.WEB, Role.GATEWAY})


def address_seen(client: ClientFacts, call: RpcCall) -> str | None:
    """The address that a door has seen, empty where it sees none; None for whoever came by no door."""
    return client.address if call.caller_role in DOORS else None
