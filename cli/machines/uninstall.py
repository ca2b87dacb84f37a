"""`aicli uninstall`: take this machine out of its meshes, and remove what the install line brought: services, packages, keys and settings.

Nodes and keys are revoked first, because their secrets are deleted afterwards. What can't be revoked is named, and everything else is still
removed: the mesh may be gone.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import installation, user_folders
from cli.cli_context import CliContext
from cli.machines import join, units
from cli.machines.join import Folder
from cli.machines.units import UnitPlace
from cli.output import printing
from cli.output.exit_codes import ExitCode
from shared import errors
from shared.types import Credential

if TYPE_CHECKING:
    from cli.connection import CliConnection

#: A mesh that is there answers in a second or two.
_FIND_SECONDS = 20.0
#: In a worker's folder.
_MODELS = "models"


@click.command()
@click.option("--models", "with_models", is_flag=True, help="Also delete the models that this machine has downloaded.")
@click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
@click.option("--state", metavar="DIR", help="State folder of the joined worker, if it has another one than the default.")
@click.pass_context
@click.pass_obj
def uninstall(here: CliContext, context: click.Context, /, *, with_models: bool, yes: bool, state: str | None) -> None:
    """Take this machine out of its mesh, and remove aimesh from it.

    Revokes the worker and the API keys of this machine, stops and removes its services, and deletes aicli, keys, chats and settings.
    Downloaded models stay without --models. A checkout stays, too: to stop its stack, run make down.
    """
    machine = _Machine(here, state)
    places = [*(place.path for place in machine.units), *machine.files(with_models=with_models)]
    if not places:
        click.echo("There is nothing to remove.")
        return
    machine.check_writable()
    click.echo("This revokes the keys of this machine and deletes:")
    for path in places:
        click.echo(f"  {printing.printable(str(path))}")
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("cannot ask for confirmation without a terminal; use --yes")
        click.confirm("Continue?", abort=True, err=True)
    for unit in machine.units:
        unit.remove()
    left = [*machine.revoke_keys(), *machine.revoke_nodes()]
    kept = [] if with_models else machine.models()
    # At last, because this program may be in one of them.
    for path in machine.files(with_models=with_models):
        _delete(path)
    for problem in left:
        printing.note(problem)
    click.echo("aimesh is removed from this machine.")
    for path in kept:
        printing.note(f"The models are still in {path}")
    if left:
        context.exit(ExitCode.FAILED)


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


class _Machine:
    """What the user, or root the machine, has of aimesh."""

    def __init__(self, here: CliContext, state: str | None) -> None:
        self._here = here
        self._is_root = is_root()
        scopes = (False, True) if self._is_root else (False,)
        places = (UnitPlace(name, here.environment, is_system) for name in units.NAMES for is_system in scopes)
        self.units = [place for place in places if place.path.exists()]
        self._installed = installation.find(Path(sys.prefix))
        roots = [join.locate(here.environment, state, here.folder).root, *((user_folders.SYSTEM_WORKER,) if self._is_root else ())]
        # systemd makes the folder of a service with its own user a link.
        self._workers = [Folder(root) for root in dict.fromkeys(path.resolve() for path in roots) if root.is_dir()]

    def check_writable(self) -> None:
        """Raises BadSettings."""
        if self._installed is not None and not os.access(self._installed.home, os.W_OK):
            raise errors.BadSettings(f"{self._installed.home} belongs to root", hint="run it as root: sudo aicli uninstall")

    def models(self) -> list[Path]:
        return [found for folder in self._workers if (found := folder.root / _MODELS).is_dir()]

    def files(self, *, with_models: bool) -> list[Path]:
        """Return the files and folders to delete, without the models unless they shall go, too."""
        environment = self._here.environment
        kept = [] if with_models else self.models()
        states = [*(folder.root for folder in self._workers), user_folders.state(environment)]
        found = [each for state in states for each in _without(state, kept)]
        found += [user_folders.config(environment), units.config_folder(environment) / units.SYSTEM_SETTINGS.name]
        if self._is_root:
            found += [user_folders.SYSTEM_WORKER, units.SYSTEM_SETTINGS] if not kept else [units.SYSTEM_SETTINGS]
        if self._installed is not None:
            found += [*self._installed.links(environment), self._installed.home]
        return [path for path in dict.fromkeys(found) if path.is_symlink() or path.exists()]

    def revoke_keys(self) -> Iterator[str]:
        """Revoke the API keys of the user's profiles. Yield what could not be revoked, and why."""
        from cli import profile

        for name in profile.names(self._here.environment):
            try:
                found = profile.read(profile.place_of(name, self._here.environment))
                if found.api_key is not None and not self._here.run_with(found, partial(_revoke_key, found.api_key)):
                    yield f"The key of the profile {name} was rotated elsewhere; its old secret works until the overlap ends."
            except errors.NotAuthenticated:
                continue  # it was revoked before
            except errors.AimeshError as error:
                yield f"The key of the profile {name} still works: {error.message}. Revoke it: aicli keys revoke, on another machine"

    def revoke_nodes(self) -> Iterator[str]:
        """Revoke the worker and the clients of this machine. Yield what could not be revoked, and why. Raises BadSettings if a worker
        still runs."""
        for folder in self._workers:
            if join.is_running(folder):
                raise errors.BadSettings(f"a worker still uses {folder.root}", hint="stop it with Ctrl-C, and run this again")
            yield from self._revoke_node(folder.key, folder.membership)
        from cli import profile

        for name in profile.names(self._here.environment):
            path = profile.place_of(name, self._here.environment)
            yield from self._revoke_node(path.with_suffix(".nk"), path.with_suffix(".mesh"))

    def _revoke_node(self, key: Path, membership: Path) -> Iterator[str]:
        from cli import interrupts
        from shared.identity import node_keys
        from shared.node import enrollment, membership_file

        if not key.is_file() or not membership.is_file():
            return
        node = ""
        try:
            kept, own = membership_file.load(membership), node_keys.load(key)
            node = own.id
            if kept is not None:
                options = enrollment.EnrollmentOptions(find_seconds=_FIND_SECONDS)
                interrupts.run(enrollment.leave_for_good(kept, own, printing.note, options))
        except errors.AimeshError as error:
            hint = f"An administrator can revoke it: aicli admin nodes revoke {node or 'ID'}"
            yield f"The node of {key} is still a member of its mesh: {error.message}. {hint}"


async def _revoke_key(key: Credential, connection: "CliConnection") -> bool:
    from cli.account import login

    return await login.revoke(connection, key, by=key)


def _without(folder: Path, kept: Sequence[Path]) -> Iterator[Path]:
    """Yield what of a folder is not one of ``kept``."""
    if folder in kept:
        return
    if not any(each.is_relative_to(folder) for each in kept):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        yield from _without(path, kept)


def _delete(path: Path) -> None:
    """Raises BadSettings."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise errors.BadSettings(f"cannot delete {error.filename or path}: {error.strerror}") from error
