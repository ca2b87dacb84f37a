import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from shared import errors
from shared.api import gateway, ledger
from shared.types import MicroCredits, ModelName, RequestStatus, Tier
from tests.services.web.browser import Browser, forms_of
from tests.services.web.conftest import CurrentSite
from tests.services.web.fake_mesh import NOW, FakeMesh

FEBRUARY = datetime(2027, 2, 1, tzinfo=UTC)
AWAY = errors.NotReachable("no node of that role is alive", hint="see `aicli stack status`")


@pytest.fixture
async def alice(mesh: FakeMesh, browser: Browser) -> Browser:
    """A browser in which alice is signed in."""
    mesh.add_account("alice", "correct horse", tier=Tier.PRO)
    assert (await browser.sign_in("alice", "correct horse")).status_code == 303
    mesh.calls.clear()
    return browser


async def test_landing_page_says_whether_the_mesh_is_ready(browser: Browser, mesh: FakeMesh) -> None:
    assert "OK · 1 worker online" in (await browser.get("/")).text
    mesh.workers = 0
    assert "no worker is online" in (await browser.get("/")).text
    assert "Create an account" in (await browser.get("/")).text


async def test_closed_registration_offers_no_account_on_the_landing_page(browser: Browser, mesh: FakeMesh) -> None:
    mesh.options = msgspec.structs.replace(mesh.options, open_registration=False)
    text = (await browser.get("/")).text
    assert "Create an account" not in text
    assert '<a class="button" href="/login">Sign in</a>' in text


