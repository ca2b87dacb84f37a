"""Versions of pushed models: which there are, which requests use, and how that changes."""

from dataclasses import dataclass
from typing import ClassVar

import msgspec
from litestar import get, post
from litestar.di import NamedDependency

from services.web.http import forms
from services.web.request_context import PAGE_CALL_SECONDS, Page, PageRequest
from shared import errors
from shared.api import models
from shared.api.models import ModelVersion, VersionState
from shared.lists import model_versions as lists
from shared.lists.columns import Listing
from shared.models.version_names import STABLE
from shared.types import ModelName

_DONE = {
    "promoted": "The version is promoted.",
    "loading": "The version is being loaded where the model is deployed. Then requests use it.",
    "withdrawn": "Requests use no version, until you roll back or promote one.",
    "retired": "The version is retired.",
}


class VersionForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Promote, roll back, withdraw or retire."""

    act: str
    model: str
    version: str = ""
    channel: str = STABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionsPage:
    versions: tuple[ModelVersion, ...]
    listing: ClassVar[Listing[ModelVersion]] = lists.VERSIONS

    def can_promote(self, version: ModelVersion) -> bool:
        return version.state is VersionState.READY and not version.is_deleted and STABLE not in (*version.channels, *version.next_of)

    def can_retire(self, version: ModelVersion) -> bool:
        return version.state is VersionState.READY and not version.is_deleted and not version.channels and not version.next_of

    def rollbacks(self, version: ModelVersion) -> tuple[str, ...]:
        """Return the channels that a rollback takes from this version to the one before, or fills with this one."""
        if version.next_of:
            return version.next_of
        same = [other for other in self.versions if other.model == version.model]
        others = {channel for other in same for channel in other.previous_of}
        # An empty channel is filled again.
        full = {channel for other in same for channel in (*other.channels, *other.next_of)}
        return (
            *(channel for channel in version.channels if channel in others),
            *(each for each in version.previous_of if each not in full),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Return what can be deployed. That of an organization takes the command, which names the organization."""
        ours = [each for each in self.versions if each.organization is None]
        served = {lists.channel_name(each.model, channel) for each in ours for channel in (*each.channels, *each.next_of)}
        return tuple(sorted(served))


@get("/models/versions")
async def show_versions(page_request: NamedDependency[PageRequest]) -> Page:
    return await _page(page_request)


@post("/models/versions")
async def change_version(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(VersionForm)
    try:
        model, version = ModelName(form.model), forms.read_number(form.version, "the version", models.RetireModelVersion, "version") or 0
        match form.act:
            case "promote":
                made = await page_request.submit(models.promote_model, models.PromoteModel(model, version, form.channel))
            case "rollback":
                made = await page_request.submit(models.rollback_model, models.RollbackModel(model, form.channel))
            case "withdraw":
                await page_request.submit(models.withdraw_model, models.WithdrawModel(model, form.channel))
                return page_request.redirect("/models/versions?done=withdrawn")
            case "retire":
                await page_request.submit(models.retire_model_version, models.RetireModelVersion(model, version))
                return page_request.redirect("/models/versions?done=retired")
            case _:
                raise errors.BadRequest("unknown action", hint="reload the page and use its buttons")
    except (errors.CallerError, errors.PeerError) as error:
        return await _page(page_request, problem=error)
    return page_request.redirect(f"/models/versions?done={'loading' if form.channel in made.next_of else 'promoted'}")


async def _page(page_request: PageRequest, *, problem: errors.AimeshError | None = None) -> Page:
    found = models.ModelVersions(())
    try:
        found = await page_request.call(models.list_model_versions, models.ListModelVersions(), deadline_seconds=PAGE_CALL_SECONDS)
    except (errors.CallerError, errors.PeerError) as error:
        problem = problem or error
    return page_request.page("models/versions.html", VersionsPage(versions=found.versions), problem=problem, notices=_DONE)
