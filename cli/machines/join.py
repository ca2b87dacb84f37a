"""A worker's state folder with its key, membership and pause; and joining a mesh with a ticket.

The folder has everything that makes this machine a worker, so a restart needs no ticket. Only one process may use it at a time: two
processes with one key would disconnect each other.
"""

import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli import user_folders
from shared import errors
from shared.types import Role

if TYPE_CHECKING:
    from shared.api.membership import Membership
    from shared.identity.node_keys import NodeKey
    from shared.identity.tickets import Ticket
    from shared.node.enrollment import EnrollingNode
    from shared.node.membership_file import MembershipFile

#: A ticket is one line of a few hundred characters.
_MAX_TICKET_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a joined worker. Only this class knows their names."""

    root: Path

    @property
    def key(self) -> Path:
        return self.root / "node.nk"

    @property
    def new_key(self) -> Path:
        """A key that is not a member of a mesh yet."""
        return self.root / "node.nk.new"

    @property
    def membership(self) -> Path:
        return self.root / "node.mesh"

    @property
    def ticket_id(self) -> Path:
        """The name of the ticket that admitted this machine; its secret is never saved."""
        return self.root / "ticket-id"

    @property
    def paused(self) -> Path:
        """Exists while the machine's owner has paused the worker."""
        return self.root / "paused"

    @property
    def declined(self) -> Path:
        """Exists once the machine's owner has declined the offer of a model."""
        return self.root / "model-declined"

    @property
    def status(self) -> Path:
        """The running worker's last status."""
        return self.root / "status.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def companion(self, name: str) -> "Folder":
        """Return the folder of another worker of this machine; see ``companions.Companion``."""
        return Folder(self.root / "servers" / name)

    def companions(self) -> dict[str, "Folder"]:
        """Return those that have joined."""
        found = {path.parent.name: Folder(path.parent) for path in sorted(self.root.glob("servers/*/node.nk"))}
        return {name: folder for name, folder in found.items() if folder.membership.is_file()}

    def kept(self) -> "MembershipFile | None":
        """Return None if the machine has not joined. Raises BadSettings for a damaged file."""
        from shared.node import membership_file

        return membership_file.load(self.membership) if self.key.is_file() else None


def locate(environment: Mapping[str, str], chosen: str | None, here: Path) -> Folder:
    """Return the folder of ``--state``, or $AIMESH_HOME/worker, or $XDG_STATE_HOME/aimesh/worker, or for root that of the machine's worker
    if there is one; creates nothing."""
    if chosen:
        return Folder((here / Path(chosen).expanduser()).absolute())
    users = Folder(user_folders.state(environment) / "worker")
    if not environment.get("AIMESH_HOME"):
        of_machine = Folder(user_folders.SYSTEM_WORKER)
        # Others may not look into it.
        is_root = hasattr(os, "geteuid") and os.geteuid() == 0
        return of_machine if is_root and not users.key.is_file() and of_machine.key.is_file() else users
    own = Folder((here / Path(environment["AIMESH_HOME"]).expanduser()).absolute() / "worker")
    # A worker that joined before AIMESH_HOME counted here.
    return users if users.membership.is_file() and not own.root.is_dir() else own


def prepare(folder: Folder) -> None:
    """Create the folder with mode 0700. Raises BadSettings if that is impossible."""
    try:
        folder.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = folder.root.stat()
        # Root joins for the user that the worker will run as; systemd then changes the folder's owner.
        if os.name == "posix" and os.geteuid() not in (0, facts.st_uid):
            raise errors.BadSettings(f"{folder.root} belongs to another user", hint="choose another folder with --state")
        if stat.S_IMODE(facts.st_mode) & 0o077:
            folder.root.chmod(0o700)
    except OSError as error:
        raise errors.BadSettings(f"cannot write {error.filename or folder.root}: {error.strerror}") from error


def claim(folder: Folder) -> int:
    """Lock the folder for this process and the worker it becomes. Returns the lock's descriptor; raises Overloaded if a worker has it."""
    lock = lock_inherited(folder.lock)
    if lock is None:
        raise errors.Overloaded(
            f"a worker already uses {folder.root}", hint="check it with aicli worker status, or use --state FOLDER for another worker"
        )
    return lock


