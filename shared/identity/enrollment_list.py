"""``enrollment.json``: the nodes and tickets that the operator made. `aicli stack init` writes it, and auth reads it."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from shared import errors
from shared.types import NodeId, Role


class EnrolledNode(msgspec.Struct, frozen=True):
    """A node that may connect before it has a certificate."""

    name: str
    role: Role
    node: NodeId


class EnrolledTicket(msgspec.Struct, frozen=True):
    """The public half of a ticket for the operator's replicas, made before auth runs."""

    id: str
    public_key: NodeId
    role: Role
    active_most: int
    networks: tuple[str, ...]
    #: Seconds since 1970.
    expires_at: int


class EnrollmentList(msgspec.Struct, frozen=True):
    nodes: tuple[EnrolledNode, ...] = ()
    tickets: tuple[EnrolledTicket, ...] = ()


def render(nodes: Sequence[EnrolledNode], tickets: Sequence[EnrolledTicket] = ()) -> str:
    return msgspec.json.format(msgspec.json.encode(EnrollmentList(tuple(nodes), tuple(tickets)))).decode() + "\n"


def read(path: Path) -> EnrollmentList:
    """Return an empty list if there is no file. Raises BadSettings."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=EnrollmentList)
    except FileNotFoundError:
        return EnrollmentList()
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise errors.BadSettings(f"{path} cannot be read: {error}", hint="create it again with `aicli stack init`") from error
