"""`aicli models push`, `versions`, `promote`, `rollback`, `retire`, `revoke` and `delete`: versions that the mesh keeps."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import click

from cli.ask import blob_transfers, deployments, model_images, publisher_keys, version_lookup
from cli.ask.blob_transfers import PIECE_BYTES, Blob, persist
from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from cli.output.progress_line import ProgressLine
from shared import api, errors, model_folder
from shared.api.inference import PullProgress
from shared.types import ModelName, TenantId

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.models import ModelVersion
    from shared.models.manifest import Statement, VersionFile

_CALL_SECONDS = 120.0
#: States of versions.
_CHECKING, _READY = "checking", "ready"

_channel = click.option("--channel", default="stable", show_default=True, help="What requests name behind the @.")
_wait = click.option("--wait", is_flag=True, help="Wait until it is served; Ctrl-C stops only the waiting.")
_json = print_format.output_options("Print a JSON object.")
_version = click.argument("version", metavar="NAME@VERSION")


@click.command()
@click.argument("source", metavar="FILE|DIR|oci:DIR")
@click.argument("name")
@click.option(
    "--channel", metavar="CHANNEL", help="Let requests for NAME@CHANNEL use it once it is checked.  [default: stable, for a new name]"
)
@click.option("--license", "license_", metavar="SPDX", default="", help="License, such as Apache-2.0.")
@click.option("--source", "origin", metavar="URL", default="", help="Where the model comes from.")
@click.option("--description", metavar="TEXT", default="", help="Shown in lists.")
@click.option("--signature", metavar="FILE", help="A publisher's signature of the folder, by OpenSSF's model-signing.")
@click.option("--organization", type=click.UUID, metavar="ID", help="Whose model it is. Default: the mesh's. Admins only.")
@_json
@click.pass_obj
def push(
    here: CliContext,
    /,
    source: str,
    name: str,
    *,
    channel: str | None,
    license_: str,
    origin: str,
    description: str,
    signature: str | None,
    organization: UUID | None,
    as_json: bool,
) -> None:
    """Store a version of the model NAME on the mesh, from a GGUF file with its parts, a folder, or an OCI image layout.

    An interrupted upload resumes when you run the same command again. With NAME@7, it is refused if 7 isn't the next number.
    """
    from shared.models.manifest import Statement

    model, number = _split(name)
    owner = None if organization is None else TenantId(organization)
    show, said = ProgressLine(), Statement(license=license_, source=origin, description=description)
    signed_by = None if signature is None else here.folder / Path(signature).expanduser()
    bundle = None if signed_by is None else publisher_keys.read_small(signed_by)

    async def work(connection: "CliConnection") -> "ModelVersion":
        # Is there a mesh that keeps models, and may it have this name? Reading the files takes minutes.
        await connection.call(api.models.find_model_blobs, api.models.FindModelBlobs((), model, owner))
        data, blobs = await asyncio.to_thread(_describe, here.folder, source, said, show, signed_by)
        await blob_transfers.upload(connection, blobs, show)
        request = api.models.CompleteModelVersion(model, data, number, owner, channel)
        made = await persist(lambda: connection.call(api.models.complete_model_version, request, deadline_seconds=_CALL_SECONDS))
        if bundle is not None:
            signed = api.model_trust.SignModelVersion(made.model, made.version, bundle)
            await persist(lambda: connection.call(api.model_trust.sign_model_version, signed))
        while made.state == _CHECKING:
            show(PullProgress("checking", made.size, made.size))
            await asyncio.sleep(blob_transfers.CHECK_SECONDS)
            asked = api.models.ListModelVersions(made.model, made.version)
            (made,) = (await persist(lambda: connection.call(api.models.list_model_versions, asked))).versions  # noqa: B023
        return made

    made = here.run(work)
    show.close()
    _show(made, as_json=as_json)
    if made.state != _READY:
        click.get_current_context().exit(1)
    _note_next(here, made)


def _describe(folder: Path, source: str, said: "Statement", show: ProgressLine, but: Path | None = None) -> tuple[bytes, list[Blob]]:
    """Read what is pushed once, and return the manifest and all blobs. Raises BadRequest for what can't be pushed."""
    from shared.models import image_layout, manifest
    from shared.models.manifest import Statement, VersionConfig

    image = model_images.find(folder, source)
    if image is None:
        found = _list_files(folder / Path(source).expanduser(), but)
    elif image_layout.is_ours(image.manifest) and said == Statement():
        return image.manifest, [image.blob(digest, size) for digest, size in manifest.read(image.manifest).blobs.items()]
    else:
        found = {path: image.place(layer.digest) for path, layer in image_layout.files(image.manifest).items()}
    files, blobs = _read_files(found, show)
    config = manifest.encode_config(VersionConfig(statement=said), files)
    return manifest.build(config, files), [*blobs, Blob(manifest.digest_of(config), len(config), config)]


