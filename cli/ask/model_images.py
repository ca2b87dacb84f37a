"""`aicli models export`, and what `push` reads from the same: OCI image layouts, which skopeo and oras copy to and from registries."""

import asyncio
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.ask import blob_transfers, publisher_keys, version_lookup
from cli.ask.blob_transfers import Blob, Transfer
from cli.cli_context import CliContext
from cli.output import print_format, printing
from cli.output.progress_line import ProgressLine
from shared import amounts, errors

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.models import ModelVersion


@click.command()
@click.argument("name", metavar="NAME[@VERSION]")
@click.argument("folder", metavar="DIR")
@click.option(
    "--sign-key", metavar="FILE", help="Publisher's private key in PEM: write model.sig, for model_signing and `push --signature`."
)
@print_format.output_options("Print a JSON object.")
@click.pass_obj
def export(here: CliContext, /, name: str, folder: str, *, sign_key: str | None, as_json: bool) -> None:
    """Write a version into the folder DIR, as an OCI image layout: skopeo and oras copy it to any registry.

    NAME alone is the version that requests for NAME get. An interrupted export continues when you run the same command again.
    """
    from shared.lists import model_versions
    from shared.models import image_layout

    place, show = here.folder / Path(folder).expanduser(), ProgressLine()
    key = None if sign_key is None else publisher_keys.read_private(here.folder / Path(sign_key).expanduser())

    async def work(connection: "CliConnection") -> "ModelVersion":
        version = await version_lookup.find(connection, name)
        if version.is_deleted or version.state not in {"ready", "retired"}:
            raise errors.AlreadyExists(f"{name} is {model_versions.state(version)}", hint="export another version")
        await write_layout(connection, version, place, show)
        if key is not None:
            publisher_keys.sign_folder(key, place)
        return version

    version = here.run(work)
    show.close()
    tag = image_layout.tag(version.model, version.version)
    text = f"{version.name} is in {place}; to copy it: skopeo copy oci:{folder}:{tag} docker://REGISTRY/REPOSITORY:TAG"
    printing.show_message(version, text, as_json=as_json)


async def write_layout(connection: "CliConnection", version: "ModelVersion", folder: Path, show: ProgressLine) -> None:
    """Write a version into an image layout, beside what is there. Raises InsufficientStorage before the first byte."""
    from shared.models import image_layout, manifest

    data = await blob_transfers.read(connection, version.digest, manifest.MAX_MANIFEST_BYTES)
    blobs = manifest.read(data).blobs
    partials = folder / "partial"

    def prepare() -> dict[str, int]:
        (folder / image_layout.blob(version.digest)).parent.mkdir(parents=True, exist_ok=True)
        partials.mkdir(exist_ok=True)
        missing = {digest: size for digest, size in blobs.items() if not (folder / image_layout.blob(digest)).exists()}
        there = sum(each.stat().st_size for each in partials.iterdir() if f"sha256:{each.name}" in missing)
        needed, free = sum(missing.values()) - there, shutil.disk_usage(folder).free
        if needed > free:
            text = f"the export needs {amounts.show_bytes(needed)}, but {amounts.show_bytes(free)} are free in {folder}"
            raise errors.InsufficientStorage(text, hint="free disk space, or choose another folder")
        return missing

    def finish() -> None:
        index = folder / image_layout.INDEX_FILE
        entry = (image_layout.tag(version.model, version.version), version.digest, len(data))
        written = image_layout.encode_index([entry], index.read_bytes() if index.exists() else None)
        contents = ((image_layout.blob(version.digest), data), (image_layout.LAYOUT_FILE, image_layout.LAYOUT))
        for path, content in (*contents, (image_layout.INDEX_FILE, written)):
            (partials / "new").write_bytes(content)
            _keep(partials / "new", folder / path)
        with suppress(OSError):
            partials.rmdir()

    missing = await asyncio.to_thread(prepare)
    transfer = Transfer("exporting", sum(missing.values()), show)
    for digest, size in missing.items():
        partial = partials / digest.removeprefix("sha256:")
        await blob_transfers.download(connection, digest, size, partial, transfer)
        await asyncio.to_thread(_keep, partial, folder / image_layout.blob(digest))
    await asyncio.to_thread(finish)


def _keep(partial: Path, target: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)


@dataclass(frozen=True, slots=True)
class Image:
    """What an image layout has under one name."""

    folder: Path
    manifest: bytes

    def place(self, digest: str) -> Path:
        from shared.models import image_layout

        return self.folder / image_layout.blob(digest)

    def blob(self, digest: str, size: int) -> Blob:
        """Raises BadRequest if it isn't there."""
        place = self.place(digest)
        if place.is_symlink() or not place.is_file() or place.stat().st_size != size:
            raise errors.BadRequest(f"{place} is no file with {size} bytes", hint="copy the image again")
        return Blob(digest, size, place)


def find(folder: Path, source: str) -> Image | None:
    """Return what `oci:DIR`, `oci:DIR:TAG` or the folder of a layout names; None for other files. Raises BadRequest."""
    from shared.models import image_layout, manifest

    if source.startswith("oci://"):
        copy = f"skopeo copy docker://{source.removeprefix('oci://')} oci:DIR"
        raise errors.BadRequest("a push reads from this machine only", hint=f"`{copy}`, and push oci:DIR; or deploy {source}")
    given, name = source.removeprefix("oci:"), ""
    if source.startswith("oci:") and ":" in given and not (folder / Path(given).expanduser()).is_dir():
        given, _, name = given.rpartition(":")
    place = folder / Path(given).expanduser()
    if not source.startswith("oci:") and not (place / image_layout.LAYOUT_FILE).is_file():
        return None
    found = image_layout.choose(_read(place / image_layout.INDEX_FILE, image_layout.MAX_INDEX_BYTES), name)
    data = _read(place / image_layout.blob(found.digest), found.size)
    if (actual := manifest.digest_of(data)) != found.digest:
        raise errors.BadRequest(f"the image layout has {actual} under {found.digest}", hint="copy the image again")
    return Image(place, data)


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise errors.BadRequest(f"{path} can't be read: {error.strerror}", hint="name the folder of an OCI image layout") from None


COMMANDS = (export,)
