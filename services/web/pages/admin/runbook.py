"""Show the runbook of an alert."""

from dataclasses import dataclass

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.web import runbooks
from services.web.request_context import Page, PageRequest
from shared import errors

ROOT = "/admin/runbooks"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunbookPage:
    name: str
    #: Markdown, which the page's script formats.
    text: str


@get(f"{ROOT}/{{name:str}}")
async def show_runbook(page_request: NamedDependency[PageRequest], name: FromPath[str]) -> Page:
    text = page_request.site.runbooks.get(name)
    if text is None:
        raise errors.NotFound("there is no such runbook", hint="look in docs/runbooks of the source code")
    view = RunbookPage(name=name, text=runbooks.prepare(text, page_request.address + ROOT))
    return page_request.page("admin/runbook.html", view, here="admin")


ROUTES = (show_runbook,)
