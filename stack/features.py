"""What a feature may add to the stack of this machine. Nothing here names one.

PART in its `stack/part.py` is a ``StackPart``. COMMANDS in its `stack/commands.py` are commands of `aicli stack`.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from shared import features
from stack.servers.postgres import Postgres
from stack.servers.program import Program
from stack.settings import StackSettings
from stack.stack_home import StackHome


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSite:
    """A stack that is planned."""

    home: StackHome
    settings: StackSettings
    #: The user's settings, secrets as NAME_FILE.
    recorded: Mapping[str, str]
    #: The machine's variables that every program gets.
    machine: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSite:
    """The `init` of Compose, which gives each container its own files."""

    home: StackHome
    #: Returns a setting of `.env`; empty if it is not set.
    given: Callable[[str], str]
    #: Returns the URL of the database for a role.
    database_url: Callable[[str], bytes]


def _ask_nothing(home: StackHome, given: Mapping[str, Any], report: Callable[[str], None]) -> None: ...
async def _do_nothing(home: StackHome, server: Postgres, programs: Sequence[Program]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreWorker:
    """A worker beside the first, for a backend of a feature."""

    is_wanted: bool
    #: None: not chosen yet.
    port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPart:
    #: Returns a worker for each of its backends, by name.
    workers: Callable[[StackSettings], Mapping[str, MoreWorker]] = lambda _settings: {}
    #: Returns the providers whose servers may be outside.
    providers: Callable[[StackSettings], Iterable[str]] = lambda _settings: ()
    #: Settings of a service, which the user may change.
    defaults: Callable[[StackSite, str], Mapping[str, str]] = lambda _site, _service: {}
    #: What runs beside the services.
    programs: Callable[[StackSite], Sequence[Program]] = lambda _site: ()
    #: Options of our own PostgreSQL.
    database_options: Callable[[StackSettings], Mapping[str, str]] = lambda _settings: {}
    #: Raises BadSettings if this home must not start. The server is None before it is planned, and if it isn't ours.
    ensure_may_start: Callable[[StackHome, Postgres | None], None] = lambda _home, _server: None
    #: Options of `up`, whose values ``before_start`` gets.
    up_options: tuple[click.Option, ...] = ()
    #: Asks a person what to start, before `up` plans it, and reports to them. Raises AimeshError.
    before_start: Callable[[StackHome, Mapping[str, Any], Callable[[str], None]], None] = _ask_nothing
    #: Is awaited before the services change tables that exist. Raises AimeshError, which ends the start.
    before_migrations: Callable[[StackHome, Postgres, Sequence[Program]], Awaitable[None]] = _do_nothing
    #: Whether it works on that now: `up` waits as long as it does.
    is_preparing: Callable[[StackHome], bool] = lambda _home: False
    #: What it has done before migrations, the newest last: `up` prints what is new.
    notes: Callable[[StackHome, Mapping[str, str]], Sequence[str]] = lambda _home, _recorded: ()
    #: Creates secrets that its program needs where it can write none, as in a cluster.
    ensure_secrets: Callable[[StackHome], None] = lambda _home: None
    #: Files for volumes of Compose: volume -> path in it -> content.
    container_files: Callable[[ContainerSite], Mapping[str, Mapping[str, bytes]]] = lambda _site: {}


def parts() -> list[StackPart]:
    return [*features.parts("stack.part", StackPart).values()]


def workers(settings: StackSettings) -> dict[str, MoreWorker]:
    return {name: worker for part in parts() for name, worker in part.workers(settings).items()}


def programs(site: StackSite) -> list[Program]:
    return [program for part in parts() for program in part.programs(site)]


def ensure_may_start(home: StackHome, server: Postgres | None = None) -> None:
    """Raises BadSettings."""
    for part in parts():
        part.ensure_may_start(home, server)


def notes(home: StackHome, recorded: Mapping[str, str]) -> list[str]:
    return [note for part in parts() for note in part.notes(home, recorded)]