async def test_landing_page_works_when_everything_else_is_down(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken |= {"auth": AWAY, "gateway": AWAY}
    page = await alice.get("/")
    assert page.status_code == 200
    assert "isn’t responding" in page.text


async def test_overview_shows_daily_usage_and_remaining_quota(alice: Browser, mesh: FakeMesh) -> None:
    mesh.use(NOW, 3, 1234, cost=1_500_000, p95_ms=840)
    mesh.use(NOW - timedelta(days=5), 2, 766, failed=1)
    mesh.limits = (gateway.LimitState("user", "requests_per_hour", 1000, 960, 2480.0),)
    page = await alice.get("/dashboard")
    assert page.status_code == 200
    assert '<p class="big" data-live="tokens">2,000</p>' in page.text
    assert '<p class="big" data-live="cost">1.50</p>' in page.text
    assert '<p class="big" data-live="p95">840 ms</p>' in page.text
    assert "1 failed" in page.text
    assert '<strong data-live="left">960</strong>' in page.text
    assert "Resets in 42 min" in page.text
    assert 'data-live="label" data-live-attr="datetime:id">20 Nov</time></th><td class="n" data-value="3"' in page.text
    # Thirty days, and the template for new rows.
    assert page.text.count('data-live="label" data-live-attr="datetime:id"') == 31
    assert "pro tier" in page.text


async def test_day_is_shown_by_hour(alice: Browser, mesh: FakeMesh) -> None:
    mesh.use(NOW, 3)
    mesh.use(NOW - timedelta(days=2), 4)
    page = await alice.get("/dashboard?span=day")
    assert '<p class="big" data-live="requests">3</p>' in page.text
    assert 'data-live-attr="datetime:id">14:00</time></th><td class="n" data-value="3"' in page.text
    assert 'data-live-source="/live/overview?span=day"' in page.text
    assert 'href="/dashboard?span=day&amp;show=requests" aria-current="true">24 hours</a>' in page.text


@pytest.mark.parametrize(
    ("show", "kind", "first"), [("tokens", "bars", "Tokens"), ("latency", "lines", "Median latency"), ("nope", "bars", "Requests")]
)
async def test_each_number_links_to_its_chart(alice: Browser, mesh: FakeMesh, show: str, kind: str, first: str) -> None:
    mesh.use(NOW, 3)
    page = await alice.get(f"/dashboard?show={show}")
    assert f'<table data-chart="{kind}">' in page.text
    heads = re.findall(r'<th scope="col" class="n" data-unit="[^"]*">([^<]+)</th>', page.text)
    assert (heads[0], len(heads)) == (first, 6)
    assert page.text.count('aria-current="true"') == 2


async def test_last_ten_requests_have_their_outcome(alice: Browser, mesh: FakeMesh) -> None:
    for number in range(12):
        mesh.log(NOW - timedelta(minutes=number))
    mesh.log(NOW, RequestStatus.LIMITED, "rate_limited")
    page = await alice.get("/dashboard")
    assert page.text.count('<tr role="row" data-id="0') == 10
    assert "Rate limited" in page.text
    assert '<code class="under" data-live="code">rate_limited</code>' in page.text
    assert 'href="/requests">All requests</a>' in page.text


async def test_new_user_sees_first_steps_before_empty_numbers(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.get("/dashboard")
    assert page.text.index("Get started") < page.text.index("No requests in the last 30 days") < page.text.index("No requests yet")
    mesh.log(NOW)
    page = await alice.get("/dashboard")
    assert page.text.index("All requests") < page.text.index("Get started")
    assert 'data-live-show="is_unused" hidden>' in page.text


async def test_overview_shows_the_credits(alice: Browser, mesh: FakeMesh) -> None:
    mesh.account = ledger.Account(MicroCredits(1_234_500_000), MicroCredits(0), MicroCredits(0))
    page = await alice.get("/dashboard")
    assert 'data-live="credits">1,234.50</p>' in page.text
    assert "Tokens of your plan" not in page.text
    mesh.account = msgspec.structs.replace(mesh.account, allowance=ledger.Allowance(100_000, 2_500, 0, FEBRUARY))
    page = await alice.get("/dashboard")
    assert 'data-live="plan_tokens">97,500</p>' in page.text
    assert 'data-live="plan_tokens_detail">2,500 of 100,000 used; renews 1 Feb 2027</p>' in page.text


UNVERIFIED = gateway.AccountNotice(
    gateway.NoticeKind.UNVERIFIED, "your plan's tokens are for verified email addresses", "verify your address with `aicli billing verify`"
)
HOUR = gateway.AccountNotice(gateway.NoticeKind.LIMIT, "the free tier's limit of 100 requests per hour is used up", "wait 41 min")
EMPTY = gateway.AccountNotice(gateway.NoticeKind.CREDITS, "your credits are too low", "add credits")
LATE = gateway.AccountNotice(gateway.NoticeKind.PAYMENT, "a payment for your plan pro is late", "pay it")


@pytest.mark.parametrize(("path", "sells"), [("/dashboard", "on"), ("/playground", "on"), ("/api-keys", "off")])
async def test_pages_say_why_requests_are_refused(alice: Browser, mesh: FakeMesh, current_site: CurrentSite, path: str, sells: str) -> None:
    site = current_site.site
    assert site is not None
    current_site.site = replace(site, settings=msgspec.structs.replace(site.settings, money=sells))
    assert 'data-live-list="notices" data-live-show="notices" hidden>' in (await alice.get(path)).text
    mesh.notices = (HOUR, UNVERIFIED, EMPTY, LATE)
    page = (await alice.get(path)).text
    assert 'data-live-show="notices">' in page
    shown = re.findall(
        r'data-id="(\w+)">\s*<p><strong data-live="text">(.*?)</strong> <span data-live="hint">(.*?)</span> <a (.*?)>(.*?)</a>', page
    )
    billing = ("/billing", True, "Billing") if sells == "on" else ("/settings", False, "")
    assert [(name, text, hint, *_link(attributes), label) for name, text, hint, attributes, label in shown] == [
        ("limit", "The free tier&#39;s limit of 100 requests per hour is used up.", "Wait 41 min.", "/settings", False, ""),
        ("unverified", "Your plan&#39;s tokens are for verified email addresses.", "Verify your address with aicli billing verify.",
         "/settings", True, "Verify address"),
        ("credits", "Your credits are too low.", "Add credits.", *billing),
        ("payment", "A payment for your plan pro is late.", "Pay it.", *billing),
    ]  # fmt: skip


def _link(attributes: str) -> tuple[str, bool]:
    """Return where it leads, and whether it is shown."""
    (href,) = re.findall(r'href="(.*?)"', attributes)
    return href, not attributes.endswith(" hidden")


async def test_user_without_limits_sees_none(browser: Browser, mesh: FakeMesh) -> None:
    mesh.account = ledger.Account(MicroCredits(-5), MicroCredits(0))
    mesh.add_account("bob", "correct horse", tier=Tier.ENTERPRISE)
    await browser.sign_in("bob", "correct horse")
    page = await browser.get("/dashboard")
    assert 'data-live-show="no_limits">The enterprise tier has no limits.' in page.text
    assert 'data-live="credits">unlimited</p>' in page.text
    assert "1,000,000,000" not in page.text


async def test_embedding_model_is_not_used_in_the_first_steps(alice: Browser, mesh: FakeMesh) -> None:
    mesh.served = (gateway.ServedModel(ModelName("vectors"), 1, 512, only_embeds=True), gateway.ServedModel(ModelName("chatty"), 1, 512))
    page = await alice.get("/dashboard")
    assert "chatty" in page.text
    assert "&#34;model&#34;: &#34;vectors&#34;" not in page.text


async def test_hostile_names_are_escaped(alice: Browser, mesh: FakeMesh) -> None:
    mesh.log(NOW, RequestStatus.ERROR, "<img src=x>", model="<script>alert(1)</script>\u202e" + "x" * 200)
    page = await alice.get("/dashboard")
    assert "<script>alert" not in page.text
    assert "<img src=x" not in page.text
    assert '<bdi data-live="model">&lt;script&gt;alert(1)' in page.text


async def test_first_steps_use_this_address_and_a_served_model(alice: Browser) -> None:
    page = await alice.get("/dashboard")
    assert "curl http://localhost:3000/v1/chat/completions" in page.text
    assert 'base_url="http://localhost:3000/v1"' in page.text
    assert "smollm2" in page.text


async def test_agents_have_lines_with_this_address_and_a_served_model(alice: Browser) -> None:
    page = await alice.get("/dashboard")
    assert '<label for="setup-claude-code">Claude Code</label>' in page.text
    assert "export ANTHROPIC_BASE_URL=http://localhost:3000 ANTHROPIC_AUTH_TOKEN=$AIMESH_API_KEY" in page.text
    assert "ANTHROPIC_MODEL=smollm2" in page.text


async def test_calls_use_the_users_access_token(alice: Browser, mesh: FakeMesh) -> None:
    await alice.get("/dashboard")
    for call in mesh.calls:
        expected = None if call.method == "auth.resumeSession" else "access-alice"
        assert call.credential == expected, call.method


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        pytest.param("gateway", "The gateway isn’t responding,</strong>", id="gateway down"),
        pytest.param("gateway.getUsageReport", "Usage is unavailable right now", id="usage cannot be read"),
        pytest.param("gateway.listRequests", "The request log is unavailable right now", id="log cannot be read"),
        pytest.param("gateway.getUserQuota", "The gateway isn’t responding. Reload", id="quota cannot be read"),
        pytest.param("gateway.listModels", "Replace MODEL with a model’s name", id="models cannot be read"),
    ],
)
async def test_unavailable_part_hides_only_its_numbers(alice: Browser, mesh: FakeMesh, broken: str, message: str) -> None:
    mesh.broken[broken] = AWAY
    page = await alice.get("/dashboard")
    assert page.status_code == 200
    assert message in page.text


