"""`aicli models servers|add-server|remove-server`: serve the models of other programs' servers, while the mesh runs."""

from typing import TYPE_CHECKING

import click
import msgspec

from cli.cli_context import CliContext
from cli.output import printing, watching
from shared import api, errors

if TYPE_CHECKING:
    from shared.config_documents import ServerDocument

#: A copy of shared.config_documents.ServerKind, so that `--help` need not import it; a test compares the two.
KINDS = ("openai", "vllm", "ollama")
_MAX_FILE_BYTES = 16 * 1024
_name = click.argument("name")


@click.command()
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def servers(here: CliContext, /, *, as_json: bool) -> None:
    """List the added servers, their state and their models. Admins only."""
    from shared.lists.servers import SERVERS

    printing.show_list(here.call(api.servers.list_servers, api.servers.ListServers()).servers, SERVERS, as_json=as_json)


@click.command("add-server")
@_name
@click.argument("url")
@click.option("--kind", type=click.Choice(KINDS), default=KINDS[0], show_default=True, help="API: OpenAI's, vLLM's or Ollama's own.")
@click.option("--key-file", metavar="FILE", help="File with the server's key, or - for standard input.")
@click.option("--model", "models", metavar="NAME", multiple=True, help="Serve only this model. Repeatable. Default: all.")
@click.option("--context", type=click.IntRange(64), metavar="TOKENS", help="Context of its models. Default: as the server says.")
@click.option("--tools/--no-tools", default=None, help="Whether its models call tools. Default: as the server says.")
@click.option("--replace", is_flag=True, help="Change the server of this name. Without --key-file and with the same URL, its key stays.")
@click.pass_obj
def add_server(
    here: CliContext,
    /,
    name: str,
    url: str,
    *,
    kind: str,
    key_file: str | None,
    models: tuple[str, ...],
    context: int | None,
    tools: bool | None,
    replace: bool,
) -> None:
    """Serve the models of a server with OpenAI's API, vLLM or Ollama. Admins only.

    The server is tried first. Its host must be in REMOTE_MODEL_HOSTS of a worker.
    """
    from shared.config_documents import ServerDocument, ServerKind

    key = None if key_file is None else _read_key(key_file)
    server = ServerDocument(url=url, kind=ServerKind(kind), key=key, models=models, context=context, tools=tools)
    _apply(here, name, server, only_new=not replace)
    printing.note(f"Added {name}. Workers serve its models within seconds.")


@click.command("remove-server")
@_name
@click.pass_obj
def remove_server(here: CliContext, /, name: str) -> None:
    """Stop serving a server's models. Running answers finish. Admins only.

    The history keeps its encrypted key, for a rollback. To end the key, revoke it at the server.
    """
    if not _apply(here, name, None):
        raise errors.NotFound(f"there is no server {name!r}", hint="see `aicli models servers`")
    printing.note(f"Removed {name}. Workers stop serving its models within seconds.")


def _apply(here: CliContext, name: str, body: "ServerDocument | None", *, only_new: bool = False) -> bool:
    """Return whether anything has changed."""
    from shared.config_documents import ConfigKind

    document = api.configuration.ConfigDocument(ConfigKind.SERVER, name, None if body is None else msgspec.json.encode(body).decode())
    applied = here.call(api.configuration.apply_config, api.configuration.ApplyConfig(documents=(document,), only_new=only_new))
    for warning in applied.warnings:
        printing.note(f"warning: {printing.printable(warning)}")
    return bool(applied.changes)


def _read_key(file: str) -> str:
    try:
        with click.open_file(file, "rb") as opened:
            return str(opened.read(_MAX_FILE_BYTES).decode("ascii").strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise errors.BadRequest(f"{file} can't be read: {reason}") from error


COMMANDS = (servers, add_server, remove_server)
