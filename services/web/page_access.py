"""Define who may open each page, in one table. Pure.

This check only spares users a page on which nothing works. Auth and the gateway authorize every call again, by the user's access token.
"""

from collections.abc import Mapping
from enum import Enum

from shared import errors, features
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


#: Who may open which paths, with everything below them.
_PATHS: Mapping[PageAudience, str] = {
    PageAudience.ANYBODY: "/ /static /install /install.sh /install.ps1 /register /login /login-link /logout /join"
    " /forgot /reset /verify /pricing",
    PageAudience.HALFWAY: "/login/code /login/second-factor",
    PageAudience.PERSON: """
        /join/accept /dashboard /api-keys /playground /usage /usage.csv /requests /requests.csv /models /settings /organisations /policies
        /invitation /device /billing /live /live/models
    """,
    PageAudience.NODE_OWNER: "/nodes /live/nodes",
    PageAudience.ADMIN: "/live/health /live/charts /live/alerts /admin",
}
#: Path or path prefix -> who may open it; the longest match wins.
_OWN = {path: audience.value for audience, paths in _PATHS.items() for path in paths.split()}
PAGES: Mapping[str, PageAudience] = {path: PageAudience(who) for path, who in features.merged(_OWN, "access", "PAGES").items()}


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
