"""`aicli files`: upload, list, download and delete files."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import msgspec

from cli.ask import blob_transfers
from cli.cli_context import CliContext
from cli.output import output_file, print_format, printing, watching
from features.files import contract
from features.files.contract import UPLOADED, FileFacts, FilePurpose
from shared import errors, http_refusals
from shared.api.gateway import HttpRequest
from shared.protocol import wire

if TYPE_CHECKING:
    from cli.connection import CliConnection

#: Of a request over the mesh, with its head.
_MAX_MESH_BYTES = wire.MAX_REQUEST_BYTES - (64 << 10)
_SECONDS_OF_DAY = 24 * 3600
_json = print_format.output_options("Print a JSON object.")
_purpose = click.Choice([purpose.value for purpose in FilePurpose])


class _Uploaded(msgspec.Struct):
    id: str


@click.group(invoke_without_command=True, subcommand_metavar="[COMMAND [ARGS]...]")
@watching.listing_options("Print a JSON list.")
@click.pass_context
@click.pass_obj
def files(here: CliContext, context: click.Context, /, *, as_json: bool) -> None:
    """Store files on the mesh, encrypted for your account or organization: input of batches, data sets."""
    if context.invoked_subcommand is None:
        _list(here, None, as_json=as_json)


@files.command("list")
@click.option("--purpose", type=_purpose, help="Only files with this purpose.")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_(here: CliContext, /, *, purpose: str | None, as_json: bool) -> None:
    """List your files, newest first."""
    _list(here, None if purpose is None else FilePurpose(purpose), as_json=as_json)


@files.command()
@click.argument("source", metavar="FILE")
@click.option(
    "--purpose", type=click.Choice([purpose.value for purpose in UPLOADED]), default="user_data", show_default=True, help="What it is for."
)
@click.option("--days", type=click.IntRange(1, 30), help="Delete it after so many days. Default: 30 for --purpose batch, else never.")
@_json
@click.pass_obj
def upload(here: CliContext, /, source: str, *, purpose: str, days: int | None, as_json: bool) -> None:
    """Upload FILE. Over the mesh it may have 16 MB; with a profile that has the URL of a gateway, 512 MB."""
    file = here.folder / Path(source).expanduser()
    if not file.is_file():
        raise errors.BadRequest(f"{source} is missing, or no regular file")
    refuse_too_large(here, source, file.stat().st_size)
    expires = {} if days is None else {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(days * _SECONDS_OF_DAY)}

    async def work(connection: "CliConnection") -> FileFacts:
        made = await store(connection, file.name, file.read_bytes(), {"purpose": purpose, **expires})
        return await connection.call(contract.get_file, contract.GetFile(made))

    made = here.run(work)
    printing.show_message(made, f"{made.name} is {made.id}", as_json=as_json)


@files.command()
@click.argument("file_id", metavar="ID")
@click.argument("target", metavar="[FILE]", required=False)
@click.pass_obj
def download(here: CliContext, /, file_id: str, target: str | None) -> None:
    """Write the file ID to FILE; - is stdout. Default: its own name, in the current folder, if there is no such file."""

    async def work(connection: "CliConnection") -> Path | None:
        facts = await connection.call(contract.get_file, contract.GetFile(file_id))
        path = None if target == "-" else _choose(here.folder, facts, target)
        with output_file.open_(path) as output:
            await receive(connection, facts, output)
        return path

    if (path := here.run(work)) is not None:
        printing.note(f"wrote {path}")


@files.command()
@click.argument("file_ids", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def delete(here: CliContext, /, file_ids: tuple[str, ...]) -> None:
    """Delete files. They can't be read any more, and their content is removed."""

    async def work(connection: "CliConnection") -> None:
        for file_id in file_ids:
            await connection.call(contract.delete_file, contract.DeleteFile(file_id))

    here.run(work)


def _list(here: CliContext, purpose: FilePurpose | None, *, as_json: bool) -> None:
    from features.files.lists import FILES

    found = here.call(contract.list_files, contract.ListFiles(purpose))
    printing.show_list(found.files, FILES, as_json=as_json)
    if found.has_more:
        printing.note(f"these are the newest {len(found.files)} files")


def _choose(folder: Path, facts: FileFacts, target: str | None) -> Path:
    """Return where a download goes. Raises AlreadyExists."""
    path = folder / Path(target or facts.name).expanduser()
    if target is None and path.exists():
        raise errors.AlreadyExists(f"{path.name} exists", hint=f"name another file: aicli files download {facts.id} FILE")
    return path


async def receive(connection: "CliConnection", facts: FileFacts, output: BinaryIO) -> None:
    """Download a file. Raises PeerError if the answer ends early."""
    request, status, refusal, size = HttpRequest("GET", f"/v1/files/{facts.id}/content"), 0, bytearray(), 0
    async with connection.http(request) as parts:
        async for part in parts:
            status = status or part.status
            if status != 200:
                refusal += part.body
                continue
            size += len(part.body)
            output.write(part.body)
    if status != 200:
        raise http_refusals.read(status, bytes(refusal))
    if size != facts.size:
        raise errors.LinkLost(f"{size} of {facts.size} bytes arrived", hint="try again; if that fails, the file is damaged")


def refuse_too_large(here: CliContext, name: str, size: int) -> None:
    """Raises TooLarge for a file that needs the REST address."""
    if here.profile().url is None and size > _MAX_MESH_BYTES:
        hint = "use a profile with the gateway's URL: aicli login --url URL; or POST it to /v1/files"
        raise errors.TooLarge(f"{name} has {size} bytes, and a file over the mesh at most {_MAX_MESH_BYTES}", hint=hint)


async def store(connection: "CliConnection", name: str, content: bytes, fields: dict[str, str]) -> str:
    """Upload a file, and return its id."""
    content_type, body = _form(name, content, fields)
    request = HttpRequest("POST", "/v1/files", headers=((b"content-type", content_type),), body=body)
    _, answer = await blob_transfers.ask_http(connection, request)
    return msgspec.json.decode(answer, type=_Uploaded).id


def _form(name: str, content: bytes, fields: dict[str, str]) -> tuple[bytes, bytes]:
    """Return the content type and the body of an upload."""
    boundary = secrets.token_hex(16)
    shown = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n' for field, value in fields.items()]
    parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{shown}"\r\n\r\n')
    body = b"".join(("".join(parts).encode(), content, f"\r\n--{boundary}--\r\n".encode()))
    return f"multipart/form-data; boundary={boundary}".encode(), body
