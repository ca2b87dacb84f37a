"""The keys of a person, or of the organisation they act for: list, create and rotate (shown once), rename, revoke (asked twice)."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import key_forms, key_lines, rendering
from services.web.key_forms import NewKeyForm
from services.web.key_lines import KeyLine
from services.web.visits import Page, Visit
from shared import errors
from shared.api import auth, gateway
from shared.types import ModelName

NOTHING_TYPED = NewKeyForm(name="")
#: How long an old secret may go on beside the new one, in seconds, and how that is said.
OVERLAPS: Mapping[int, str] = {86_400: "for a day", 3_600: "for an hour", 604_800: "for a week", 0: "not at all"}
#: Of these the empty one is what is usual: 90 days, and 30 for a key for tests.
DAYS: Mapping[str, str] = {"7": "7 days", "30": "30 days", "": "90 days", "365": "a year", "0": "ever"}
#: The words that a redirect may bring.
_DONE = {"revoked": "The key is revoked. Requests with it are refused from now on.", "renamed": "The key has its new name."}


class NameForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class RotateForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    overlap: str = "86400"


@dataclass(frozen=True, slots=True)
class Box:
    """One permission that can be ticked."""

    field: str
    words: str
    scope: str
    is_ticked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeysPage:
    keys: tuple[KeyLine, ...]
    #: The organisation whose keys they are; None for the person's own.
    team: str | None
    boxes: tuple[Box, ...]
    is_admin: bool
    #: For the lines that use a key.
    address: str
    model: ModelName | None
    days: Mapping[str, str]
    #: On the answer to the creation and never again.
    created: auth.NewApiKey | None
    #: What was typed into a form that was refused.
    typed: NewKeyForm
    problem: errors.AimeshError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPage:
    key: KeyLine
    name: str
    overlaps: Mapping[int, str]
    address: str
    model: ModelName | None
    #: On the answer to the rotation and never again.
    created: auth.NewApiKey | None = None
    #: How the old secret goes on beside it.
    overlap: str = ""
    problem: errors.AimeshError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokePage:
    key: KeyLine
    #: The active keys that it made, and those that they made.
    made: tuple[KeyLine, ...]


class RevokeForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: A box: only sent where it is ticked.
    with_made: str = ""


@get("/api-keys")
async def show_api_keys(visit: NamedDependency[Visit], done: FromQuery[str] = "") -> Page:
    return await _list(visit, notice=rendering.Notice(_DONE[done]) if done in _DONE else None)


@post("/api-keys")
async def create_api_key(visit: NamedDependency[Visit]) -> Page:
    """Answers with the page itself: a redirect would have to carry the key somewhere."""
    form = await visit.read_form(NewKeyForm)
    try:
        created = await visit.call(auth.generate_api_key, key_forms.read_request(form))
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        return await _list(visit, typed=form, problem=error)
    return await _list(visit, created=created)


@get("/api-keys/{key_id:uuid}")
async def show_api_key(visit: NamedDependency[Visit], key_id: FromPath[UUID], done: FromQuery[str] = "") -> Page:
    key = await _active(visit, key_id)
    notice = rendering.Notice(_DONE[done]) if done in _DONE else None
    return visit.page("key.html", _key_page(visit, key), here="api-keys", notice=notice)


@post("/api-keys/{key_id:uuid}/rename")
async def rename_api_key(visit: NamedDependency[Visit], key_id: FromPath[UUID]) -> Page:
    form = await visit.read_form(NameForm)
    try:
        await visit.call(auth.rename_api_key, auth.RenameApiKey(str(key_id), form.name.strip()))
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        view = _key_page(visit, await _active(visit, key_id), name=form.name, problem=error)
        return visit.page("key.html", view, here="api-keys", status=error.status)
    return visit.redirect(f"/api-keys/{key_id}?done=renamed")


@post("/api-keys/{key_id:uuid}/rotate")
async def rotate_api_key(visit: NamedDependency[Visit], key_id: FromPath[UUID]) -> Page:
    """As ``create_api_key``: the new secret is in the answer and nowhere else."""
    form = await visit.read_form(RotateForm)
    seconds = next((seconds for seconds in OVERLAPS if str(seconds) == form.overlap), None)
    try:
        if seconds is None:
            raise errors.BadRequest("the old secret cannot go on for so long", hint="choose one of the list")
        created = await visit.call(auth.rotate_api_key, auth.RotateApiKey(str(key_id), seconds))
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        view = _key_page(visit, await _active(visit, key_id), problem=error)
        return visit.page("key.html", view, here="api-keys", status=error.status)
    served = await visit.ask(gateway.list_models, gateway.ListModels())
    view = _key_page(visit, created.key, created=created, overlap=OVERLAPS[seconds], model=_default(served))
    return visit.page("key.html", view, here="api-keys", status=HTTPStatus.CREATED)


@get("/api-keys/{key_id:uuid}/revoke")
async def ask_revoke(visit: NamedDependency[Visit], key_id: FromPath[UUID]) -> Page:
    listed = await visit.call(auth.list_api_keys, auth.ListApiKeys())
    key, now = _find_active(listed.keys, key_id), visit.site.now()
    made = tuple(line for each in key_lines.made_by(listed.keys, key.id) if (line := key_lines.line_of(each, now)).is_active)
    return visit.page("revoke.html", RevokePage(key=key_lines.line_of(key, now), made=made), here="api-keys")


@post("/api-keys/{key_id:uuid}/revoke")
async def revoke_api_key(visit: NamedDependency[Visit], key_id: FromPath[UUID]) -> Page:
    form = await visit.read_form(RevokeForm)
    # Whose key it is, auth decides by the credential.
    await visit.call(auth.revoke_api_key, auth.RevokeApiKey(str(key_id), with_made=bool(form.with_made)))
    return visit.redirect("/api-keys?done=revoked")


async def _list(
    visit: Visit,
    *,
    created: auth.NewApiKey | None = None,
    typed: NewKeyForm = NOTHING_TYPED,
    problem: errors.CallerError | None = None,
    notice: rendering.Notice | None = None,
) -> Page:
    listed, served = await asyncio.gather(
        visit.call(auth.list_api_keys, auth.ListApiKeys()), visit.ask(gateway.list_models, gateway.ListModels())
    )
    person = visit.person
    view = ApiKeysPage(
        keys=key_lines.lines_of(listed.keys, visit.site.now()),
        team=person.team_name if person.team_id is not None else None,
        boxes=tuple(
            Box(field, key_lines.WORDS[scope], scope, bool(getattr(typed, field)))
            for field, scope in key_forms.scopes_of(person.user.role).items()
        ),
        is_admin=person.user.role == "admin",
        address=visit.address,
        model=_default(served),
        days=DAYS,
        created=created,
        typed=typed,
        problem=problem,
    )
    status = HTTPStatus.CREATED if created is not None else HTTPStatus.OK if problem is None else problem.status
    return visit.page("api_keys.html", view, here="api-keys", status=status, notice=notice)


async def _active(visit: Visit, key_id: UUID) -> auth.ApiKey:
    return _find_active((await visit.call(auth.list_api_keys, auth.ListApiKeys())).keys, key_id)


def _find_active(keys: tuple[auth.ApiKey, ...], key_id: UUID) -> auth.ApiKey:
    key = next((key for key in keys if key.id == key_id and key.is_active), None)
    if key is None:
        raise errors.NotFound("there is no active key with this id", hint="open your API keys and choose one there")
    return key


def _key_page(
    visit: Visit,
    key: auth.ApiKey,
    *,
    name: str | None = None,
    model: ModelName | None = None,
    created: auth.NewApiKey | None = None,
    overlap: str = "",
    problem: errors.CallerError | None = None,
) -> KeyPage:
    return KeyPage(
        key=key_lines.line_of(key, visit.site.now()),
        name=key.name if name is None else name,
        overlaps=OVERLAPS,
        address=visit.address,
        model=model,
        created=created,
        overlap=overlap,
        problem=problem,
    )


def _default(served: gateway.ServedModels | None) -> ModelName | None:
    return next((model.name for model in served.models if not model.only_embeds), None) if served is not None else None


ROUTES = (show_api_keys, create_api_key, show_api_key, rename_api_key, rotate_api_key, ask_revoke, revoke_api_key)
