"""Define who may open each page, in one table. Pure.

This check only spares users a page on which nothing works. Auth and the gateway authorize every call again, by the user's access token.
"""

from collections.abc import Mapping
from enum import Enum

from shared import errors
from shared.api.auth import LoginSession
from shared.types import UserRole


class PageAudience(Enum):
    ANYBODY = "anybody"
    #: A user who completed all sign-in steps.
    PERSON = "person"
    #: A user who passed the password step, whether or not the other steps are done.
    HALFWAY = "halfway"
    #: Node owners and administrators.
    NODE_OWNER = "node owner"
    ADMIN = "administrator"


#: Path or path prefix -> who may open it; the longest match wins.
PAGES: Mapping[str, PageAudience] = {
    "/": PageAudience.ANYBODY,
    "/static": PageAudience.ANYBODY,
    "/register": PageAudience.ANYBODY,
    "/login": PageAudience.ANYBODY,
    "/login/code": PageAudience.HALFWAY,
    "/login/second-factor": PageAudience.HALFWAY,
    "/login-link": PageAudience.ANYBODY,
    "/logout": PageAudience.ANYBODY,
    "/join": PageAudience.ANYBODY,
    "/join/accept": PageAudience.PERSON,
    "/forgot": PageAudience.ANYBODY,
    "/reset": PageAudience.ANYBODY,
    "/dashboard": PageAudience.PERSON,
    "/api-keys": PageAudience.PERSON,
    "/playground": PageAudience.PERSON,
    "/usage": PageAudience.PERSON,
    "/usage.csv": PageAudience.PERSON,
    "/requests": PageAudience.PERSON,
    "/requests.csv": PageAudience.PERSON,
    "/models": PageAudience.PERSON,
    "/settings": PageAudience.PERSON,
    "/organisations": PageAudience.PERSON,
    "/policies": PageAudience.PERSON,
    "/invitation": PageAudience.PERSON,
    "/nodes": PageAudience.NODE_OWNER,
    "/live": PageAudience.PERSON,
    "/live/models": PageAudience.PERSON,
    "/live/nodes": PageAudience.NODE_OWNER,
    "/live/health": PageAudience.ADMIN,
    "/live/charts": PageAudience.ADMIN,
    "/live/alerts": PageAudience.ADMIN,
    "/admin": PageAudience.ADMIN,
}


def find_audience(path: str) -> PageAudience:
    """Return who may open a path or a route pattern. Raises ValueError if the table has no row for it."""
    parts = path.strip("/").split("/") if path != "/" else []
    for length in range(len(parts), -1, -1):
        if (audience := PAGES.get("/" + "/".join(parts[:length]))) is not None and (length or not parts):
            return audience
    raise ValueError(f"{path} has no row in services/web/page_access.py; add one")


def check(audience: PageAudience, session: LoginSession) -> None:
    """Raise NotAllowed unless the session may open the page."""
    allowed = {PageAudience.ADMIN: {UserRole.ADMIN}, PageAudience.NODE_OWNER: {UserRole.ADMIN, UserRole.NODE_OWNER}}.get(audience)
    if allowed is not None and session.user.role not in allowed:
        allowed_users = "administrators" if audience is PageAudience.ADMIN else "node owners"
        raise errors.NotAllowed(f"only {allowed_users} can open this page", hint="ask an administrator for access")