def _list_files(path: Path, but: Path | None) -> dict[str, Path]:
    if path.is_dir():
        below = [each for each in sorted(path.rglob("*")) if each != but and (not each.is_dir() or each.is_symlink())]
        return {each.relative_to(path).as_posix(): each for each in below}
    projector = model_folder.find_projector(path)
    return {each.name: each for each in (*model_folder.parts(path), *(() if projector is None else (projector,)))}


def _read_files(found: dict[str, Path], show: ProgressLine) -> "tuple[list[VersionFile], list[Blob]]":
    """Raises BadRequest."""
    from shared.models import block_list, manifest
    from shared.models.manifest import VersionFile

    if wrong := next((name for name, each in found.items() if each.is_symlink() or not each.is_file() or not each.stat().st_size), None):
        raise errors.BadRequest(f"{wrong} is missing, empty or no regular file", hint="push regular files only")
    manifest.check_paths(found)
    total, done, files, blobs = sum(each.stat().st_size for each in found.values()), 0, list[VersionFile](), list[Blob]()
    if total > manifest.MAX_BYTES or len(found) > manifest.MAX_FILES:
        most = f"{manifest.MAX_FILES} files with {manifest.MAX_BYTES >> 40} TiB together"
        raise errors.BadRequest(f"{len(found)} files with {total} bytes are too much for a version", hint=f"it may have {most}")
    for name, each in found.items():
        whole, size = sha256(), 0

        def read(each: Path = each) -> Iterator[bytes]:
            nonlocal done, size
            for data in blob_transfers.read_file(each):
                whole.update(data)  # noqa: B023 - read before the next file
                done, size = done + len(data), size + len(data)
                if done % PIECE_BYTES < len(data):
                    show(PullProgress("hashing", done, total))
                yield data

        blocks = b"".join(block_list.compute(read()))
        digest = f"sha256:{whole.hexdigest()}"
        files.append(VersionFile(name, digest, size, manifest.digest_of(blocks)))
        blobs += [Blob(digest, size, each), Blob(files[-1].blocks, len(blocks), blocks)]
    return files, blobs


@click.command()
@click.argument("name", default="")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def versions(here: CliContext, /, name: str, *, as_json: bool) -> None:
    """List versions, newest first: of the model NAME, the version NAME@7, or all."""
    from shared.lists.model_versions import VERSIONS

    found = here.call(api.models.list_model_versions, api.models.ListModelVersions(*_split(name) if name else (None,)))
    printing.show_list(found.versions, VERSIONS, as_json=as_json)


