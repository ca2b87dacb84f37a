"""The second factor. The tests decode the QR code according to ISO/IEC 18004, so they don't depend on the library that draws it."""

import re

import pytest

from services.web.pages.account import second_factor
from shared import errors
from shared.api.auth import Step
from shared.types import UserRole
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_accounts import CODE, RECOVERY_CODES, SEED
from tests.services.web.fake_mesh import FakeMesh

URI = "otpauth://totp/aimesh%20test:alice?secret=JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP&issuer=aimesh%20test&algorithm=SHA1&digits=6&period=30"
#: Version -> capacity in bytes at level M, from table 7.
CAPACITY = {4: 62, 5: 84, 6: 106, 7: 122, 8: 152, 9: 180, 10: 213}
#: Version -> (blocks, error correction codewords in each), from table 9.
BLOCKS = {4: (2, 18), 5: (2, 24), 6: (4, 16), 7: (4, 18), 8: (4, 22), 9: (5, 22), 10: (5, 26)}
#: Annex C: the format information of level M and masks 0 to 7.
FORMATS = [
    "101010000010010", "101000100100101", "101111001111100", "101101101001011",
    "100010111111001", "100000011001110", "100111110010111", "100101010100000",
]  # fmt: skip
#: Table 10, as functions of row and column.
MASKS = [
    lambda i, j: (i + j) % 2, lambda i, j: i % 2, lambda i, j: j % 3, lambda i, j: (i + j) % 3, lambda i, j: (i // 2 + j // 3) % 2,
    lambda i, j: (i * j) % 2 + (i * j) % 3, lambda i, j: ((i * j) % 2 + (i * j) % 3) % 2, lambda i, j: ((i + j) % 2 + (i * j) % 3) % 2,
]  # fmt: skip
#: Annex E: the positions of alignment patterns between the first and the last.
ALIGNED = {7: [22], 8: [24], 9: [26], 10: [28]}
QUIET_ZONE = 4

Matrix = list[list[bool]]


def modules_of(svg: str) -> Matrix:
    """Return the dark modules inside the quiet zone, which must be light."""
    size = int(re.search(r'viewBox="0 0 (\d+) \1"', svg)[1]) - 2 * QUIET_ZONE
    path = re.search(r'stroke="#000" d="([^"]+)"', svg)[1]
    matrix = [[False] * size for _ in range(size)]
    x, y = 0.0, 0.0
    for command, across, down in re.findall(r"([Mmh])(-?[\d.]+)(?:[ ]?(-?[\d.]+))?", path):
        if command == "h":
            for column in range(int(across)):
                matrix[int(y) - QUIET_ZONE][int(x) + column - QUIET_ZONE] = True
        x, y = (float(across), float(down)) if command == "M" else (x + float(across), y + float(down or 0))
        assert QUIET_ZONE <= x <= size + QUIET_ZONE
        assert QUIET_ZONE <= y < size + QUIET_ZONE
    return matrix


def decode(matrix: Matrix) -> str:
    size = len(matrix)
    version = (size - 17) // 4
    places = [*((8, column) for column in (0, 1, 2, 3, 4, 5, 7, 8)), (7, 8), *((row, 8) for row in range(5, -1, -1))]
    mask = MASKS[FORMATS.index("".join(str(int(matrix[row][column])) for row, column in places))]
    stream = "".join(str(int(matrix[row][column] != (mask(row, column) == 0))) for row, column in data_places(size, version))
    return text_of([int(stream[place : place + 8], 2) for place in range(0, len(stream) - 7, 8)], version)


def data_places(size: int, version: int) -> list[tuple[int, int]]:
    """Return the positions in the order of figure 13: two columns at a time from the right, alternately up and down."""
    middles = [6, *ALIGNED.get(version, []), size - 7]

    def is_function(row: int, column: int) -> bool:
        corner = (row < 9 and column < 9) or (row < 9 and column >= size - 8) or (row >= size - 8 and column < 9)
        versions = version >= 7 and ((row < 6 and column >= size - 11) or (column < 6 and row >= size - 11))
        aligned = any(
            abs(row - i) <= 2 and abs(column - j) <= 2
            for i in middles for j in middles if (i, j) not in ((6, 6), (6, size - 7), (size - 7, 6))
        )  # fmt: skip
        return corner or versions or aligned or row == 6 or column == 6

    found, upwards, column = [], True, size - 1
    while column > 0:
        column -= column == 6
        for row in range(size - 1, -1, -1) if upwards else range(size):
            found += [(row, each) for each in (column, column - 1) if not is_function(row, each)]
        column, upwards = column - 2, not upwards
    return found


def text_of(codewords: list[int], version: int) -> str:
    """Join the data codewords of all blocks. The code is drawn without errors, so nothing needs correction."""
    blocks, correction = BLOCKS[version]
    short, longer = divmod(len(codewords) - blocks * correction, blocks)
    lengths = [short + (block >= blocks - longer) for block in range(blocks)]
    rows: list[list[int]] = [[] for _ in range(blocks)]
    codes_left = iter(codewords)
    for place in range(max(lengths)):
        for block in range(blocks):
            if place < lengths[block]:
                rows[block].append(next(codes_left))
    stream = "".join(f"{word:08b}" for row in rows for word in row)
    counted = 16 if version == 10 else 8
    assert stream[:4] == "0100"
    start, length = 4 + counted, int(stream[4 : 4 + counted], 2)
    return bytes(int(stream[start + 8 * place : start + 8 * place + 8], 2) for place in range(length)).decode()


@pytest.mark.parametrize("version", CAPACITY)
def test_qr_code_decodes_to_the_seed(version: int) -> None:
    for spare in (0, 1, 5):
        uri = URI.ljust(CAPACITY[version], "x")[: CAPACITY[version] - spare]
        assert decode(modules_of(second_factor.draw(uri))) == uri


def test_largest_seed_fits_version_10_and_a_longer_one_is_refused() -> None:
    uri = URI.ljust(213, "x")
    matrix = modules_of(second_factor.draw(uri))
    assert len(matrix) == 57
    assert decode(matrix) == uri
    assert second_factor.draw(uri + "x") is None


def test_qr_code_has_no_inline_style_and_works_in_both_themes() -> None:
    svg = second_factor.draw(URI)
    assert "style" not in svg
    assert '<path fill="#fff"' in svg
    assert 'stroke="#000"' in svg
    assert 'class="qr"' in svg


@pytest.fixture
async def halfway(mesh: FakeMesh, browser: Browser) -> Browser:
    """A browser in which alice has entered her password, but not her code yet."""
    return await _sign_in(mesh, browser, Step.ENTER_CODE)


@pytest.fixture
async def new_admin(mesh: FakeMesh, browser: Browser) -> Browser:
    """A browser in which an administrator must set up a second factor."""
    return await _sign_in(mesh, browser, Step.SET_UP_MFA)


async def _sign_in(mesh: FakeMesh, browser: Browser, step: Step, then: str = "") -> Browser:
    mesh.add_account("alice", "correct horse")
    opened = mesh.add_session

    def add_session(user: object) -> str:
        token = opened(user)  # type: ignore[arg-type]
        mesh.steps[token] = step
        return token

    mesh.add_session = add_session  # type: ignore[method-assign]
    login = await browser.get(f"/login?then={then}")
    answer = await browser.submit(login, "/login", name="alice", password="correct horse")
    mesh.add_session = opened  # type: ignore[method-assign]
    page = {Step.ENTER_CODE: "/login/code", Step.SET_UP_MFA: "/login/second-factor"}[step]
    assert answer.headers["location"] == (f"{page}?then={then}" if then else page)
    return browser


@pytest.mark.parametrize("code", [CODE, f" {CODE} ", RECOVERY_CODES[0]], ids=["of the app", "with spaces around", "for recovery"])
async def test_code_completes_the_login_under_a_new_token(halfway: Browser, mesh: FakeMesh, code: str) -> None:
    before = halfway.client.cookies["aimesh_session"]
    answer = await halfway.submit(await halfway.get("/login/code"), "/login/code", code=code)
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
    assert halfway.client.cookies["aimesh_session"] != before
    assert list(mesh.sessions) == [halfway.client.cookies["aimesh_session"]]
    assert (await halfway.get("/dashboard")).status_code == 200


async def test_requested_page_is_kept_during_the_login(browser: Browser, mesh: FakeMesh) -> None:
    await _sign_in(mesh, browser, Step.ENTER_CODE, then="/api-keys")
    page = await browser.get("/login/code?then=/api-keys")
    answer = await browser.submit(page, "/login/code", code=CODE)
    assert answer.headers["location"] == "/api-keys"


@pytest.mark.parametrize("then", ["https://evil.example", "//evil.example", "/logout"])
async def test_code_does_not_redirect_elsewhere(halfway: Browser, then: str) -> None:
    page = await halfway.client.get("/login/code", params={"then": then})
    answer = await halfway.submit(page, "/login/code", code=CODE, then=then)
    assert answer.headers["location"] == "/dashboard"


async def test_wrong_code_is_reported_and_does_not_sign_in(halfway: Browser) -> None:
    page = await halfway.submit(await halfway.get("/login/code"), "/login/code", code="000000")
    assert page.status_code == 403
    assert "The code is wrong, or was used before." in page.text
    assert "000000" not in page.text
    assert (await halfway.get("/dashboard")).headers["location"] == "/login/code"


async def test_no_personal_page_opens_before_the_code(halfway: Browser) -> None:
    page = await halfway.get("/login/code")
    assert 'href="/api-keys"' not in page.text
    for path in ("/dashboard", "/settings", "/settings/security", "/organisations", "/invitation"):
        answer = await halfway.get(path)
        then = "" if path == "/dashboard" else f"?then={path}"
        assert (answer.status_code, answer.headers["location"]) == (303, f"/login/code{then}")


async def test_another_user_can_sign_in_instead(halfway: Browser, mesh: FakeMesh) -> None:
    answer = await halfway.submit(await halfway.get("/login/code"), "/logout")
    assert answer.status_code == 303
    assert mesh.sessions == {}
    assert (await halfway.get("/login")).status_code == 200


async def test_completed_login_is_redirected(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    await browser.sign_in("alice", "correct horse")
    for path in ("/login/code", "/login/second-factor", "/login"):
        answer = await browser.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
    assert mesh.seeds_begun == 0


async def test_visitor_signs_in_first(browser: Browser) -> None:
    for path in ("/login/code", "/login/second-factor"):
        assert (await browser.get(path)).headers["location"].startswith("/login")


async def test_cross_site_code_is_refused(halfway: Browser, mesh: FakeMesh) -> None:
    page = await halfway.get("/login/code")
    assert (await halfway.submit(page, "/login/code", {"Sec-Fetch-Site": "cross-site"}, code=CODE)).status_code == 403
    assert (await halfway.submit(page, "/login/code", code=CODE, token="")).status_code == 403
    assert "auth.confirmLogin" not in mesh.called_methods()


async def test_unavailable_auth_is_reported_and_the_code_can_be_sent_again(halfway: Browser, mesh: FakeMesh) -> None:
    page = await halfway.get("/login/code")
    mesh.broken["auth.confirmLogin"] = errors.Unavailable("Valkey does not answer")
    assert (await halfway.submit(page, "/login/code", code=CODE)).status_code == 503
    mesh.broken.clear()
    assert (await halfway.submit(page, "/login/code", code=CODE)).status_code == 303


# --- setup -----------------------------------------------------------------------------------------------------------


async def test_recovery_codes_are_downloaded_from_the_page_that_shows_them(new_admin: Browser) -> None:
    page = await new_admin.submit(await new_admin.get("/login/second-factor"), "/login/second-factor", code=CODE)
    saved = await new_admin.submit(page, second_factor.DOWNLOAD)
    assert saved.status_code == 200
    assert saved.headers["content-disposition"] == 'attachment; filename="aimesh-recovery-codes.txt"'
    assert saved.headers["content-type"].startswith("text/plain")
    assert saved.headers["cache-control"] == page.headers["cache-control"] == "no-store"
    first, *_, last = saved.text.splitlines()
    assert "at http://localhost:3000, created 2026-11-20." in first
    assert [line for line in saved.text.splitlines() if line in RECOVERY_CODES] == list(RECOVERY_CODES)
    assert last == RECOVERY_CODES[-1]


@pytest.mark.parametrize("codes", ["", "<script>", "0000-0000-0000 =cmd()", " ".join(["0000-0000-0000"] * 21)])
async def test_only_recovery_codes_can_be_downloaded(new_admin: Browser, codes: str) -> None:
    page = await new_admin.submit(await new_admin.get("/login/second-factor"), "/login/second-factor", code=CODE)
    refused = await new_admin.submit(page, second_factor.DOWNLOAD, codes=codes)
    assert refused.status_code == 400
    assert "These are no recovery codes" in refused.text
    crossed = await new_admin.submit(page, second_factor.DOWNLOAD, {"Sec-Fetch-Site": "cross-site"})
    assert crossed.status_code == 403


async def test_administrator_sets_up_the_second_factor_and_sees_recovery_codes_once(new_admin: Browser, mesh: FakeMesh) -> None:
    page = await new_admin.get("/login/second-factor?then=/api-keys")
    assert 'class="qr"' in page.text
    assert "JBSW Y3DP EHPK" in page.text
    assert page.headers["cache-control"] == "no-store"
    codes = await new_admin.submit(page, "/login/second-factor", code=CODE)
    assert codes.status_code == 200
    assert all(code in codes.text for code in RECOVERY_CODES)
    assert 'href="/api-keys">I’ve saved my codes' in codes.text
    assert mesh.with_factor == {"alice"}
    again = await new_admin.get("/login/second-factor")
    assert again.headers["location"] == "/dashboard"
    assert (await new_admin.get("/dashboard")).status_code == 200


async def test_mistyped_code_keeps_the_seed(new_admin: Browser, mesh: FakeMesh) -> None:
    page = await new_admin.get("/login/second-factor")
    wrong = await new_admin.submit(page, "/login/second-factor", code="000000")
    assert wrong.status_code == 400
    assert "It is does not match this seed" in wrong.text or "does not match this seed" in wrong.text
    assert forms_of(wrong)["/login/second-factor"]["uri"] == forms_of(page)["/login/second-factor"]["uri"]
    assert mesh.seeds_begun == 1
    assert (await new_admin.submit(wrong, "/login/second-factor", code=CODE)).status_code == 200


@pytest.mark.parametrize(
    "uri", ["", "javascript:alert(1)", "otpauth://totp/x?secret=short", f"https://evil.example/?secret={SEED}", "otpauth://totp/[?secret=A"]
)
async def test_invalid_seed_is_not_drawn(new_admin: Browser, uri: str) -> None:
    page = await new_admin.get("/login/second-factor")
    wrong = await new_admin.submit(page, "/login/second-factor", code="000000", uri=uri)
    assert wrong.status_code == 400
    assert "The form has no valid seed" in wrong.text
    assert "evil" not in wrong.text


async def test_expired_login_starts_over(new_admin: Browser, mesh: FakeMesh) -> None:
    mesh.is_stale = True
    answer = await new_admin.get("/login/second-factor")
    assert answer.headers["location"] == "/login?done=late"
    assert mesh.sessions == {}
    assert "The sign-in timed out" in (await new_admin.get("/login?done=late")).text


async def test_user_with_a_second_factor_is_not_asked_to_set_it_up(halfway: Browser, mesh: FakeMesh) -> None:
    answer = await halfway.get("/login/second-factor")
    assert answer.headers["location"] == "/login/code"
    assert mesh.seeds_begun == 0
    assert mesh.accounts["alice"].user.role is UserRole.USER
