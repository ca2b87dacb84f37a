"""``enrollment.json``: the nodes that the operator made, each with its key and role. `aicli stack init` writes it, and auth reads it."""

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


class _EnrollmentList(msgspec.Struct, frozen=True):
    nodes: tuple[EnrolledNode, ...] = ()


def render(nodes: Sequence[EnrolledNode]) -> str:
    return msgspec.json.format(msgspec.json.encode(_EnrollmentList(tuple(nodes)))).decode() + "\n"


def read(path: Path) -> tuple[EnrolledNode, ...]:
    """Return no nodes if there is no file. Raises BadSettings."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_EnrollmentList).nodes
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise errors.BadSettings(f"{path} cannot be read: {error}", hint="create it again with `aicli stack init`") from error
