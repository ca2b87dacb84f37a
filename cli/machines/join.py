"""A worker's state folder: its key, its membership of a mesh, whether its owner has paused it; and joining with a ticket.

The folder holds everything that makes this machine a worker, so that a restart needs no ticket. One process uses it at a
time: two with one key would push each other out of the mesh.
"""

import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shared import errors

if TYPE_CHECKING:
    from shared.identity.tickets import Ticket
    from shared.node.enrollment import EnrollingNode
    from shared.node.membership_file import MembershipFile

#: A ticket is one line of a few hundred characters.
_MAX_TICKET_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a joined worker keeps its things. Only this class knows their names."""

    root: Path

    @property
    def key(self) -> Path:
        return self.root / "node.nk"

    @property
    def new_key(self) -> Path:
        """A key that no mesh has taken yet."""
        return self.root / "node.nk.new"

    @property
    def membership(self) -> Path:
        return self.root / "node.mesh"

    @property
    def ticket_id(self) -> Path:
        """Which ticket let this machine in, by its name; what is secret of a ticket is never kept."""
        return self.root / "ticket-id"

    @property
    def paused(self) -> Path:
        """There while the owner wants the machine for himself."""
        return self.root / "paused"

    @property
    def status(self) -> Path:
        """What the running worker last told."""
        return self.root / "status.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def kept(self) -> "MembershipFile | None":
        """None for a machine that has not joined; raises BadSettings for a file that is damaged."""
        from shared.node import membership_file

        return membership_file.load(self.membership) if self.key.is_file() else None


def locate(environment: Mapping[str, str], chosen: str | None, here: Path) -> Folder:
    """The folder of ``--state``, or $XDG_STATE_HOME/aimesh/worker; creates nothing."""
    if chosen:
        return Folder((here / Path(chosen).expanduser()).absolute())
    given = environment.get("XDG_STATE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    state = Path(given) if given.startswith("/") else Path(environment.get("HOME") or "~").expanduser() / ".local/state"
    return Folder(state / "aimesh/worker")


def prepare(folder: Folder) -> None:
    """Make the folder, 0700; raises BadSettings if it cannot be ours."""
    try:
        folder.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = folder.root.stat()
        # Root joins for the user that the worker will run as; systemd hands the folder over to that one.
        if os.geteuid() not in (0, facts.st_uid):
            raise errors.BadSettings(f"{folder.root} belongs to another user", hint="choose another folder with --state")
        if stat.S_IMODE(facts.st_mode) & 0o077:
            folder.root.chmod(0o700)
    except OSError as error:
        raise errors.BadSettings(f"cannot write {error.filename or folder.root}: {error.strerror}") from error


def claim(folder: Folder) -> int:
    """Take the folder for this process and what it becomes; returns the lock's descriptor. Raises Overloaded if a worker has it."""
    import fcntl

    lock = os.open(folder.lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise errors.Overloaded(
            f"a worker already uses {folder.root}", hint="check it with aicli worker status, or use --state FOLDER for another worker"
        ) from None
    os.set_inheritable(lock, True)
    return lock


def is_running(folder: Folder) -> bool:
    """Whether a process has the folder: the lock ends with it, however it ends."""
    import fcntl

    try:
        lock = os.open(folder.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise errors.BadSettings(
            f"cannot read {folder.lock}: {error.strerror}", hint="run this as the worker's user, or as root"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def read_ticket(text: str, here: Path) -> "Ticket":
    """The ticket of ``TICKET``, ``-`` or ``@FILE``; raises BadTicket and BadSettings."""
    from shared.identity import tickets

    if text == "-":
        text = sys.stdin.read(_MAX_TICKET_BYTES)
    elif text.startswith("@"):
        path = here / Path(text[1:]).expanduser()
        try:
            text = path.read_bytes()[:_MAX_TICKET_BYTES].decode(errors="replace")
        except OSError as error:
            raise errors.BadSettings(f"cannot read the ticket in {path}: {error.strerror}") from error
    return tickets.parse(text)


async def join(folder: Folder, ticket: "Ticket", newcomer: "EnrollingNode", say: Callable[[str], None]) -> "MembershipFile":
    """Make this machine a worker of the ticket's mesh, unless it is one by this ticket already; the folder is ours.

    Each ticket gets a key of its own, which takes the place of the old one when the mesh has taken it: a machine that was
    revoked comes as a new one, and a ticket that is no good leaves what there was as it is. Raises what ``enrolling.enroll``
    does, and BadSettings for a folder of another mesh.
    """
    kept = folder.kept()
    if kept is not None and ticket.authority_id not in kept.authorities:
        hint = "use --state FOLDER to be a member of both"
        raise errors.BadSettings(f"{folder.root} belongs to another mesh, {kept.mesh}", hint=hint)
    if kept is not None and _is_of(folder, ticket):
        say(f"this machine already joined mesh {kept.mesh} with this ticket")
        return await finish(folder, kept, say)
    try:
        return await _enrol(folder, ticket, newcomer, say)
    except errors.NodeRevoked:
        # The key is left over from a try whose node was revoked since.
        folder.new_key.unlink()
        return await _enrol(folder, ticket, newcomer, say)
    except errors.BadTicket as error:
        if kept is None or not kept.certificate:
            raise
        say(f"{error.message}; continuing, because this machine is already a member of mesh {kept.mesh}")
        return kept


async def finish(folder: Folder, kept: "MembershipFile", say: Callable[[str], None]) -> "MembershipFile":
    """A membership with a certificate: what an administrator had to approve is asked for again."""
    if kept.certificate:
        return kept
    from shared.identity import node_keys
    from shared.node import enrollment, membership_file

    found = await enrollment.renew_at_enrollment_topic(kept, node_keys.load(folder.key), say)
    _check_role(found)
    membership_file.save(folder.membership, found)
    return found


async def _enrol(folder: Folder, ticket: "Ticket", newcomer: "EnrollingNode", say: Callable[[str], None]) -> "MembershipFile":
    from shared.identity import node_keys
    from shared.node import enrollment, membership_file
    from stack import secret_files

    secret_files.ensure_file(folder.new_key, node_keys.new_seed)

    def adopt(kept: "MembershipFile") -> None:
        if folder.new_key.exists():
            folder.new_key.replace(folder.key)
        membership_file.save(folder.membership, kept)
        folder.ticket_id.write_text(ticket.id, encoding="utf-8")

    joined = await enrollment.enroll(ticket, node_keys.load(folder.new_key), replace(newcomer, on_pending=adopt), say)
    found = membership_file.of(joined, folder.kept())
    try:
        _check_role(found)
    except errors.BadTicket:
        # Auth knows this key as something else from now on.
        folder.new_key.unlink(missing_ok=True)
        raise
    adopt(found)
    return found


def _check_role(kept: "MembershipFile") -> None:
    from shared.types import Role

    if kept.role is not Role.WORKER:
        hint = "ask for a worker ticket: aicli admin tickets create --role worker"
        raise errors.BadTicket(f"this ticket is for a {kept.role}, not a worker", hint=hint)


def _is_of(folder: Folder, ticket: "Ticket") -> bool:
    try:
        return folder.ticket_id.read_text(encoding="utf-8").strip() == ticket.id
    except OSError:
        return False
