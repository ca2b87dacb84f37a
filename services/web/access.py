"""Define who may open each page, in one table. Pure.

This check only spares users a page on which nothing works. Auth and the gateway authorize every call again, by the user's access token.
"""

from collections.abc import Mapping
from enum import Enum

from shared import errors
from shared.api.auth import LoginSession
from shared.types import UserRole


class Who(Enum):
    ANYBODY = "anybody"
    #: A user who completed all sign-in steps.
    PERSON = "person"
    #: A user who passed the password step, whether or not the other steps are done.
    HALFWAY = "halfway"
    #: Node owners and administrators.
    NODE_OWNER = "node owner"
    ADMIN = "administrator"


#: Path or path prefix -> who may open it; the longest match wins.
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
    """Return who may open a path or a route pattern. Raises ValueError if the table has no row for it."""
    parts = path.strip("/").split("/") if path != "/" else []
    for length in range(len(parts), -1, -1):
        if (who := PAGES.get("/" + "/".join(parts[:length]))) is not None and (length or not parts):
            return who
    raise ValueError(f"{path} has no row in services/web/access.py; add one")


def check(who: Who, session: LoginSession) -> None:
    """Raise NotAllowed unless the session may open the page."""
    allowed = {Who.ADMIN: {UserRole.ADMIN}, Who.NODE_OWNER: {UserRole.ADMIN, UserRole.NODE_OWNER}}.get(who)
    if allowed is not None and session.user.role not in allowed:
        audience = "administrators" if who is Who.ADMIN else "node owners"
        raise errors.NotAllowed(f"only {audience} can open this page", hint="ask an administrator for access")
