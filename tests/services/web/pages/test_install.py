"""install.sh and the package index behind it."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import psutil
import pytest
from litestar.types import ASGIApp, Message

from services.web import package_fetcher, request_context
from services.web.http import passthrough
from services.web.install_script import DEFAULT_TARGETS, INDEX_FILE, LISTS, PackageIndex
from services.web.package_fetcher import FAILED, FETCHING, NEEDS_TICKET, PackageFetcher
from services.web.settings import WebSettings
from shared.node.lifecycle import background
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import FakeMesh
from tests.stacks import until
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
    windows = await browser.get("/install.ps1")
    assert "'http://localhost:3000/install/simple'" in windows.text
    assert "@" not in re.sub(r"@[({]", "", windows.text)


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


#: Stands in for `tools.packages.install_index`: writes when it starts and ends, and waits for the file "continue".
MAKER = """
import sys, time
from pathlib import Path

def say(what):
    with open("said", "a") as file:
        file.write(f"{what} {' '.join(sys.argv[4:])}\\n")

say("start")
while not Path("continue").exists():
    time.sleep(0.01)
say("end")
sys.exit("3.12" in sys.argv[4])
"""
MACHINES = ("worker-linux-aarch64-3.11", "client-linux-aarch64-3.13")
#: Its id.
TICKET = "0123456789abcdef"


def want(target: str, ticket: str = TICKET) -> str:
    return f"/install/want/{target}?ticket={ticket}"


@pytest.fixture
def site(site: request_context.App, tmp_path: Path) -> request_context.App:
    return replace(site, package_fetcher=PackageFetcher(tmp_path / "checkout"))


@pytest.fixture(autouse=True)
def ticket(mesh: FakeMesh) -> None:
    mesh.tickets.add(TICKET)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make the folder a checkout, with the stand-in."""
    maker = tmp_path / "checkout" / "tools" / "packages" / "install_index.py"
    maker.parent.mkdir(parents=True)
    maker.write_text(MAKER, encoding="utf-8")
    # Otherwise our own packages of these names would be found first.
    for package in (maker.parent, maker.parent.parent):
        (package / "__init__.py").touch()
    return tmp_path / "checkout"


def said(checkout: Path) -> list[str]:
    file = checkout / "said"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


async def wait_for(checkout: Path, lines: int) -> list[str]:
    async def are_there() -> bool:
        return len(said(checkout)) >= lines

    await until(are_there, what=f"{lines} lines")
    return said(checkout)


async def test_packages_are_fetched_once_and_one_target_at_a_time(
    browser: Browser, site: request_context.App, checkout: Path, folder: Path
) -> None:
    async with background() as tasks:
        tasks.create_task(site.package_fetcher.run(folder))
        for _ in range(3):
            for machine in MACHINES:
                answer = await browser.get(want(machine))
                assert (answer.status_code, answer.text) == (200, FETCHING)
        assert await wait_for(checkout, 1) == [f"start {MACHINES[0]}"]
        (checkout / "continue").touch()
        # A worker's libraries are begun once its packages are there, and nobody waits until they are built.
        runs = (MACHINES[0], f"{MACHINES[0]} --libraries --background", MACHINES[1])
        assert await wait_for(checkout, 6) == [f"{what} {run}" for run in runs for what in ("start", "end")]
        for machine in MACHINES:
            assert (await browser.get(want(machine))).text == FETCHING
    assert len(said(checkout)) == 6


async def test_a_stranger_makes_the_mesh_fetch_only_what_it_has_anyway(
    browser: Browser, site: request_context.App, checkout: Path, folder: Path
) -> None:
    (checkout / "continue").touch()
    async with background() as tasks:
        tasks.create_task(site.package_fetcher.run(folder))
        for machine in MACHINES:
            assert (await browser.get(f"/install/want/{machine}")).text == NEEDS_TICKET
            assert (await browser.get(want(machine, "0" * 16))).text == "this mesh does not know the ticket"
        assert (await browser.get(f"/install/want/{DEFAULT_TARGETS[0]}")).text == FETCHING
        assert await wait_for(checkout, 2) == [f"start {DEFAULT_TARGETS[0]}", f"end {DEFAULT_TARGETS[0]}"]


@pytest.mark.parametrize("pause", [600, 0])
async def test_a_failed_fetch_is_said_and_tried_again_later(
    browser: Browser, site: request_context.App, checkout: Path, monkeypatch: pytest.MonkeyPatch, pause: int
) -> None:
    page = want("client-linux-aarch64-3.12")
    monkeypatch.setattr(package_fetcher, "_PAUSE_SECONDS", pause)
    (checkout / "continue").touch()

    async def is_over() -> bool:
        answer = (await browser.get(page)).text
        return answer == FAILED if pause else len(said(checkout)) >= 4

    async with background() as tasks:
        tasks.create_task(site.package_fetcher.run(checkout))
        await until(is_over)
        assert pause == 0 or len(said(checkout)) == 2


async def test_a_fetch_ends_with_web(browser: Browser, site: request_context.App, checkout: Path, folder: Path) -> None:
    async with background() as tasks:
        tasks.create_task(site.package_fetcher.run(folder))
        await browser.get(want(MACHINES[0]))
        await wait_for(checkout, 1)
    (checkout / "continue").touch()
    assert said(checkout) == [f"start {MACHINES[0]}"]
    assert not [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(checkout)]


@pytest.mark.parametrize(
    "target", ["worker-linux-riscv64-3.11", "client-linux-aarch64-3.10", "client-linux-aarch64-3.11%0a", "--help", "x" * 5000]
)
async def test_no_other_packages_are_fetched(browser: Browser, checkout: Path, target: str) -> None:
    assert (await browser.get(want(target))).status_code == 404
    assert not said(checkout)


async def test_an_image_fetches_nothing(browser: Browser) -> None:
    assert (await browser.get(want(MACHINES[0]))).status_code == 404
