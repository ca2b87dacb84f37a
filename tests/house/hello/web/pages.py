"""The page that says hello."""

from features.hello import contract
from litestar import get
from litestar.di import NamedDependency

from services.web.request_context import Page, PageRequest


@get("/hello")
async def show_hello(page_request: NamedDependency[PageRequest]) -> Page:
    return page_request.page("hello/hello.html", await page_request.call(contract.say_hello, contract.SayHello()))
