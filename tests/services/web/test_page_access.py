"""Access to each page."""

import dataclasses
from datetime import UTC, datetime
from uuid import UUID

import pytest
from litestar import Litestar

from services.web import application, page_access, request_context
from services.web.page_access import PageAudience
from services.web.request_context import App
from shared import errors
from shared.api import auth
from shared.types import Credential, Tier, UserId, UserRole


def session(role: UserRole) -> auth.LoginSession:
    user = auth.User(UserId(UUID(int=1)), "ada", "ada@example.org", role, Tier.FREE, True, datetime(2026, 1, 1, tzinfo=UTC))
    return auth.LoginSession(Credential("t"), 600, "s", user)


def test_every_page_has_its_row(pages: Litestar) -> None:
    assert len(pages.routes) > 10
    for route in pages.routes:
        assert isinstance(page_access.find_audience(route.path), PageAudience)


@pytest.mark.parametrize(
    ("path", "audience"),
    [
        ("/", PageAudience.ANYBODY),
        ("/login", PageAudience.ANYBODY),
        ("/login/code", PageAudience.HALFWAY),
        ("/static/abc/js/copy.js", PageAudience.ANYBODY),
        ("/api-keys", PageAudience.PERSON),
        ("/api-keys/1234/revoke", PageAudience.PERSON),
        ("/admin", PageAudience.ADMIN),
        ("/admin/users/anything/below", PageAudience.ADMIN),
        ("//admin", PageAudience.ADMIN),
        ("/admin/", PageAudience.ADMIN),
        ("/nodes", PageAudience.NODE_OWNER),
        ("/live/health", PageAudience.ADMIN),
    ],
)
def test_longest_matching_row_wins(path: str, audience: PageAudience) -> None:
    assert page_access.find_audience(path) is audience


@pytest.mark.parametrize("path", ["/adminx", "/api-keysx", "/nowhere", "/loginx/code", "/ADMIN"])
def test_path_without_a_row_is_an_error(path: str) -> None:
    with pytest.raises(ValueError, match="add one"):
        page_access.find_audience(path)


def test_roles_and_their_pages() -> None:
    for audience, roles in (
        (PageAudience.PERSON, set(UserRole)),
        (PageAudience.NODE_OWNER, {UserRole.ADMIN, UserRole.NODE_OWNER}),
        (PageAudience.ADMIN, {UserRole.ADMIN}),
    ):
        for role in UserRole:
            if role in roles:
                page_access.check(audience, session(role))
            else:
                with pytest.raises(errors.NotAllowed, match="can open this page"):
                    page_access.check(audience, session(role))


@pytest.mark.parametrize(
    ("then", "leads_to"),
    [
        ("/api-keys", "/api-keys"),
        ("/admin/users", "/admin/users"),
        ("", request_context.HOME),
        ("/", request_context.HOME),
        ("//evil.example", request_context.HOME),
        ("https://evil.example", request_context.HOME),
        ("/\\evil.example", request_context.HOME),
        ("/api-keys/../../evil", request_context.HOME),
        ("/api-keys?next=//evil", request_context.HOME),
        ("/api-keys\n", request_context.HOME),
        ("/nowhere", request_context.HOME),
        ("/login", request_context.HOME),
        ("/live/overview", request_context.HOME),
        ("/" + "a" * 300, request_context.HOME),
    ],
)
def test_login_leads_only_to_our_own_pages(then: str, leads_to: str) -> None:
    assert request_context.own_page(then) == leads_to


def test_page_without_a_row_stops_the_start(site: App, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {path: audience for path, audience in page_access.PAGES.items() if path != "/api-keys"}
    monkeypatch.setattr(page_access, "PAGES", pages)
    with pytest.raises(ValueError, match="/api-keys"):
        application.build(dataclasses.replace(site))
