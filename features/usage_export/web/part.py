"""What the usage export adds to the pages: its sinks, on the page of sales."""

from dataclasses import dataclass
from typing import ClassVar

from features.usage_export import contract as api
from features.usage_export.contract import UsageSink
from features.usage_export.lists import SINKS
from services.web.features import Section, WebPart
from services.web.request_context import PageRequest
from shared.lists.columns import Listing


@dataclass(frozen=True, slots=True)
class SinksView:
    sinks: tuple[UsageSink, ...]
    sink_list: ClassVar[Listing[UsageSink]] = SINKS


async def _read(page_request: PageRequest) -> SinksView | None:
    found = await page_request.fetch(api.read_usage_export, api.ReadUsageExport())
    return SinksView(found.sinks) if found is not None and found.sinks else None


PART = WebPart(sections=(Section(page="/admin/money", template="usage_export/sinks.html", read=_read),))
