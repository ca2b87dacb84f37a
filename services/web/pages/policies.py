"""Show and change the policies of the mesh, organizations and keys, and what applies in the end."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.web.http import forms
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import configuration as api
from shared.config_documents import DEFAULT_POLICY, KEY_POLICY, MESH_POLICY, ORGANIZATION_POLICY, Machines, PolicyDocument
from shared.lists.columns import Listing
from shared.lists.policies import EFFECTIVE, RULES
from shared.types import KeyId, TenantId

_DONE = {"set": "Policy saved. It is in use within seconds.", "removed": "Policy removed. Only the other levels apply."}
MACHINES = {
    Machines.OWN: "the organization’s own",
    Machines.INTERNAL: "also the operator’s",
    Machines.TRUSTED: "also trusted ones",
    Machines.GROUP: "all of the group",
}
_LISTS = ("external", "models", "targets")
_NONE = "none"


class PolicyForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An empty field is no rule."""

    external: str = ""
    machines: str = ""
    models: str = ""
    targets: str = ""
    direct_models: str = ""
    max_input: str = ""
    max_output: str = ""
    show_targets: str = ""
    store_items: str = ""
    stored_prompts: str = ""
    flex: str = ""
    #: That was shown.
    version: str = "0"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPage:
    title: str
    #: The page that it belongs to, and its name.
    back: tuple[str, str] | None
    path: str
    state: api.PolicyState
    form: PolicyForm
    #: The rules of this policy as text, by their labels.
    filled: dict[str, str]
    #: What applies in the end; empty for the levels of the mesh, under which others have rules of their own.
    rules: tuple[api.PolicyRule, ...]
    effective: ClassVar[Listing[api.PolicyRule]] = EFFECTIVE
    labels: ClassVar[Mapping[str, str]] = RULES
    machines: ClassVar[Mapping[Machines, str]] = MACHINES


@get("/policies/{level:str}")
async def show_policy(page_request: NamedDependency[PageRequest], level: FromPath[str]) -> Page:
    return await _page(page_request, level)


@post("/policies/{level:str}")
async def set_policy(page_request: NamedDependency[PageRequest], level: FromPath[str]) -> Page:
    form = await page_request.read_form(PolicyForm)
    try:
        name, version = _name(level), _version(form.version)
        before = (await page_request.call(api.get_policy, api.GetPolicy(name))).policy
        wanted = msgspec.structs.replace(_document(form), guard=None if before is None else before.guard)
        await page_request.submit(api.set_policy, api.SetPolicy(name, wanted, version))
    except errors.CallerError as error:
        return await _page(page_request, level, error, form)
    return page_request.redirect(f"/policies/{level}?done=set")


@post("/policies/{level:str}/remove")
async def remove_policy(page_request: NamedDependency[PageRequest], level: FromPath[str]) -> Page:
    version = await page_request.read_field("version")
    try:
        await page_request.submit(api.set_policy, api.SetPolicy(_name(level), None, _version(version)))
    except errors.CallerError as error:
        return await _page(page_request, level, error)
    return page_request.redirect(f"/policies/{level}?done=removed")


async def _page(page_request: PageRequest, level: str, problem: errors.CallerError | None = None, form: PolicyForm | None = None) -> Page:
    name = _name(level)
    tenant, key = _subject(name)
    rules: tuple[api.PolicyRule, ...] = ()
    if tenant is None and key is None:
        state = await page_request.call(api.get_policy, api.GetPolicy(name))
    else:
        state, explained = await asyncio.gather(
            page_request.call(api.get_policy, api.GetPolicy(name)), page_request.call(api.explain_policy, api.ExplainPolicy(tenant, key))
        )
        rules = explained.rules
    title, back = _title(name)
    view = PolicyPage(
        title=title,
        back=back,
        path=f"/policies/{level}",
        state=state,
        form=form or _filled(state),
        filled=_shown(_filled(state)) | _guard(state.policy),
        rules=rules,
    )
    return page_request.page("policy.html", view, here="api-keys" if key is not None else "organisations", problem=problem, notices=_DONE)


def _name(level: str) -> str:
    """Return the policy's name, from a path such as organization-<id>. Raises NotFound."""
    if level in (MESH_POLICY, DEFAULT_POLICY):
        return level
    kind, _, text = level.partition("-")
    prefix = f"{kind}:"
    if prefix in (ORGANIZATION_POLICY, KEY_POLICY):
        try:
            return f"{prefix}{UUID(text)}"
        except ValueError:
            pass
    raise errors.NotFound("there is no such policy", hint="open it from an organization or a key")


