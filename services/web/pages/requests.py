"""Show and export the request log. Prompts and answers are never stored."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from uuid import UUID

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromQuery
from litestar.response import Stream

from services.web import csv_tables, paged_search
from services.web.http import downloads, forms
from services.web.pages import request_view
from services.web.pages.request_view import RequestView
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import auth, gateway, usage_report
from shared.api.auth import ApiKey
from shared.api.usage_report import ExportRequests, ListRequests, LoggedRequest
from shared.types import KeyId, ModelName, RequestStatus

ROWS_OF_A_PAGE = 50
EXPORT_SECONDS = 600.0
_MAX = 200


class RequestFilters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The filters as typed; empty means all."""

    status: str = ""
    model: str = ""
    key: str = ""

    def in_address(self) -> dict[str, str]:
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value}


@dataclass(frozen=True, slots=True)
class RequestListQuery:
    """The parsed filters; None means all."""

    status: RequestStatus | None
    model: ModelName | None
    key_id: KeyId | None

    def fits(self, request: LoggedRequest) -> bool:
        return self.status in (None, request.status) and self.model in (None, request.model) and self.key_id in (None, request.key_id)


ALL_REQUESTS = RequestListQuery(None, None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestsPage:
    rows: tuple[RequestView, ...]
    filters: RequestFilters
    statuses: tuple[tuple[str, str], ...]
    keys: tuple[ApiKey, ...]
    #: Suggestions for the model field.
    models: tuple[ModelName, ...]
    #: The link to older requests; empty on the last page.
    older: str
    newest: str
    download: str
    is_later_page: bool

    @property
    def is_filtered(self) -> bool:
        return bool(self.filters.in_address())


@get("/requests")
async def show_requests(
    page_request: NamedDependency[PageRequest],
    status: FromQuery[str] = "",
    model: FromQuery[str] = "",
    key: FromQuery[str] = "",
    before: FromQuery[str] = "",
) -> Page:
    filters = _filters(status, model, key)
    keys, served = await asyncio.gather(
        page_request.fetch(auth.list_api_keys, auth.ListApiKeys()), page_request.fetch(gateway.list_models, gateway.ListModels())
    )
    problem: errors.AimeshError | None = None
    found: tuple[LoggedRequest, ...] = ()
    try:
        wanted = read_filters(filters)
        older_than = forms.read_moment(before, "before", hint="go back to the newest requests")
        request = ListRequests(status=wanted.status, model=wanted.model, key_id=wanted.key_id, before=older_than, limit=ROWS_OF_A_PAGE)
        found = (await page_request.call(usage_report.list_requests, request)).requests
    except (errors.BadRequest, errors.PeerError) as error:
        problem = error
    own_keys, chosen = keys.keys if keys else (), filters.in_address()
    older = paged_search.address("/requests", chosen | {"before": found[-1].created_at.isoformat()}) if len(found) >= ROWS_OF_A_PAGE else ""
    view = RequestsPage(
        rows=request_view.lines(found, {each.id: each.name for each in own_keys}),
        filters=filters,
        statuses=tuple((each.value, word) for each, (word, _) in request_view.STATUSES.items()),
        keys=own_keys,
        models=tuple(each.name for each in served.models) if served else (),
        older=older,
        newest=paged_search.address("/requests", chosen),
        download=paged_search.address("/requests.csv", chosen),
        is_later_page=bool(before),
    )
    return page_request.page("requests.html", view, here="usage", problem=problem)


@get("/requests.csv")
async def download_requests(
    page_request: NamedDependency[PageRequest], status: FromQuery[str] = "", model: FromQuery[str] = "", key: FromQuery[str] = ""
) -> Stream:
    """Stream all stored requests as CSV, oldest first."""
    wanted = read_filters(_filters(status, model, key))
    name = f"aimesh-requests-{page_request.app.now():%Y-%m-%d}.csv"
    return await downloads.stream(read_table(page_request, wanted), name, csv_tables.MEDIA_TYPE)


def read_filters(filters: RequestFilters) -> RequestListQuery:
    """Parse the filters. Raises BadRequest."""
    statuses = {each.value: each for each in RequestStatus}
    if filters.status and filters.status not in statuses:
        raise errors.BadRequest("unknown status", hint="choose one from the list")
    try:
        key = KeyId(UUID(filters.key)) if filters.key else None
    except ValueError:
        raise errors.BadRequest("key is not a key ID", hint="choose one from the list") from None
    return RequestListQuery(statuses.get(filters.status), ModelName(filters.model) if filters.model else None, key)


def _filters(*typed: str) -> RequestFilters:
    # PostgreSQL cannot store NUL.
    return RequestFilters(*(text.replace("\0", "").strip()[:_MAX] for text in typed))


async def read_table(page_request: PageRequest, wanted: RequestListQuery) -> AsyncGenerator[bytes]:
    """Yield the request log as CSV, with key names if auth responds."""
    keys = await page_request.fetch(auth.list_api_keys, auth.ListApiKeys())
    key_names = {key.id: key.name for key in keys.keys} if keys else {}
    request_batches = page_request.app.caller.stream(
        usage_report.export_requests, ExportRequests(), deadline_seconds=EXPORT_SECONDS, credential=page_request.person.access_token
    )
    async with request_batches as batches:
        # Send the header with the first rows, so that an error of the gateway comes before it.
        waiting = csv_tables.request_head()
        async for batch in batches:
            yield waiting + csv_tables.request_rows(filter(wanted.fits, batch.requests), key_names)
            waiting = b""
            # Yield to other tasks even if the next batch is already here.
            await asyncio.sleep(0)
        if waiting:
            yield waiting
