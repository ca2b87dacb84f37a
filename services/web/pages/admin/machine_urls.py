"""Return the paths of the node pages: /admin/nodes for administrators, /nodes for node owners."""

from services.web.request_context import PageRequest
from shared.types import UserRole


def root_of(page_request: PageRequest) -> str:
    """Return the path of the list."""
    return "/admin/nodes" if page_request.person.user.role is UserRole.ADMIN else "/nodes"


def here_of(page_request: PageRequest) -> str:
    """Return the section that the navigation marks."""
    return root_of(page_request).split("/")[1]