def _subject(name: str) -> tuple[TenantId | None, KeyId | None]:
    if name.startswith(ORGANIZATION_POLICY):
        return TenantId(UUID(name.removeprefix(ORGANIZATION_POLICY))), None
    return None, KeyId(UUID(name.removeprefix(KEY_POLICY))) if name.startswith(KEY_POLICY) else None


def _title(name: str) -> tuple[str, tuple[str, str] | None]:
    if name == MESH_POLICY:
        return "Policy of the mesh", None
    if name == DEFAULT_POLICY:
        return "Policy of organizations without their own", None
    tenant, key = _subject(name)
    if key is not None:
        return "Policy of a key", (f"/api-keys/{key}", "API key")
    return "Policy of an organization", (f"/organisations/{tenant}", "Organization")


def _version(text: str) -> int:
    if (version := forms.find_number(text)) is None:
        raise errors.BadRequest("invalid version", hint="reload the page and submit the form again")
    return version


def _filled(state: api.PolicyState) -> PolicyForm:
    policy = state.policy or PolicyDocument()
    ceilings = policy.max_price
    return PolicyForm(
        **{name: _written(getattr(policy, name)) for name in _LISTS},
        machines="" if policy.machines is None else policy.machines.value,
        direct_models=_yes_or_no(policy.direct_models),
        max_input="" if ceilings is None or ceilings.input is None else str(ceilings.input),
        max_output="" if ceilings is None or ceilings.output is None else str(ceilings.output),
        show_targets=_yes_or_no(policy.show_targets),
        store_items=_yes_or_no(policy.store_items),
        stored_prompts="" if policy.stored_prompts is None else policy.stored_prompts.value,
        flex="" if policy.flex is None else policy.flex.value,
        version=str(state.version),
    )


def _shown(form: PolicyForm) -> dict[str, str]:
    values = {"max_price.input": form.max_input, "max_price.output": form.max_output}
    return {label: text for rule, label in RULES.items() if (text := values.get(rule) or getattr(form, rule, ""))}


def _guard(policy: PolicyDocument | None) -> dict[str, str]:
    if policy is None or policy.guard is None:
        return {}
    places = (("prompt", policy.guard.prompt), ("answer", policy.guard.answer))
    found = {RULES[f"guard.{place}.{kind}"]: action.value for place, actions in places for kind, action in actions.items()}
    if (rule := policy.guard.moderation) is not None:
        found[RULES["guard.moderation"]] = f"prompt {rule.prompt}, answer {rule.answer} ({rule.route})"
    return found


def _written(names: tuple[str, ...] | None) -> str:
    return "" if names is None else ", ".join(names) or _NONE


def _yes_or_no(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _document(form: PolicyForm) -> PolicyDocument:
    """Raises BadRequest that names the field."""
    rules: dict[str, object] = {name: text for name in ("machines", "stored_prompts", "flex") if (text := getattr(form, name))}
    for name in _LISTS:
        if text := getattr(form, name).strip():
            rules[name] = [] if text == _NONE else [part.strip() for part in text.split(",")]
    for name in ("direct_models", "show_targets", "store_items"):
        if text := getattr(form, name):
            rules[name] = {"yes": True, "no": False}.get(text, text)
    ceilings = {side: text for side in ("input", "output") if (text := getattr(form, f"max_{side}").strip())}
    if ceilings:
        rules["max_price"] = ceilings
    for name, value in rules.items():
        try:
            msgspec.convert({name: value}, PolicyDocument)
        except msgspec.ValidationError as error:
            label = RULES.get(name, "Maximum price")
            raise errors.BadRequest(f"{label}: this value can't be used", hint=_HINTS[name], field=name) from error
    return msgspec.convert(rules, PolicyDocument)


_HINTS = {
    "external": "write names of providers, separated by commas, * for all, or none",
    "machines": "choose from the list",
    "models": "write names, separated by commas; * stands for any characters; or none",
    "targets": "write names, separated by commas; * stands for any characters; or none",
    "direct_models": "choose from the list",
    "show_targets": "choose from the list",
    "store_items": "choose from the list",
    "stored_prompts": "choose from the list",
    "flex": "choose from the list",
    "max_price": "write credits per million tokens, such as 0.15",
}
