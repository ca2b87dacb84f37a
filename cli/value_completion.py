"""Completes values in the shell: models, keys, nodes, profiles and those of features.

What the mesh answered is kept for a minute. A completion that takes longer than a second or fails offers nothing, and says nothing.
"""

import os
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click
import msgspec

from cli import user_folders
from cli.cli_context import CliContext
from shared import api, errors

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from cli.connection import CliConnection
    from cli.profile import Profile

#: A value, and what it is.
Candidate = tuple[str, str]
Fetch: TypeAlias = "Callable[[CliConnection], Awaitable[list[Candidate]]]"
Completer: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]"

_DEADLINE_SECONDS = 1.0
_FRESH_SECONDS = 60.0
_MAX_VALUES = 500
_MAX_FILE_BYTES = 1024 * 1024
#: A shell inserts values unquoted, so a name such as $(rm) is not offered.
_SAFE = re.compile(r"[A-Za-z0-9._:/@+-]+")


def completer(kind: str, fetch: Fetch, prefix: str = "") -> Completer:
    """Complete what ``fetch`` returns, if its description starts with ``prefix``. Completers of one ``kind`` share what is kept."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
        return matching([found for found in _fetch(kind, context, fetch) if found[1].startswith(prefix)], incomplete)

    return complete


async def _models(connection: "CliConnection") -> list[Candidate]:
    served = (await connection.call(api.gateway.list_models, api.gateway.ListModels())).models
    return [(name, "" if name == model.name else model.name) for model in served for name in (model.name, *model.aliases)]


async def _keys(connection: "CliConnection") -> list[Candidate]:
    listed = (await connection.call(api.auth.list_api_keys, api.auth.ListApiKeys())).keys
    return [(key.name if _SAFE.fullmatch(key.name) else str(key.id), key.preview) for key in listed if key.is_active]


async def _nodes(connection: "CliConnection") -> list[Candidate]:
    listed = (await connection.call(api.gateway.list_nodes, api.gateway.ListNodes())).nodes
    return [(node.id[:9], " ".join((node.service, *node.models))) for node in listed]


async def _documents(connection: "CliConnection") -> list[Candidate]:
    """Return KIND/NAME of the configuration."""
    request = api.configuration.ListConfigVersions(only_current=True, limit=_MAX_VALUES)
    listed = (await connection.call(api.configuration.list_config_versions, request)).versions
    return [(f"{document.kind}/{document.name}", f"version {document.version}") for document in listed]


async def _routes(connection: "CliConnection") -> list[Candidate]:
    listed = (await connection.call(api.configuration.list_routes, api.configuration.ListRoutes())).routes
    return [(route.name, ", ".join(target.model for target in route.targets)) for route in listed]


models = completer("models", _models)
keys = completer("keys", _keys)
nodes = completer("nodes", _nodes)
workers = completer("nodes", _nodes, prefix="inference")
documents = completer("documents", _documents)
routes = completer("routes", _routes)


def profiles(context: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    from cli import profile

    return matching([(name, "") for name in profile.names(context_of(context).environment)], incomplete)


def matching(found: list[Candidate], incomplete: str) -> "list[CompletionItem[str]]":
    from click.shell_completion import CompletionItem

    from cli.output import printing

    return [
        CompletionItem(value, help=printing.printable(text) or None)
        for value, text in found
        if value.startswith(incomplete) and _SAFE.fullmatch(value)
    ]


def context_of(context: click.Context) -> CliContext:
    """click completes without running the groups, so there is usually no context object yet."""
    found = context.find_object(CliContext) or CliContext(os.environ, Path.cwd())
    name = context.find_root().params.get("profile")
    return found.with_profile(name) if isinstance(name, str) else found


def _fetch(kind: str, context: click.Context, fetch: Fetch) -> list[Candidate]:
    here = context_of(context)
    try:
        profile = here.profile()
        place = user_folders.cache(here.environment) / f"completion/{kind}.json"
        of = _name_of(profile)
        if (kept := _read(place, of)) is not None:
            return kept
        found = _ask(here, profile, fetch)[:_MAX_VALUES]
        _write(place, of, found)
    except (errors.AimeshError, OSError, ExceptionGroup):
        return []
    return found


def _ask(here: CliContext, profile: "Profile", fetch: Fetch) -> list[Candidate]:
    """Raises TimeoutError, which is an OSError."""
    import asyncio

    from cli import interrupts

    async def ask() -> list[Candidate]:
        async with asyncio.timeout(_DEADLINE_SECONDS), here.connector()(profile) as connection:
            return await fetch(connection)

    return interrupts.run(ask())


def _name_of(profile: "Profile") -> str:
    """Return a name for the profile with its key, without telling the key."""
    from hashlib import sha256

    from cli import profile as profiles_

    return sha256(profiles_.render(profile).encode()).hexdigest()


def _read(place: Path, of: str) -> list[Candidate] | None:
    try:
        if not 0 <= time.time() - place.stat().st_mtime < _FRESH_SECONDS:
            return None
        with place.open("rb") as file:
            owner, found = msgspec.json.decode(file.read(_MAX_FILE_BYTES), type=tuple[str, list[Candidate]])
    except (OSError, msgspec.MsgspecError):
        return None
    return found if owner == of else None


def _write(place: Path, of: str, found: list[Candidate]) -> None:
    from shared.identity import private_file

    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    private_file.replace(place, msgspec.json.encode((of, found)))
