"""Where the machines of a person are: an administrator's below /admin/nodes, an owner's own below /nodes."""

from services.web.visits import Visit
from shared.types import UserRole


def root_of(visit: Visit) -> str:
    """What the addresses of the list and of everything in it begin with."""
    return "/admin/nodes" if visit.person.user.role is UserRole.ADMIN else "/nodes"


def here_of(visit: Visit) -> str:
    """What the navigation marks."""
    return root_of(visit).split("/")[1]
