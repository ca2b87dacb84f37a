"""Who may open each page: one table. Pure. What a page does is asked of auth and the gateway with the visitor's own access token, and
they decide again; this wall only spares people a page on which nothing works."""

from collections.abc import Mapping
from enum import Enum

from shared import errors
from shared.api.auth import Session
from shared.types import UserRole


class Who(Enum):
    ANYBODY = "anybody"
    #: Somebody who has signed in, all steps of it.
    PERSON = "person"
    #: Somebody whose password was right, whatever is still to do.
    HALFWAY = "halfway"
    #: Who lends machines, and administrators.
    NODE_OWNER = "node owner"
    ADMIN = "administrator"


#: The first part of each path, or the whole of it; the longest that fits holds.
PAGES: Mapping[str, Who] = {
    "/": Who.ANYBODY,
    "/static": Who.ANYBODY,
    "/register": Who.ANYBODY,
    "/login": Who.ANYBODY,
    "/login/code": Who.HALFWAY,
    "/login/second-factor": Who.HALFWAY,
    "/login-link": Who.ANYBODY,
    "/logout": Who.ANYBODY,
    "/forgot": Who.ANYBODY,
    "/reset": Who.ANYBODY,
    "/dashboard": Who.PERSON,
    "/api-keys": Who.PERSON,
    "/playground": Who.PERSON,
    "/usage": Who.PERSON,
    "/usage.csv": Who.PERSON,
    "/requests": Who.PERSON,
    "/requests.csv": Who.PERSON,
    "/models": Who.PERSON,
    "/settings": Who.PERSON,
    "/organisations": Who.PERSON,
    "/invitation": Who.PERSON,
    "/nodes": Who.NODE_OWNER,
    "/live": Who.PERSON,
    "/live/nodes": Who.NODE_OWNER,
    "/live/health": Who.ADMIN,
    "/live/charts": Who.ADMIN,
    "/live/alerts": Who.ADMIN,
    "/admin": Who.ADMIN,
}


def who_may(path: str) -> Who:
    """For a path, or the pattern of a route. Raises ValueError where nobody has said it."""
    parts = path.strip("/").split("/") if path != "/" else []
    for length in range(len(parts), -1, -1):
        if (who := PAGES.get("/" + "/".join(parts[:length]))) is not None and (length or not parts):
            return who
    raise ValueError(f"{path} has no row in services/web/access.py: say who may open it")


def check(who: Who, session: Session) -> None:
    """Raises NotAllowed for somebody who may not."""
    allowed = {Who.ADMIN: {UserRole.ADMIN}, Who.NODE_OWNER: {UserRole.ADMIN, UserRole.NODE_OWNER}}.get(who)
    if allowed is not None and session.user.role not in allowed:
        whom = "administrators" if who is Who.ADMIN else "people who lend machines"
        raise errors.NotAllowed(f"this page is for {whom}", hint="ask an administrator of this mesh")