def give_to_owner(folder: Folder) -> None:
    """Give what root wrote to the user of the machine's service, to whom systemd has given the folder. Requires the lock."""
    owner = folder.root.stat()
    # Windows has no users' numbers.
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or owner.st_uid == 0:
        return
    # By descriptors, because that user may replace folders and files by links meanwhile.
    for _, folders, files, at in os.fwalk(folder.root):
        for name in (*folders, *files):
            if os.stat(name, dir_fd=at, follow_symlinks=False).st_uid == 0:
                os.chown(name, owner.st_uid, owner.st_gid, dir_fd=at, follow_symlinks=False)


def lock_inherited(path: Path) -> int | None:
    """Lock a file for this process and the program that it becomes. Returns the descriptor, or None if another process has the lock.
    Windows locks nothing."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        import fcntl
    except ModuleNotFoundError:
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    os.set_inheritable(lock, True)
    return lock


def is_running(folder: Folder) -> bool:
    """Return whether a process holds the folder: its lock ends with it."""
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
    """Read the ticket of ``TICKET``, ``-`` or ``@FILE``. Raises BadTicket and BadSettings."""
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


async def join(folder: Folder, ticket: "Ticket", node: "EnrollingNode", report: Callable[[str], None]) -> "MembershipFile":
    """Make this machine a worker of the ticket's mesh, unless it has already joined with this ticket. Requires the lock.

    Each ticket gets a new key, which replaces the old one only when the mesh has accepted it: a revoked machine joins as a new one, and an
    invalid ticket changes nothing. Raises what ``enrollment.enroll`` raises, and BadSettings for a folder of another mesh.
    """
    kept = folder.kept()
    if kept is not None and ticket.authority_id not in kept.authorities:
        hint = "use --state FOLDER to be a member of both"
        raise errors.BadSettings(f"{folder.root} belongs to another mesh, {kept.mesh}", hint=hint)
    if kept is not None and _is_of(folder, ticket):
        report(f"this machine already joined mesh {kept.mesh} with this ticket")
        return await finish(folder, kept, report)
    try:
        return await _enroll(folder, ticket, node, report)
    except errors.BadTicket as error:
        if kept is None or not kept.certificate:
            raise
        report(f"{error.message}; continuing, because this machine is already a member of mesh {kept.mesh}")
        return kept


async def finish(folder: Folder, kept: "MembershipFile", report: Callable[[str], None]) -> "MembershipFile":
    """Enroll until there is a certificate: ask again while an administrator has to approve."""
    if kept.certificate:
        return kept
    from shared.identity import node_keys
    from shared.node import enrollment, membership_file

    found = await enrollment.renew_as_newcomer(kept, node_keys.load(folder.key), report)
    enrollment.check_role(found.role, Role.WORKER)
    membership_file.save(folder.membership, found)
    return found


async def _enroll(folder: Folder, ticket: "Ticket", node: "EnrollingNode", report: Callable[[str], None]) -> "MembershipFile":
    from shared.node import membership_file

    def adopt(kept: "MembershipFile") -> "MembershipFile":
        kept = membership_file.by_ticket(kept, ticket)
        if folder.new_key.exists():
            folder.new_key.replace(folder.key)
        membership_file.save(folder.membership, kept)
        folder.ticket_id.write_text(ticket.id, encoding="utf-8")
        return kept

    joined = await enroll_new_key(folder.new_key, ticket, replace(node, on_pending=adopt), report)
    return adopt(membership_file.of(joined, folder.kept()))


async def enroll_new_key(key: Path, ticket: "Ticket", node: "EnrollingNode", report: Callable[[str], None]) -> "Membership":
    """Enroll with the key of an interrupted attempt, or a new one. Raises what ``enrollment.enroll`` raises."""
    from shared.identity import node_keys, private_file
    from shared.node import enrollment

    def forget() -> None:
        key.unlink()

    def load(*, anew: bool) -> "NodeKey":
        if anew:
            forget()
        private_file.create(key, node_keys.new_seed)
        return node_keys.load(key)

    try:
        return await enrollment.enroll(ticket, load(anew=False), node, report)
    except errors.NodeRevoked:
        # The key is from an earlier attempt, whose node was revoked since.
        return await enrollment.enroll(ticket, load(anew=True), node, report)
    except errors.BadTicket:
        # An auth of version 0.3 may know it under another role now.
        forget()
        raise


def _is_of(folder: Folder, ticket: "Ticket") -> bool:
    try:
        return folder.ticket_id.read_text(encoding="utf-8").strip() == ticket.id
    except OSError:
        return False
