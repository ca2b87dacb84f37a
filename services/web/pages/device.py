"""Approve the login of a program that shows a code, such as `aicli login` in a terminal on another machine (RFC 8628).

A link to this page can come from an attacker, so the page shows who asks, and nothing happens before a button is pressed.
"""

import re
from dataclasses import dataclass
from http import HTTPStatus

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import auth

_HERE = auth.DEVICE_PAGE
_DONE = {
    "approved": "Approved. Your terminal signs in within a few seconds; you can close this page.",
    "refused": "Refused. The program that asked gets no access.",
}
_MAX_CODE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePage:
    #: None before a code is entered.
    login: auth.WaitingDeviceLogin | None = None
    #: The browser's own.
    address: str = ""


@get(_HERE)
async def show_code_form(page_request: NamedDependency[PageRequest]) -> Page:
    return page_request.page("device.html", DevicePage(), notices=_DONE)


@post(_HERE)
async def enter_device_code(page_request: NamedDependency[PageRequest]) -> Page:
    typed = re.sub(r"[^0-9A-Za-z]", "", await page_request.read_field("code"))[:_MAX_CODE]
    return page_request.redirect(f"{_HERE}/{typed}" if typed else _HERE)


@get(f"{_HERE}/{{code:str}}")
async def show_device_login(page_request: NamedDependency[PageRequest], code: FromPath[str]) -> Page:
    try:
        login = await page_request.submit(auth.find_device_login, auth.FindDeviceLogin(code))
    except errors.CallerError as error:
        return page_request.page("device.html", DevicePage(), problem=error)
    return page_request.page("device.html", DevicePage(login=login, address=page_request.client().address))


@post(f"{_HERE}/{{code:str}}", status_code=HTTPStatus.OK)
async def decide_device_login(page_request: NamedDependency[PageRequest], code: FromPath[str]) -> Page:
    approve = await page_request.read_field("decision") == "approve"
    try:
        await page_request.submit(auth.decide_device_login, auth.DecideDeviceLogin(code, approve=approve))
    except errors.CallerError as error:
        return page_request.page("device.html", DevicePage(), problem=error)
    return page_request.redirect(f"{_HERE}?done={'approved' if approve else 'refused'}")
