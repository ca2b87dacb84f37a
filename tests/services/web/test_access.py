"""Who may open each page."""

import dataclasses
from datetime import UTC, datetime
from uuid import UUID

import pytest
from litestar import Litestar

from services.web import access, application, visits
from services.web.access import Who
from services.web.visits import Site
from shared import errors
from shared.api import auth
from shared.types import Credential, Tier, UserId, UserRole


def session(role: UserRole) -> auth.LoginSession:
    user = auth.User(UserId(UUID(int=1)), "ada", "ada@example.org", role, Tier.FREE, True, datetime(2026, 1, 1, tzinfo=UTC))
    return auth.LoginSession(Credential("t"), 600, "s", user)


def test_every_page_has_its_row(site: Site) -> None:
    pages: Litestar = application.build(site)
    assert len(pages.routes) > 10
    for route in pages.routes:
        assert isinstance(access.who_may(route.path), Who)


@pytest.mark.parametrize(
    ("path", "who"),
    [
        ("/", Who.ANYBODY),
        ("/login", Who.ANYBODY),
        ("/login/code", Who.HALFWAY),
        ("/static/abc/js/copy.js", Who.ANYBODY),
        ("/api-keys", Who.PERSON),
        ("/api-keys/1234/revoke", Who.PERSON),
        ("/admin", Who.ADMIN),
        ("/admin/users/anything/below", Who.ADMIN),
        ("//admin", Who.ADMIN),
        ("/admin/", Who.ADMIN),
        ("/nodes", Who.NODE_OWNER),
        ("/live/health", Who.ADMIN),
    ],
)
def test_the_longest_row_that_fits_holds(path: str, who: Who) -> None:
    assert access.who_may(path) is who


@pytest.mark.parametrize("path", ["/adminx", "/api-keysx", "/nowhere", "/loginx/code", "/ADMIN"])
def test_what_has_no_row_belongs_to_nobody(path: str) -> None:
    with pytest.raises(ValueError, match="add one"):
        access.who_may(path)


def test_roles_and_their_pages() -> None:
    for who, roles in ((Who.PERSON, set(UserRole)), (Who.NODE_OWNER, {UserRole.ADMIN, UserRole.NODE_OWNER}), (Who.ADMIN, {UserRole.ADMIN})):
        for role in UserRole:
            if role in roles:
                access.check(who, session(role))
            else:
                with pytest.raises(errors.NotAllowed, match="can open this page"):
                    access.check(who, session(role))


@pytest.mark.parametrize(
    ("then", "leads_to"),
    [
        ("/api-keys", "/api-keys"),
        ("/admin/users", "/admin/users"),
        ("", visits.HOME),
        ("/", visits.HOME),
        ("//evil.example", visits.HOME),
        ("https://evil.example", visits.HOME),
        ("/\\evil.example", visits.HOME),
        ("/api-keys/../../evil", visits.HOME),
        ("/api-keys?next=//evil", visits.HOME),
        ("/api-keys\n", visits.HOME),
        ("/nowhere", visits.HOME),
        ("/login", visits.HOME),
        ("/live/overview", visits.HOME),
        ("/" + "a" * 300, visits.HOME),
    ],
)
def test_a_login_leads_to_pages_of_ours_alone(then: str, leads_to: str) -> None:
    assert visits.own_page(then) == leads_to


def test_a_page_without_a_row_stops_the_start(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {path: who for path, who in access.PAGES.items() if path != "/api-keys"}
    monkeypatch.setattr(access, "PAGES", pages)
    with pytest.raises(ValueError, match="/api-keys"):
        application.build(dataclasses.replace(site))
