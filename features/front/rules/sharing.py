"""What the owner of a machine shares of its servers, and which of them are new. Pure but for ``read``."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from features.front.rules import local_servers
from features.front.rules.local_servers import LocalModel, LocalServer, SharedServer
from shared import errors

#: Of one server.
MAX_SHOWN = 12
MAX_NAME_CHARACTERS = 100


class ServersFile(msgspec.Struct, frozen=True):
    """The owner's choice, in the worker's folder."""

    servers: tuple[SharedServer, ...] = ()
    #: The kinds that its owner was asked for and declined.
    declined: tuple[str, ...] = ()
    #: Kind -> the models that it had when its owner chose: later ones are new.
    seen: Mapping[str, tuple[str, ...]] = {}


def read(path: Path) -> ServersFile:
    """Raises BadSettings."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ServersFile)
    except FileNotFoundError:
        return ServersFile()
    except (OSError, msgspec.MsgspecError) as error:
        raise errors.BadSettings(f"cannot read {path}: {error}", hint="delete it: the worker asks again") from error


def choice_file(folder: Path) -> Path:
    return folder / "servers.json"


def with_key(server: SharedServer, folder: Path) -> SharedServer:
    """Name the file with its key, if the folder has one."""
    key = key_file(folder, server.kind)
    return msgspec.structs.replace(server, key_file=str(key) if key.is_file() else "")


def key_file(folder: Path, kind: str) -> Path:
    """Return where a worker's folder has the key of a server that asks for one."""
    return folder / "server-keys" / kind


def find_new(servers: Sequence[LocalServer], kept: ServersFile) -> list[LocalServer]:
    """Return the servers that nobody decided on, and the others with new models, both with nothing but these."""
    decided = {*kept.declined, *(each.kind for each in kept.servers)}
    found = (
        msgspec.structs.replace(server, models=tuple(_new_models(server, kept))) for server in servers if server.kind not in kept.declined
    )
    return [server for server in found if server.models or (server.needs_key and server.kind not in decided)]


#: How the owner shares more, of a machine that has joined and of the stack's own.
BY_WORKER, BY_STACK = "stop the worker, then aicli worker --share", "aicli stack up --share"


def describe_new(new: Sequence[LocalServer], kept: ServersFile, way: str = BY_WORKER) -> Iterator[str]:
    """Yield what the owner of the machine reads."""
    shared = {each.kind for each in kept.servers}
    for server in new:
        names = ", ".join(shown(model) for model in server.models[:MAX_SHOWN])
        more = f" and {len(server.models) - MAX_SHOWN} more" if len(server.models) > MAX_SHOWN else ""
        if server.needs_key:
            told, word = f"{server.title} runs here and asks for a key", f"{server.kind} --server-key-file {server.kind}=FILE"
        elif server.kind in shared:
            told, word = f"{server.title} has new models, not shared yet: {names}{more}", f"{server.kind}/NAME"
        else:
            told, word = f"{server.title} runs here and isn't shared, with {count(len(server.models), 'model')}", server.kind
        yield f"{told}. To share: {way} {word}"


def summarize_new(new: Sequence[LocalServer], kept: ServersFile, place: str) -> str:
    """Return what everybody on the mesh may read, without names."""
    shared = {each.kind for each in kept.servers}
    found = [f"{count(len(server.models), 'model')} of {server.title}" if server.kind in shared else server.title for server in new]
    return f"Not shared yet: {', '.join(found)}. See {place} there" if found else ""


def shown(model: LocalModel) -> str:
    return printable(local_servers.offered_name(model.name))


def printable(name: str) -> str:
    """Return a server's text on one line: it may have any character."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:MAX_NAME_CHARACTERS])


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _new_models(server: LocalServer, kept: ServersFile) -> Iterator[LocalModel]:
    seen = frozenset(kept.seen.get(server.kind, ()))
    yield from (model for model in server.models if not model.is_shared_by_name and model.name not in seen)
