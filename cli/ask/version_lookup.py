"""Finds the version of a model that a user names."""

from typing import TYPE_CHECKING

from cli.cli_context import CliContext
from shared import api, errors

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.models import ModelVersion


async def find(connection: "CliConnection", text: str) -> "ModelVersion":
    """Return what `llama3`, `llama3@canary`, `llama3@7` or `llama3@sha256:…` means now. Raises BadRequest and NotFound."""
    from shared.models import version_names

    named = version_names.parse(text)
    found = await connection.call(api.models.list_model_versions, api.models.ListModelVersions(named.model, named.version))
    for version in found.versions:
        if named.version is not None or version.digest == named.digest or named.channel in version.channels:
            return version
    raise errors.NotFound(f"there is no version {text}", hint=f"see `aicli models versions {named.model}`")


def find_fixed(here: CliContext, text: str) -> "ModelVersion":
    """Return what `llama3@7` or `llama3@sha256:…` means, today and later. Raises BadRequest for other names, and NotFound."""
    from shared.models import version_names

    named = version_names.parse(text)
    if named.channel is not None:
        raise errors.BadRequest(f"{text} names no version", hint=f"write {named.model}@7; see `aicli models versions {named.model}`")
    return here.run(lambda connection: find(connection, text))