async def test_unavailable_gateway_is_reported_once_and_the_page_is_not_live(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["gateway"] = AWAY
    page = await alice.get("/dashboard?span=day")
    assert page.text.count("isn’t responding") == 1
    assert "data-live" not in page.text
    assert 'href="/dashboard?span=day">Try again</a>' in page.text
    assert "Get started" in page.text


async def test_unavailable_auth_gives_a_friendly_503(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["auth"] = errors.NotReachable("auth does not answer", hint="see `aicli stack status`", retry_after_seconds=2.5)
    page = await alice.get("/dashboard")
    assert page.status_code == 503
    assert page.headers["retry-after"] == "3"
    assert "Auth does not answer" in page.text
    assert "See <code>aicli stack status</code>." in page.text


@pytest.mark.parametrize("path", ["/usage", "/usage.csv", "/requests", "/requests.csv", "/models", "/live/overview"])
async def test_no_page_of_numbers_opens_while_auth_is_down(alice: Browser, mesh: FakeMesh, path: str) -> None:
    mesh.broken["auth"] = AWAY
    page = await alice.get(path)
    assert page.status_code == 503
    assert "See <code>aicli stack status</code>." in page.text
    assert {name for name in mesh.called_methods() if name.startswith("gateway.")} == set()


@pytest.mark.parametrize("query", ["?span=year", "?span=%00", "?show=" + "x" * 3000, "?span=day&span=month", "?show=%ff"])
async def test_edited_query_still_shows_the_overview(alice: Browser, mesh: FakeMesh, query: str) -> None:
    mesh.use(NOW, 3)
    page = await alice.get(f"/dashboard{query}")
    assert page.status_code == 200
    assert '<p class="big" data-live="requests">3</p>' in page.text


@pytest.mark.parametrize("path", ["/dashboard", "/api-keys", "/usage", "/requests", "/models"])
async def test_personal_pages_lead_to_the_login_and_back(browser: Browser, mesh: FakeMesh, path: str) -> None:
    mesh.add_account("alice", "correct horse")
    refused = await browser.get(path)
    assert (refused.status_code, refused.headers["location"]) == (303, f"/login?then={path}")
    login = await browser.get(refused.headers["location"])
    answer = await browser.submit(login, "/login", name="alice", password="correct horse")
    assert answer.headers["location"] == path


async def test_cookie_of_an_ended_session_is_deleted(alice: Browser, mesh: FakeMesh) -> None:
    mesh.sessions.clear()
    answer = await alice.get("/dashboard")
    assert answer.status_code == 303
    assert "aimesh_session=" in answer.headers["set-cookie"]
    assert "Max-Age=0" in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/dashboard/", 303),
        ("GET", "/static/../settings.py", 404),
        ("GET", "/static/..%2fsettings.py", 404),
        ("GET", "/static/style.css.map", 404),
        ("GET", "/api-keys/not-an-id/revoke", 404),
        ("GET", "/logout", 405),
        ("PUT", "/dashboard", 405),
        ("DELETE", "/api-keys", 405),
        ("GET", "/%ff%fe", 404),
    ],
)
async def test_unknown_paths_and_methods_get_an_error_page(browser: Browser, method: str, path: str, status: int) -> None:
    answer = await browser.client.request(method, path)
    assert answer.status_code == status
    if status >= 400:
        assert f'<p class="code-number">{status}</p>' in answer.text
        assert answer.headers["x-request-id"] in answer.text
    if status == 405:
        assert answer.headers["allow"]


