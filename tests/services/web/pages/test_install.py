"""install.sh and the package index behind it."""

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from litestar.types import ASGIApp, Message

from services.web.http import passthrough
from services.web.install_script import INDEX_FILE, LISTS, PackageIndex
from services.web.settings import WebSettings
from tests.services.web.browser import Browser
from tests.stopwatch import HANG_SECONDS

PIP = "pip-1-py3-none-any.whl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "install"


@pytest.fixture
def settings(settings: WebSettings, folder: Path) -> WebSettings:
    return msgspec.structs.replace(settings, install_folder=folder)


def publish(folder: Path) -> None:
    (folder / "files").mkdir(parents=True)
    (folder / "simple" / "click").mkdir(parents=True)
    (folder / "files" / "click-8.whl").write_bytes(b"wheel" * 100_000)
    (folder / "simple" / "click" / "index.html").write_text("<a>click</a>", encoding="utf-8")
    (folder.parent / "secret").write_text("secret", encoding="utf-8")
    (folder / ".lock").write_text("hidden", encoding="utf-8")
    sha256 = {PIP: "0" * 64, **{f"{name}.txt": "1" * 64 for name in LISTS}}
    (folder / INDEX_FILE).write_bytes(msgspec.json.encode(PackageIndex(pip=PIP, sha256=sha256, ready=("client-linux-x86_64-3.11",))))


async def test_the_script_names_the_address_that_it_came_from(browser: Browser, folder: Path) -> None:
    early = await browser.get("/install.sh")
    assert (early.status_code, "this mesh is not ready" in early.text) == (200, True)
    publish(folder)
    found = await browser.get("/install.sh")
    assert found.headers["content-type"].startswith("text/plain")
    assert "\nMESH='http://localhost:3000'\n" in found.text
    assert "\nREADY='client-linux-x86_64-3.11'\n" in found.text


async def test_packages_are_served_whole_and_projects_as_pip_asks_for_them(browser: Browser, folder: Path) -> None:
    publish(folder)
    wheel = await browser.get("/install/files/click-8.whl")
    assert (wheel.status_code, wheel.content, wheel.headers["content-length"]) == (200, b"wheel" * 100_000, "500000")
    page = await browser.get("/install/simple/click/")
    assert (page.text, page.headers["content-type"].partition(";")[0]) == ("<a>click</a>", "text/html")


@pytest.mark.parametrize(
    "path", ["files", "files/none.whl", ".lock", "../secret", "files/../../secret", "%2e%2e/secret", "files/%00", "/etc/passwd"]
)
async def test_nothing_else_is_served(browser: Browser, folder: Path, path: str) -> None:
    publish(folder)
    response = await browser.get(f"/install/{path}")
    assert response.status_code == 404
    assert "secret" not in response.text


async def test_a_client_that_stops_reading_a_package_is_cut_off(app: ASGIApp, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passthrough, "STALLED_SECONDS", 0.05)
    publish(folder)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def receive() -> Any:
        await asyncio.Event().wait()

    path = "/install/files/click-8.whl"
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http", "path": path}
    scope |= {"raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": [(b"host", b"localhost:3000")]}
    scope |= {"client": ("127.0.0.1", 1), "server": ("localhost", 3000), "state": {}}
    async with asyncio.timeout(HANG_SECONDS):
        await app(cast("Any", scope), receive, cast("Any", send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