@click.command()
@click.argument("name", metavar="NAME[@VERSION]")
@click.argument("version", type=int, required=False)
@_channel
@click.option("--none", "withdraws", is_flag=True, help="Let them use no version, until another promotion or a rollback.")
@_wait
@_json
@click.pass_obj
def promote(here: CliContext, /, name: str, version: int | None, *, channel: str, withdraws: bool, wait: bool, as_json: bool) -> None:
    """Let requests for NAME, or NAME@CHANNEL, use a version: VERSION, or the newest.

    If the mesh puts the model on machines, the version is loaded there first.
    """
    model, number = _split(name)
    if withdraws:
        if not (number is None and version is None and not wait):
            raise errors.BadRequest("--none goes with neither a version nor --wait", hint=f"write {model} --none")
        made = here.call(api.models.withdraw_model, api.models.WithdrawModel(model, channel))
        printing.show_message(made, f"requests for {model}@{channel} use no version; before, {made.name}", as_json=as_json)
        return
    if None not in {number, version}:
        raise errors.BadRequest(f"{name} names a version already", hint=f"write {model}@{version}")
    made = here.call(api.models.promote_model, api.models.PromoteModel(model, number or version, channel))
    _show(deployments.wait_for_version(here, made, channel) if wait else made, as_json=as_json)
    _note_next(here, made)


@click.command()
@click.argument("name")
@_channel
@_wait
@_json
@click.pass_obj
def rollback(here: CliContext, /, name: str, *, channel: str, wait: bool, as_json: bool) -> None:
    """Let requests for NAME, or NAME@CHANNEL, use the version before. One that isn't loaded yet is taken back."""
    made = here.call(api.models.rollback_model, api.models.RollbackModel(ModelName(name), channel))
    _show(deployments.wait_for_version(here, made, channel) if wait else made, as_json=as_json)


@click.command()
@_version
@_json
@click.pass_obj
def retire(here: CliContext, /, version: str, *, as_json: bool) -> None:
    """Keep a version that no channel uses out of channels."""
    found = version_lookup.find_fixed(here, version)
    _show(here.call(api.models.retire_model_version, api.models.RetireModelVersion(found.model, found.version)), as_json=as_json)


@click.command()
@_version
@click.option("--reason", required=True, help="Why, for everyone who sees it.")
@_json
@click.pass_obj
def revoke(here: CliContext, /, version: str, *, reason: str, as_json: bool) -> None:
    """Keep a version from being loaded, forever."""
    found = version_lookup.find_fixed(here, version)
    request = api.models.RevokeModelVersion(found.model, found.version, reason)
    _show(here.call(api.models.revoke_model_version, request), as_json=as_json)


@click.command()
@_version
@_json
@click.pass_obj
def delete(here: CliContext, /, version: str, *, as_json: bool) -> None:
    """Delete the files of a version that nothing uses. Its number is never used again."""
    found = version_lookup.find_fixed(here, version)
    _show(here.call(api.models.delete_model_version, api.models.DeleteModelVersion(found.model, found.version)), as_json=as_json)


COMMANDS = (push, versions, promote, rollback, retire, revoke, delete)


def _split(text: str) -> tuple[ModelName, int | None]:
    """Return the model and the number of the version; None for a name alone."""
    from shared.models import version_names

    found = version_names.parse(text)
    if "@" in text and found.version is None:
        raise errors.BadRequest(f"{text} names no version by its number", hint=f"see `aicli models versions {found.model}`")
    return found.model, found.version


def _note_next(here: CliContext, version: "ModelVersion") -> None:
    """Say what is left to do until requests can use a version."""
    from shared.models import version_names

    served = [*version.channels, *version.next_of]
    if not served:
        printing.note(f"Let requests use it: aicli models promote {version.name}")
        return
    with suppress(errors.AimeshError):  # the version is there
        found = here.call(api.deployments.list_deployments, api.deployments.ListDeployments()).deployments
        if any(version_names.strip_version(each.name) == version.model for each in found):
            return
    name = version.model if version_names.STABLE in served else f"{version.model}@{served[0]}"
    owner = "" if version.organization is None else f" --organization {version.organization}"
    printing.note(f"Put it on machines, if you are an administrator: aicli models deploy {name}{owner}")


def _show(version: "ModelVersion", *, as_json: bool) -> None:
    from shared.lists.model_versions import channels, state

    served = f", {printing.names(channels(version))}" if channels(version) else ""
    reason = f": {version.reason}" if version.reason else ""
    printing.show_message(version, f"{version.name} is {state(version)}{served}{reason}", as_json=as_json)