async def test_body_over_the_limit_is_refused(browser: Browser) -> None:
    answer = await browser.client.post("/login", data={"token": "t" * 20_000}, headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 413


async def test_bug_shows_its_request_id_and_nothing_else(alice: Browser, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(mesh, "_list_api_keys", broken)
    answer = await alice.get("/api-keys")
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert answer.headers["x-request-id"] in answer.text


async def test_head_is_get_without_the_body(browser: Browser) -> None:
    answer = await browser.client.head("/")
    assert answer.status_code == 200
    assert answer.content == b""
    assert int(answer.headers["content-length"]) > 500


ACCOUNT_PATHS = (
    "/settings", "/settings/preferences", "/settings/security", "/settings/data", "/organisations", "/invitation?token=abc", "/forgot",
    "/forgot?done=sent", "/reset?token=abc", "/verify", "/verify?done=taken", "/login/oidc",
)  # fmt: skip


USAGE_PATHS = (
    "/dashboard?span=day&show=latency",
    "/usage",
    "/usage?days=365&show=cost",
    "/requests",
    "/requests?status=error&key=1",
    "/models",
)


@pytest.mark.parametrize(
    "path", ["/", "/login", "/register", "/dashboard", "/api-keys", "/login-link?token=abc", *ACCOUNT_PATHS, *USAGE_PATHS]
)
async def test_pages_load_nothing_from_third_parties_and_have_nothing_inline(alice: Browser, path: str) -> None:
    text = (await alice.get(path)).text
    assert text.count("<script") == len(re.findall(r'<script(?: type="module"| defer)? src="/static/[^"]+"></script>', text))
    assert " style=" not in text
    assert not re.search(r' on\w+="', text)
    for address in re.findall(r'(?:src|href|action)="([^"]*)"', text):
        assert address.startswith(("/", "#")), address
        assert not address.startswith("//")


async def test_static_files_are_cached_and_their_url_changes_with_the_content(browser: Browser) -> None:
    page = await browser.get("/")
    path = re.findall(r'href="(/static/\w{12}/style\.css)"', page.text)[0]
    answer = await browser.get(path)
    assert answer.headers["content-type"].startswith("text/css")
    assert "immutable" in answer.headers["cache-control"]


async def test_get_changes_nothing(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.accounts["alice"].user, "laptop")
    mesh.links["link-token"] = mesh.accounts["alice"].user
    for path in ("/", "/login", "/register", "/dashboard", "/api-keys", f"/api-keys/{key.id}/revoke", "/login-link?token=link-token"):
        await alice.get(path)
    reading = {
        "auth.resumeSession",
        "auth.getSignInOptions",
        "auth.listApiKeys",
        "gateway.getUsageReport",
        "gateway.listRequests",
        "gateway.getUserQuota",
        "gateway.listModels",
        "gateway.getServiceHealth",
    }
    assert set(mesh.called_methods()) <= reading
    assert "link-token" in mesh.links


@pytest.mark.parametrize("host", ["evil.example/x onload=1", "evil.example$(reboot)", "evil.example'; reboot; '", "user@evil.example", ""])
async def test_odd_host_header_is_not_repeated(browser: Browser, host: str) -> None:
    page = await browser.client.get("/", headers={"host": host})
    assert "evil.example" not in page.text
    assert page.status_code == 400 or "curl http://127.0.0.1:3000/v1" in page.text


async def test_every_form_has_a_token_of_its_session(alice: Browser) -> None:
    for path in ("/dashboard", "/api-keys"):
        for fields in forms_of(await alice.get(path)).values():
            assert len(fields["token"]) == 97


def _luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


_STYLE = (Path(__file__).parents[4] / "services/web/static/style.css").read_text(encoding="utf-8")
_COLOURS = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", _STYLE)
_SCHEMES = [{name: light for name, light, _ in _COLOURS}, {name: dark for name, _, dark in _COLOURS}]
_ON = {
    "text": ("page", "surface", "sunken", "good-surface", "warn-surface", "bad-surface"),
    "soft": ("page", "surface", "sunken"),
    "accent": ("page", "surface", "good-surface", "warn-surface"),
    "accent-strong": ("page", "surface"),
    "danger": ("surface", "bad-surface"),
    "danger-strong": ("surface",),
    "warn": ("warn-surface",),
    "on-accent": ("accent", "accent-strong"),
    "on-danger": ("danger", "danger-strong"),
}


@pytest.mark.parametrize("scheme", _SCHEMES, ids=["light", "dark"])
def test_text_contrast_meets_wcag_aa(scheme: dict[str, str]) -> None:
    too_weak = [
        f"{text} on {ground}" for text, grounds in _ON.items() for ground in grounds if contrast(scheme[text], scheme[ground]) < 4.5
    ]
    assert too_weak == []


@pytest.mark.parametrize("scheme", _SCHEMES, ids=["light", "dark"])
def test_controls_and_focus_have_enough_contrast(scheme: dict[str, str]) -> None:
    for name in ("field", "bar", "focus", "series-1", "series-2", "series-3", "series-4"):
        assert contrast(scheme[name], scheme["surface"]) >= 3
    assert contrast(scheme["focus"], scheme["page"]) >= 3
