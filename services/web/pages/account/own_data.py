"""Export the user's data as an archive, and delete the account after a 30-day grace period."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.response import Stream

from services.web import features
from services.web.http import downloads, forms
from services.web.http.downloads import ZipStream
from services.web.pages import requests
from services.web.request_context import Page, PageRequest, form_errors
from shared import errors
from shared.api import accounts, usage_report
from shared.api.accounts import OwnAccount

#: The longest period of a report, about two years.
_USAGE_DAYS = usage_report.MAX_BUCKETS - 1
_EXPORT_SECONDS = 300.0
_MISSING = (
    "The gateway did not respond while this archive was created, so {name} is missing or incomplete.\n"
    "Export the data again in a few minutes.\n"
)

_DONE = {"kept": "Your account won’t be deleted."}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPage:
    account: OwnAccount
    #: Set while the user acts as an organization; then the requests are not personal data.
    team_name: str | None


@get("/settings/data")
async def show_data(page_request: NamedDependency[PageRequest]) -> Page:
    return await _page(page_request)


@post("/settings/data/export")
async def send_archive(page_request: NamedDependency[PageRequest]) -> Page | Stream:
    """Stream the archive. Auth rejects a request before the first piece."""
    await page_request.read_form(forms.Confirmation)
    if page_request.person.team_id is not None:
        error = errors.BadRequest(
            "you are acting as an organization, so this would export its requests",
            hint="switch to your personal account under Organizations",
        )
        return await _page(page_request, error)
    now = page_request.app.now()
    try:
        with form_errors():
            return await downloads.stream(archive_of(page_request, now), f"aimesh-{now:%Y-%m-%d}.zip", "application/zip")
    except errors.CallerError as error:
        return await _page(page_request, error)


@post("/settings/data/delete")
async def delete_account(page_request: NamedDependency[PageRequest]) -> Page:
    sure = await page_request.read_field("sure", "")
    try:
        if not sure:
            raise errors.BadRequest("the deletion is not confirmed", hint="check the box to delete your account")
        await page_request.submit(accounts.request_erasure, accounts.RequestErasure())
    except errors.CallerError as error:
        return await _page(page_request, error)
    return page_request.redirect("/settings/data")


@post("/settings/data/keep")
async def keep_account(page_request: NamedDependency[PageRequest]) -> Page:
    await page_request.read_form(forms.Confirmation)
    await page_request.call(accounts.cancel_erasure, accounts.CancelErasure())
    return page_request.redirect("/settings/data?done=kept")


async def archive_of(page_request: PageRequest, now: datetime) -> AsyncGenerator[bytes]:
    """Yield the archive. Raises what ``exportAccount`` raises. If the gateway is down, a note replaces its files."""
    archive = ZipStream(now)
    token = page_request.person.access_token
    account_files = page_request.app.caller.stream(
        accounts.export_account, accounts.ExportAccount(), deadline_seconds=_EXPORT_SECONDS, credential=token
    )
    async with account_files as files:
        async for file in files:
            yield archive.add(file.name, file.content)
    try:
        async for piece in requests.read_table(page_request, requests.ALL_REQUESTS):
            yield archive.add("requests.csv", piece)
    except errors.PeerError:
        yield archive.add("requests-MISSING.txt", _MISSING.format(name="requests.csv").encode())
    of_features = (each for part in features.parts() for each in part.archive.items())
    for name, read in (("usage", _usage), *of_features):
        try:
            yield archive.add(f"{name}.json", await read(page_request, now))
        except (errors.PeerError, errors.UnknownMethod):  # a gateway may lack a feature
            yield archive.add(f"{name}-MISSING.txt", _MISSING.format(name=f"{name}.json").encode())
    for part in features.parts():
        async for name, pieces in part.archive_files(page_request):
            try:
                async for piece in pieces:
                    yield archive.add(name, piece)
            except errors.AimeshError:
                yield archive.add(f"{name.removesuffix('.json')}-MISSING.txt", _MISSING.format(name=name).encode())
    yield archive.close()


async def _usage(page_request: PageRequest, now: datetime) -> bytes:
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    wanted = usage_report.GetUsageReport(since=day - timedelta(days=_USAGE_DAYS - 1), until=day + timedelta(days=1))
    report = await page_request.call(usage_report.get_usage_report, wanted, deadline_seconds=30)
    return msgspec.json.format(msgspec.json.encode(report), indent=2)


async def _page(page_request: PageRequest, problem: errors.CallerError | None = None) -> Page:
    account = await page_request.call(accounts.get_account, accounts.GetAccount())
    view = DataPage(account=account, team_name=page_request.person.team_name if page_request.person.team_id else None)
    return page_request.page("settings/data.html", view, problem=problem, notices=_DONE)
