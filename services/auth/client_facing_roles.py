"""The services that clients connect to. Only they know a client's address; what a client says about its own address proves nothing."""

from shared.api.auth import ClientFacts
from shared.rpc import RpcCall
from shared.types import Role

CLIENT_FACING = frozenset({Role.WEB, Role.GATEWAY})


def client_address(client: ClientFacts, call: RpcCall) -> str | None:
    """Return the client's address as web or the gateway saw it (empty if unknown), or None if another service calls."""
    return client.address if call.caller_role in CLIENT_FACING else None
