"""The accounts of the mesh, as many as are asked for: auth gives them page by page."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.auth import User

#: As many as auth gives at once.
PAGE = 1000


async def newest(connection: "CliConnection", most: int, search: str = "") -> "tuple[User, ...]":
    """The newest first, of those with ``search`` in the name or the address, or as the id."""
    from shared.api import auth

    users: tuple[User, ...] = ()
    while True:
        after = users[-1].id if users else None
        page = await connection.call(auth.list_users, auth.ListUsers(min(PAGE, most - len(users)), search, after))
        users += page.users
        if not page.more or len(users) >= most:
            return users
