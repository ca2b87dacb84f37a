"""Manage the API keys of a user or organization: list, create, rename, rotate and revoke. New secrets are shown once."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import ClassVar
from uuid import UUID

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.web import agent_setups
from services.web.agent_setups import AgentsView
from services.web.pages import key_view, model_view, quota_view
from services.web.pages.key_view import NewKeyForm
from services.web.pages.quota_view import NoticeView
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import auth, gateway
from shared.lists.columns import Listing
from shared.lists.keys import SCOPES, is_working, list_keys
from shared.types import ModelName

NOTHING_TYPED = NewKeyForm(name="")
#: How long the old secret keeps working after a rotation, in seconds -> label.
OVERLAPS: Mapping[int, str] = {86_400: "24 hours", 3_600: "1 hour", 604_800: "7 days", 0: "Revoke now (leaked)"}
#: Lifetime of a new key in days -> label. Empty means the default: 90 days, or 30 for a test key.
DAYS: Mapping[str, str] = {"7": "In 7 days", "30": "In 30 days", "": "In 90 days", "365": "In 1 year", "0": "Never"}
_DONE = {"revoked": "Key revoked. Requests that use it are now rejected.", "renamed": "Key renamed."}


@dataclass(frozen=True, slots=True)
class ScopeCheckbox:
    """A permission checkbox."""

    field: str
    words: str
    scope: str
    is_ticked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeysPage:
    keys: tuple[auth.ApiKey, ...]
    listing: Listing[auth.ApiKey]
    #: The organization that owns the keys; None for personal keys.
    team: str | None
    boxes: tuple[ScopeCheckbox, ...]
    #: For the code samples.
    model: ModelName | None
    agents: AgentsView
    days: ClassVar[Mapping[str, str]] = DAYS
    #: Set only in the response that created the key.
    created: auth.CreatedApiKey | None
    #: Why their requests are or will be refused.
    notices: tuple[NoticeView, ...]
    #: The values of a rejected form.
    typed: NewKeyForm


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPage:
    key: auth.ApiKey
    listing: Listing[auth.ApiKey]
    name: str
    overlaps: ClassVar[Mapping[int, str]] = OVERLAPS
    #: These are set only in the response that rotated the key.
    model: ModelName | None = None
    agents: AgentsView | None = None
    created: auth.CreatedApiKey | None = None
    #: How long the old secret keeps working; empty if it is revoked.
    overlap: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokePage:
    key: auth.ApiKey
    #: The active keys that it created, directly or through other keys.
    made: tuple[auth.ApiKey, ...]


@get("/api-keys")
async def show_api_keys(page_request: NamedDependency[PageRequest]) -> Page:
    return await _list(page_request)


@post("/api-keys")
async def create_api_key(page_request: NamedDependency[PageRequest]) -> Page:
    """Create a key. Responds with the page itself, because a redirect would have to carry the key."""
    form = await page_request.read_form(NewKeyForm)
    try:
        created = await page_request.submit(auth.generate_api_key, key_view.read_request(form))
    except errors.CallerError as error:
        return await _list(page_request, typed=form, problem=error)
    return await _list(page_request, created=created)


@get("/api-keys/{key_id:uuid}")
async def show_api_key(page_request: NamedDependency[PageRequest], key_id: FromPath[UUID]) -> Page:
    return page_request.page("key.html", _view_key(page_request, await _active(page_request, key_id)), notices=_DONE)


@post("/api-keys/{key_id:uuid}/rename")
async def rename_api_key(page_request: NamedDependency[PageRequest], key_id: FromPath[UUID]) -> Page:
    name = await page_request.read_field("name")
    try:
        await page_request.submit(auth.rename_api_key, auth.RenameApiKey(str(key_id), name.strip()))
    except errors.CallerError as error:
        return page_request.page("key.html", _view_key(page_request, await _active(page_request, key_id), name=name), problem=error)
    return page_request.redirect(f"/api-keys/{key_id}?done=renamed")


@post("/api-keys/{key_id:uuid}/rotate")
async def rotate_api_key(page_request: NamedDependency[PageRequest], key_id: FromPath[UUID]) -> Page:
    """Rotate a key. Responds with the page itself, like ``create_api_key``."""
    overlap = await page_request.read_field("overlap", "86400")
    seconds = next((seconds for seconds in OVERLAPS if str(seconds) == overlap), None)
    try:
        if seconds is None:
            raise errors.BadRequest("invalid overlap", hint="choose how long the old secret keeps working from the list")
        created = await page_request.submit(auth.rotate_api_key, auth.RotateApiKey(str(key_id), seconds))
    except errors.CallerError as error:
        return page_request.page("key.html", _view_key(page_request, await _active(page_request, key_id)), problem=error)
    served = await page_request.fetch(gateway.list_models, gateway.ListModels())
    view = replace(
        _view_key(page_request, created.key),
        model=model_view.default_model(served),
        agents=_view_agents(page_request, served),
        created=created,
        overlap=OVERLAPS[seconds] if seconds else "",
    )
    return page_request.page("key.html", view, status=HTTPStatus.CREATED)


@get("/api-keys/{key_id:uuid}/revoke")
async def confirm_revoke(page_request: NamedDependency[PageRequest], key_id: FromPath[UUID]) -> Page:
    listed = await page_request.call(auth.list_api_keys, auth.ListApiKeys())
    key, now = _find_active(listed.keys, key_id), page_request.app.now()
    made = tuple(each for each in key_view.made_by(listed.keys, key.id) if is_working(each, now))
    return page_request.page("revoke.html", RevokePage(key=key, made=made))


@post("/api-keys/{key_id:uuid}/revoke")
async def revoke_api_key(page_request: NamedDependency[PageRequest], key_id: FromPath[UUID]) -> Page:
    with_made = await page_request.read_field("with_made", "")
    # Auth checks by the credential that the user owns the key.
    await page_request.call(auth.revoke_api_key, auth.RevokeApiKey(str(key_id), with_made=bool(with_made)))
    return page_request.redirect("/api-keys?done=revoked")


async def _list(
    page_request: PageRequest,
    *,
    created: auth.CreatedApiKey | None = None,
    typed: NewKeyForm = NOTHING_TYPED,
    problem: errors.CallerError | None = None,
) -> Page:
    listed, served, quota = await asyncio.gather(
        page_request.call(auth.list_api_keys, auth.ListApiKeys()),
        page_request.fetch(gateway.list_models, gateway.ListModels()),
        page_request.fetch(gateway.get_user_quota, gateway.GetUserQuota()),
    )
    person, listing = page_request.person, list_keys(page_request.app.now())
    view = ApiKeysPage(
        keys=tuple(sorted(listed.keys, key=lambda key: (not listing.is_over(key), key.created_at), reverse=True)),
        listing=listing,
        team=person.team_name if person.team_id is not None else None,
        boxes=tuple(
            ScopeCheckbox(field, SCOPES[scope], scope, bool(getattr(typed, field)))
            for field, scope in key_view.scopes_of(person.user.role).items()
        ),
        model=model_view.default_model(served),
        agents=_view_agents(page_request, served),
        created=created,
        notices=quota_view.notices(quota, sells=page_request.sells),
        typed=typed,
    )
    status = None if created is None else HTTPStatus.CREATED
    return page_request.page("api_keys.html", view, status=status, problem=problem, notices=_DONE)


async def _active(page_request: PageRequest, key_id: UUID) -> auth.ApiKey:
    return _find_active((await page_request.call(auth.list_api_keys, auth.ListApiKeys())).keys, key_id)


def _find_active(keys: tuple[auth.ApiKey, ...], key_id: UUID) -> auth.ApiKey:
    key = next((key for key in keys if key.id == key_id and key.is_active), None)
    if key is None:
        raise errors.NotFound("there is no active key with this ID", hint="choose one under API keys")
    return key


def _view_key(page_request: PageRequest, key: auth.ApiKey, *, name: str | None = None) -> KeyPage:
    return KeyPage(key=key, listing=list_keys(page_request.app.now()), name=key.name if name is None else name)


def _view_agents(page_request: PageRequest, served: gateway.ServedModels | None) -> AgentsView:
    return agent_setups.view(page_request.app.agent_setups, page_request.address, served, pin=page_request.app.settings.public_key_pin)
