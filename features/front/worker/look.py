"""Looks for servers on this machine: `python -m features.front.worker.look FOLDER` prints what it found, as JSON, with the keys of a
worker's folder.

A port says nothing: only the program's own pages do. Nothing that is asked loads a model.
"""

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from features.front.rules import local_servers, sharing
from features.front.rules.local_servers import PROGRAMS, LocalModel, LocalProgram, LocalServer
from features.remote_servers.worker import http_server_client, remote_models, single_server
from features.remote_servers.worker.details_lookup import DetailsLookup
from features.remote_servers.worker.http_server_client import Server
from features.remote_servers.worker.remote_models import ModelListing
from features.remote_servers.worker.rules.dialects import DIALECTS, DialectRow
from features.remote_servers.worker.rules.event_stream import UNREADABLE
from features.remote_servers.worker.upstreams import Dialect, Key, Upstream
from shared import addresses, errors, outward_address
from shared.telemetry import version
from shared.types import Ability

_HOST = "127.0.0.1"
_OPEN_SECONDS = 0.2
#: Of one server, with a list of 256 models of Ollama.
_LOOK_SECONDS = 8.0
_PAGE_SECONDS = 2.0
_MAX_PAGE_BYTES = 1024 * 1024


def upstream_of(
    dialect: Dialect, url: str, models: tuple[str, ...] = (), key: Key | None = None, names: Mapping[str, str] = {}
) -> Upstream:
    """``names``: the server's name -> that in the mesh, where another worker has taken the usual one."""
    # A loopback address is not external; models that the server itself forwards are, by their names.
    offered = {names.get(own) or local_servers.offered_name(own): own for own in models}
    aliases = {name: own for name, own in offered.items() if name != own}
    return Upstream(name=dialect.value, url=url, dialect=dialect, key=key, key_setting="key_file", only_models=models, aliases=aliases)


def read_key(path: Path) -> Key:
    """Raises BadSettings."""
    try:
        return Key(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise errors.BadSettings(f"cannot read the server's key in {path}: {error}", hint="aicli worker --server-key-file") from error


def url_of(dialect: Dialect, port: int) -> str:
    base = f"http://{addresses.host_port(_HOST, port)}"
    return base if dialect is Dialect.OLLAMA else f"{base}/v1"


async def look(programs: Sequence[LocalProgram], own_address: str = "", keys: Mapping[str, Key] | None = None) -> tuple[LocalServer, ...]:
    """``own_address`` is where other machines reach this one; empty if they don't. ``keys`` are those of servers that need one, by kind."""
    ports = dict.fromkeys(program.port for program in programs)
    looks = (_at_port([each for each in programs if each.port == port], own_address, keys or {}) for port in ports)
    return tuple(server for server in await asyncio.gather(*looks) if server is not None)


async def _at_port(programs: Sequence[LocalProgram], own_address: str, keys: Mapping[str, Key]) -> LocalServer | None:
    port = programs[0].port
    if not await _is_open(_HOST, port):
        return None
    for program in programs:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                if (server := await _recognize(program, keys.get(program.kind))) is not None:
                    is_open = not server.needs_key and program.kind not in keys and bool(own_address) and await _is_open(own_address, port)
                    return msgspec.structs.replace(server, is_open_to_others=is_open)
    return None


async def _is_open(host: str, port: int) -> bool:
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_OPEN_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
        return True
    return False


async def _recognize(program: LocalProgram, key: Key | None) -> LocalServer | None:
    """Return None for another program."""
    dialect = Dialect(program.kind)
    row, url = DIALECTS[dialect], url_of(dialect, program.port)
    source, api = single_server.describe(upstream_of(dialect, url, key=key), program.title, "its port")
    empty = LocalServer(kind=program.kind, title=program.title, url=url)
    async with http_server_client.connected(source) as server:
        if not await _is_kind(row, server):
            return None
        try:
            listed = await server.get(api.models_path, api.read_models)
        except errors.AimeshError as error:
            return msgspec.structs.replace(empty, needs_key=server.is_refused, trouble=error.message)
        if row.owner and not any(model.owned_by == row.owner for model in listed):
            return None
        details = DetailsLookup(server)
        models = tuple(_models(await details.fill(row, listed), details))
    return msgspec.structs.replace(empty, models=models, trouble="" if models else "it has no models")


async def _is_kind(row: DialectRow, server: Server) -> bool:
    reply = await server.probe(row.identity_path, _PAGE_SECONDS, most=_MAX_PAGE_BYTES)
    # `aicli serve` answers as Ollama does.
    if reply.status != 200 or reply.is_cut or reply.program == version.PROGRAM:
        return False
    try:
        return row.read_identity(reply.body, reply.program) is not None
    except UNREADABLE:
        return False


def _models(listed: tuple[ModelListing, ...], details: DetailsLookup) -> Iterator[LocalModel]:
    for model in listed[: remote_models.MAX_MODELS]:
        said = details.details_of(model)
        yield LocalModel(
            name=model.own_name,
            context_tokens=model.context_tokens,
            abilities=tuple(Ability(each) for each in model.abilities),
            only_embeds=model.only_embeds,
            quantization=model.quantization,
            size_bytes=model.size_bytes,
            digest=model.digest,
            provider=model.provider,
            is_made_there=said.is_made_there,
        )


async def look_all(folder: Path) -> tuple[LocalServer, ...]:
    """Look with the keys in the folder of the machine's worker. Raises BadSettings."""
    files = {program.kind: sharing.key_file(folder, program.kind) for program in PROGRAMS}
    keys = {kind: read_key(file) for kind, file in files.items() if file.is_file()}
    return await look(PROGRAMS, outward_address.find() or "", keys)


def main() -> None:
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(look_all(Path(sys.argv[1])))))


if __name__ == "__main__":
    main()
