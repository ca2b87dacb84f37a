"""The request log: what was asked when, how it ended and what it cost. Prompts and answers are stored nowhere, so none are here."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromQuery
from litestar.response import Stream

from services.web import csv_tables, problems, request_lines
from services.web.request_lines import RequestLine
from services.web.visits import Page, Visit
from shared import errors
from shared.api import auth, gateway, usage_report
from shared.api.auth import ApiKey
from shared.api.usage_report import ExportRequests, ListRequests, LoggedRequest
from shared.types import KeyId, ModelName, RequestStatus

ROWS_OF_A_PAGE = 50
EXPORT_SECONDS = 600.0
_LONGEST = 200


class Filters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As they stand in the address and in the fields; empty where all are wanted."""

    status: str = ""
    model: str = ""
    key: str = ""

    def in_address(self) -> dict[str, str]:
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The filters, understood; None where all are wanted."""

    status: RequestStatus | None
    model: ModelName | None
    key_id: KeyId | None

    def fits(self, request: LoggedRequest) -> bool:
        return self.status in (None, request.status) and self.model in (None, request.model) and self.key_id in (None, request.key_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestsPage:
    rows: tuple[RequestLine, ...]
    filters: Filters
    #: Each with the word that people read.
    statuses: tuple[tuple[str, str], ...]
    keys: tuple[ApiKey, ...]
    #: Offered where the model is typed.
    models: tuple[ModelName, ...]
    #: Where the list goes on; empty at its end.
    older: str = ""
    #: The same filters from the newest request on.
    newest: str = "/requests"
    download: str = "/requests.csv"
    #: Not the newest requests.
    is_later_page: bool = False
    problem: errors.AimeshError | None = None

    @property
    def is_filtered(self) -> bool:
        return bool(self.filters.in_address())


@get("/requests")
async def show_requests(
    visit: NamedDependency[Visit],
    status: FromQuery[str] = "",
    model: FromQuery[str] = "",
    key: FromQuery[str] = "",
    before: FromQuery[str] = "",
) -> Page:
    filters = _filters(status, model, key)
    keys, served = await asyncio.gather(
        visit.ask(auth.list_api_keys, auth.ListApiKeys()), visit.ask(gateway.list_models, gateway.ListModels())
    )
    problem: errors.AimeshError | None = None
    found: tuple[LoggedRequest, ...] = ()
    try:
        wanted = read_filters(filters)
        asked = ListRequests(
            status=wanted.status, model=wanted.model, key_id=wanted.key_id, before=_read_moment(before), limit=ROWS_OF_A_PAGE
        )
        found = (await visit.call(usage_report.list_requests, asked)).requests
    except (errors.BadRequest, errors.PeerError) as error:
        problem = error
    own_keys = keys.keys if keys else ()
    view = RequestsPage(
        rows=request_lines.lines(found, {each.id: each.name for each in own_keys}),
        filters=filters,
        statuses=tuple((each.value, word) for each, (word, _) in request_lines.STATUSES.items()),
        keys=own_keys,
        models=tuple(each.name for each in served.models) if served else (),
        older=_address("/requests", filters, before=found[-1].created_at.isoformat()) if len(found) >= ROWS_OF_A_PAGE else "",
        newest=_address("/requests", filters),
        download=_address("/requests.csv", filters),
        is_later_page=bool(before),
        problem=problem,
    )
    return visit.page("requests.html", view, here="usage", status=HTTPStatus.OK if problem is None else problems.status(problem))


@get("/requests.csv")
async def download_requests(
    visit: NamedDependency[Visit], status: FromQuery[str] = "", model: FromQuery[str] = "", key: FromQuery[str] = ""
) -> Stream:
    """All that are kept, the oldest first, made while they are sent."""
    wanted = read_filters(_filters(status, model, key))
    keys = await visit.ask(auth.list_api_keys, auth.ListApiKeys())
    pieces = _table(visit, wanted, {each.id: each.name for each in keys.keys} if keys else {})
    # What is wrong from the start is a page that says so, and not a file that is cut.
    first = await anext(pieces)
    headers = {"Content-Disposition": f'attachment; filename="aimesh-requests-{visit.site.now():%Y-%m-%d}.csv"'}
    return Stream(_with_first(first, pieces), media_type=csv_tables.MEDIA_TYPE, headers=headers)


def read_filters(filters: Filters) -> Wanted:
    """Raises BadRequest."""
    statuses = {each.value: each for each in RequestStatus}
    if filters.status and filters.status not in statuses:
        raise errors.BadRequest("status: not one of those that there are", hint="choose one from the list")
    try:
        key = KeyId(UUID(filters.key)) if filters.key else None
    except ValueError:
        raise errors.BadRequest("key: not the id of a key", hint="choose one from the list") from None
    return Wanted(statuses.get(filters.status), ModelName(filters.model) if filters.model else None, key)


def _filters(*typed: str) -> Filters:
    # PostgreSQL has no NUL, so nothing is found by one.
    return Filters(*(text.replace("\0", "").strip()[:_LONGEST] for text in typed))


def _address(path: str, filters: Filters, **more: str) -> str:
    words = filters.in_address() | more
    return f"{path}?{urlencode(words)}" if words else path


def _read_moment(text: str) -> datetime | None:
    """Raises BadRequest."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text[:_LONGEST])
    except ValueError:
        raise errors.BadRequest("before: not a moment", hint="begin again with the newest requests") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


async def _table(visit: Visit, wanted: Wanted, key_names: Mapping[KeyId, str]) -> AsyncGenerator[bytes]:
    asked = visit.site.caller.stream(
        usage_report.export_requests, ExportRequests(), deadline_seconds=EXPORT_SECONDS, credential=visit.person.access_token
    )
    async with asked as batches:
        # Together with the first rows, so that a gateway that refuses has done so by then.
        waiting = csv_tables.request_head()
        async for batch in batches:
            yield waiting + csv_tables.request_rows(filter(wanted.fits, batch.requests), key_names)
            waiting = b""
            # The next batch may be there already; others shall have their turn all the same.
            await asyncio.sleep(0)
        if waiting:
            yield waiting


async def _with_first(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            if piece:
                yield piece


ROUTES = (show_requests, download_requests)
