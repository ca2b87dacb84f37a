"""Remove revoked nodes from the NATS users: the supervisor reads the revocation list that auth saves beside its key.

Over Hyperswarm every node rejects a revoked node itself. Over NATS the server has to, and it reads users.conf.
"""

import asyncio
import logging
from pathlib import Path

import msgspec

from shared import errors
from shared.identity import certificates
from shared.types import AuthorityId, MeshName, NodeId
from stack.servers import nats_server
from stack.stack_home import StackHome

_LOOK_SECONDS = 1.0

_log = logging.getLogger("supervisor")


class _RevokedNodes(msgspec.Struct, frozen=True, rename="camel"):
    """The fields needed here of a node's membership file (shared/node/membership_file.py)."""

    revocations: bytes = b""
    authorities: tuple[AuthorityId, ...] = ()


def list_file(home: StackHome) -> Path:
    """Return the file that auth keeps beside its key."""
    return home.key("auth").with_suffix(".mesh")


def read_revoked(path: Path) -> frozenset[NodeId]:
    """Return the revoked nodes; none without a file or a list in it. Raises NotCertified and BadSettings."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_RevokedNodes)
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        raise errors.BadSettings(f"{path} cannot be read: {error}", hint="restart auth, which writes it again") from error
    if not kept.revocations:
        return frozenset()
    return frozenset(certificates.check_list(kept.revocations, kept.authorities).nodes)


async def watch(home: StackHome, mesh: MeshName) -> None:
    """Until cancelled."""
    seen: int | None = None
    while True:
        changed = _changed_at(list_file(home))
        if changed != seen:
            seen = changed
            await asyncio.to_thread(_apply, home, mesh)
        await asyncio.sleep(_LOOK_SECONDS)


def _changed_at(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _apply(home: StackHome, mesh: MeshName) -> None:
    try:
        gone = nats_server.revoke(home, mesh, read_revoked(list_file(home)))
    except (errors.AimeshError, OSError) as error:
        _log.error("revocations: %s", error)
        return
    for node in gone:
        _log.warning("%s (%s) was revoked and is no longer a NATS user", node.name, node.node)
