"""The key page: list, create (shown once), revoke (asked twice)."""

from http import HTTPStatus
from uuid import UUID

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import forms, views
from services.web.visits import Page, Visit
from shared import errors
from shared.api import auth


@get("/api-keys")
async def show_api_keys(visit: NamedDependency[Visit], revoked: FromQuery[str] = "") -> Page:
    view = views.ApiKeysPage(keys=await _keys(visit), revoked=bool(revoked))
    return visit.page("api_keys.html", view, here="api-keys")


@post("/api-keys")
async def create_api_key(visit: NamedDependency[Visit]) -> Page:
    """Answers with the page itself: a redirect would have to carry the key somewhere."""
    form = await visit.read_form(forms.NewKeyForm)
    try:
        request = auth.GenerateApiKey(name=form.name.strip(), limits=forms.read_limits(form))
        created = await visit.call(auth.generate_api_key, request)
    except errors.NotAuthenticated:
        raise
    except errors.CallerError as error:
        view = views.ApiKeysPage(keys=await _keys(visit), typed=form, problem=error)
        return visit.page("api_keys.html", view, here="api-keys", status=error.status)
    view = views.ApiKeysPage(keys=await _keys(visit), created=created)
    return visit.page("api_keys.html", view, here="api-keys", status=HTTPStatus.CREATED)


@get("/api-keys/{key_id:uuid}/revoke")
async def ask_revoke(visit: NamedDependency[Visit], key_id: FromPath[UUID]) -> Page:
    key = next((key for key in await _keys(visit) if key.id == key_id and key.is_active), None)
    if key is None:
        raise errors.NotFound("there is no active key with this id", hint="open your API keys and choose one there")
    return visit.page("revoke.html", views.RevokePage(key=key), here="api-keys")


@post("/api-keys/{key_id:uuid}/revoke")
async def revoke_api_key(visit: NamedDependency[Visit], key_id: FromPath[UUID]) -> Page:
    await visit.read_form(forms.Confirmation)
    # Whose key it is, auth decides by the credential.
    await visit.call(auth.revoke_api_key, auth.RevokeApiKey(str(key_id)))
    return visit.redirect("/api-keys?revoked=yes")


async def _keys(visit: Visit) -> tuple[auth.ApiKey, ...]:
    answer = await visit.call(auth.list_api_keys, auth.ListApiKeys())
    return views.sorted_keys(answer.keys)


ROUTES = (show_api_keys, create_api_key, ask_revoke, revoke_api_key)
