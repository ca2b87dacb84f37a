"""The page checks detect faults: each fault is on its own page, and a test that opens the page must fail."""

from pathlib import Path
from urllib.parse import quote

import pytest

from tests.acceptance.album import Album
from tests.acceptance.chromium import Browser
from tests.acceptance.watching import Watch, expected

_POLICY = "<meta http-equiv='content-security-policy' content=\"style-src 'none'; require-trusted-types-for 'script'\">"
_ELSEWHERE = "http://127.0.0.1:9/picture.png"


@pytest.mark.parametrize(
    ("page", "javascript"),
    [
        pytest.param("<script>console.error('broken')</script>", True, id="an error in the console"),
        pytest.param("<script>missing.part()</script>", True, id="an exception"),
        pytest.param(f"{_POLICY}<style>p {{ color: red }}</style>", True, id="a breach of the policy"),
        pytest.param(f"{_POLICY}<style>p {{ color: red }}</style>", False, id="a breach without JavaScript"),
        pytest.param(f"{_POLICY}<script>try {{ document.body.innerHTML = 'x' }} catch {{}}</script>", True, id="text made markup"),
        pytest.param(f"<img src={_ELSEWHERE} alt=''>", True, id="a picture from elsewhere"),
    ],
)
async def test_a_fault_fails_the_test(chrome: Browser, page: str, javascript: bool) -> None:
    watch = Watch(chrome, "http://127.0.0.1:1")
    opened = await watch.open(javascript=javascript)
    await opened.goto(f"data:text/html,{quote(f'<!doctype html><title>x</title><p>{page}')}")
    with pytest.raises(AssertionError):
        await watch.check()


async def test_a_request_elsewhere_fails_even_where_it_is_answered_by_nobody(chrome: Browser) -> None:
    watch = Watch(chrome, "http://127.0.0.1:1")
    page = await watch.open()
    with expected(page, "ERR_"):
        await page.goto(f"data:text/html,<!doctype html><title>x</title><img src={_ELSEWHERE}>")
    with pytest.raises(AssertionError, match="asked of others"):
        await watch.check()
    watch.origin = "http://127.0.0.1:9"
    await watch.check()


async def test_only_what_was_expected_is_forgiven(chrome: Browser) -> None:
    watch = Watch(chrome, "http://127.0.0.1:1")
    page = await watch.open()
    with expected(page, "first"):
        await page.goto("data:text/html,<!doctype html><title>x</title><script>console.error('first'), console.error('second')</script>")
    with pytest.raises(AssertionError, match="second"):
        await watch.check()
    with pytest.raises(AssertionError, match="did not come"), expected(page, "never"):
        pass


async def test_the_album_tells_what_is_too_wide_and_what_has_no_name(chrome: Browser, tmp_path: Path) -> None:
    page, album = await chrome.open(), Album(tmp_path)
    await page.goto(
        "data:text/html,<!doctype html><html lang=en><title>x</title><meta name=viewport content='width=device-width'><h1>x</h1><input>"
    )
    await page.evaluate("document.querySelector('h1').style.width = '700px'")
    await album.add(page, "faulty")
    with pytest.raises(AssertionError) as told:
        album.check()
    for words in ("faulty (phone): 3", "px wider than the window", "faulty (light): critical label", "faulty (dark): critical label"):
        assert words in str(told.value)
    assert "faulty (light): 3" not in str(told.value)
    assert _names(tmp_path) == ["faulty-dark.png", "faulty-light.png", "faulty-phone.png"]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
