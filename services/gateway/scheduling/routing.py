"""Resolves the model that a request names, and lists the served models. Pure."""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime

from services.gateway.facts import model_builds, model_names
from services.gateway.facts.model_builds import NONE_CHECKED, RightCalls
from services.gateway.facts.model_names import ModelNames
from services.gateway.facts.model_routes import Route
from shared import errors
from shared.api.auth import Principal
from shared.api.gateway import ServedModel, ServedModels
from shared.config_documents import is_pattern
from shared.models import version_names
from shared.protocol import agent_requirements
from shared.protocol.directory import STARTING, DirectoryEntry, say_reasons
from shared.types import ModelName

#: Echoes its prompt, for load tests; sorted last, so that it never becomes the default.
_SYNTHETIC = "echo"

RECENTLY_LOST_SECONDS = 10.0

#: The route that moderates if there are several and a request names none.
_MODERATION = "moderation"
_MODERATION_HINT = "define a route whose targets have `task: moderation`; see docs/howto/policies-and-guardrails.md"

_NO_WORKER_HINT = "see `aicli nodes`; start a worker with `aicli worker`"


def may_name(caller: Principal, name: ModelName, names: ModelNames) -> bool:
    """Return whether the caller's key may use the route, the served model or the alias."""
    route = names.routes.get(name)
    if route is None:
        return may_use(caller, names.resolve(name), names)
    return name in caller.models or any(may_use(caller, model, names) for model in route.models)


def may_use(caller: Principal, model: ModelName, names: ModelNames) -> bool:
    """Return whether the caller's key may use the served model: it lists the model or one of its aliases."""
    return not caller.models or model in caller.models or any(names.resolve(name) == model for name in caller.models)


def not_allowed(caller: Principal, model: ModelName) -> errors.NotAllowed:
    allowed = ", ".join(caller.models[:10])
    return errors.NotAllowed(f"this key may not use {model}", hint=f"it may use {allowed}; use another key for other models")


def served(workers: Iterable[DirectoryEntry], names: ModelNames) -> tuple[ModelName, ...]:
    """Return the served models, without routes: the default first, then those of our own engines by name, and those of other servers; the
    synthetic one, those of external providers and models that only embed or moderate last."""
    offers = [offer for worker in workers for offer in worker.announcement.models if offer.ready and not names.hides(offer.name)]
    answering = {offer.name for offer in offers if offer.answers_prompts}
    internal = {offer.name for offer in offers if not offer.provider}
    own = {offer.name for offer in offers if not offer.is_upstream}
    default = ModelName(names.aliases.get(names.default, names.default)) if names.default else None
    found = {offer.name for offer in offers}
    last = {name: (name not in answering, name not in internal, name == _SYNTHETIC, name not in own) for name in found}
    return tuple(sorted(found, key=lambda name: (name != default, *last[name], name)))


def catalogue(
    workers: Sequence[DirectoryEntry],
    names: ModelNames,
    allows: Callable[[str], bool] = lambda _name: True,
    startable: Iterable[ModelName] = (),
    right_calls: RightCalls = NONE_CHECKED,
) -> tuple[ServedModel, ...]:
    """Return the routes, and the served models with their aliases; if only routes may be named, each alias as a model. The default is the
    first. Moderation is left out. ``allows``: whether the caller may use this name. ``startable``: models whose workers can be started."""
    chatting = {offer.name for worker in workers for offer in worker.announcement.models if offer.ready and not offer.only_moderates}
    ready = served(workers, names)
    found = [*(model for model in ready if model in chatting), *(model for model in startable if model not in ready)]
    shown = (route for route in names.routes.values() if not (route.moderates or is_pattern(route.name)))
    routes = [(ModelName(route.name), [model for model in found if model in route.models], ()) for route in shown]
    rows: list[tuple[ModelName, list[ModelName], tuple[str, ...]]] = [row for row in routes if row[1] and allows(row[0])]
    for model in (model for model in found if model not in names.routes):
        aliases = tuple(filter(allows, names.aliases_of(model)))
        if allows(model) and not names.only_routes:
            rows.append((model, [model], aliases))
        else:
            rows += ((ModelName(alias), [model], ()) for alias in aliases)
    rows.sort(key=lambda row: row[0] != names.default)
    return tuple(_served_model(workers, *row, right_calls, shows_upstreams=not names.only_routes) for row in rows)


def _served_model(
    workers: Sequence[DirectoryEntry],
    name: ModelName,
    models: Sequence[ModelName],
    aliases: tuple[str, ...],
    checked: RightCalls,
    *,
    shows_upstreams: bool,
) -> ServedModel:
    served = model_builds.offers_of(models, workers)
    offers = [offer for _, offer in served]
    answering = [offer for offer in offers if offer.answers_prompts]
    # The least over its workers, here and below.
    context_tokens = min((offer.context_tokens for offer in answering), default=0)
    right_calls = model_builds.least_right(model_builds.of(served), checked)
    can_have_context = all(offer.can_suit_agents for offer in answering if offer.context_tokens < agent_requirements.CONTEXT_TOKENS)
    return ServedModel(
        name=name,
        workers=sum(any(_serves(worker, model) for model in models) for worker in workers),
        context_tokens=min((offer.context_tokens for offer in offers), default=0),
        aliases=aliases,
        only_embeds=bool(offers) and all(offer.only_embeds for offer in offers),
        providers=tuple(sorted({offer.provider for offer in offers if offer.provider})),
        regions=tuple(sorted({offer.region for offer in offers if offer.region})),
        abilities=tuple(sorted(set.intersection(*(set(offer.abilities) for offer in offers)))) if offers else (),
        parent=next((offer.parent for offer in offers if len(models) == 1), None),
        suits_agents=agent_requirements.are_met(context_tokens, right_calls),
        agents_hint=agent_requirements.describe(context_tokens, right_calls, can_have_context=can_have_context) if answering else "",
        right_calls=right_calls,
        upstream_models=tuple(sorted({offer.upstream_model for offer in offers if offer.upstream_model and shows_upstreams})),
    )


def resolve(
    wanted: ModelName | None,
    workers: Sequence[DirectoryEntry],
    names: ModelNames,
    *,
    just_started: bool = False,
    allows: Callable[[str], bool] = lambda _name: True,
    startable: Collection[ModelName] = (),
) -> ModelName:
    """Return the served model that ``wanted`` names. Another model is never substituted, but ``name:latest`` and ``name`` are the same.

    ``allows``: whether the caller may use this name; others don't exist for the caller. ``workers`` are all known workers, gone ones
    included: they tell a missing worker from a misspelled model, unless this gateway has ``just_started``, or one of them has not said
    what it has. ``startable``: models whose workers can be started. Raises UnknownModel, or NotReachable if the model may exist but no
    worker can run it now.
    """
    usable = [worker for worker in workers if not worker.why_not]
    if wanted is None and names.default is None:
        # A model that is served comes first.
        found = next((model for model in served(usable, names) or startable if _public_names(model, names, allows)), None)
        if found is None:
            raise _no_worker(workers)
        return found
    requested = str(wanted or names.default)
    meanings = _meanings(requested, names) if any(map(allows, model_names.spellings(requested))) else ()
    models = {offer.name for worker in usable for offer in worker.announcement.models if offer.ready}
    if (found := next((model for known in (models, startable) for model in meanings if model in known), None)) is not None:
        return found
    for model in meanings:
        if absent := [worker for worker in workers if has_model(worker, model)]:
            raise errors.NotReachable(f"no worker can run {model} now: {_reasons_for(model, absent)}", hint=_NO_WORKER_HINT)
    if not models:
        raise _no_worker(workers, _pushed_hint(requested, names))
    shown = [name for model in served(usable, names) for name in _public_names(model, names, allows)]
    if not meanings:
        raise _unknown(requested, "", shown)
    model = names.resolve(ModelName(requested))
    if just_started or any_starting(workers):
        raise errors.NotReachable(
            f"no worker with the model {model!r} has been found yet: this gateway or a worker has just started", retry_after_seconds=1
        )
    raise _unknown(model, f" (which {requested!r} is an alias of)" if model != requested else "", shown, _pushed_hint(requested, names))


def _unknown(model: str, through: str, shown: Iterable[str], hint: str = "") -> errors.UnknownModel:
    return errors.UnknownModel(
        f"no worker serves the model {model!r}{through}; served models: {', '.join(shown) or 'none'}",
        hint=hint or "choose one of these, or define the name as a route with `aicli admin config apply`",
    )


def _pushed_hint(requested: str, names: ModelNames) -> str:
    """Return how a pushed model gets on machines; empty for another one."""
    versions = {name for alias, name in names.aliases.items() if "@sha256:" in alias}
    model, served = version_names.strip_version(ModelName(requested)), names.resolve(ModelName(requested))
    if served in versions:
        name = served if "@sha256:" in requested else requested
        return f"put it on machines, or ask an administrator to: aicli models deploy {name}"
    if any(version_names.strip_version(ModelName(version)) == model for version in versions):
        return f"let requests use a version of it: aicli models promote {model}"
    return ""


def _public_names(model: ModelName, names: ModelNames, allows: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the names under which callers know a served model: its own, or else its aliases."""
    return (model,) if allows(model) and not names.only_routes else tuple(filter(allows, names.aliases_of(model)))


def contexts(model: ModelName, usable: Iterable[DirectoryEntry]) -> list[int]:
    """Return the context of each worker of a served model, in tokens; 0 if unknown."""
    return [offer.context_tokens for worker in usable for offer in worker.announcement.models if offer.name == model and offer.ready]


def max_context(model: ModelName, usable: Iterable[DirectoryEntry]) -> int:
    """Return the largest context of the workers of a served model, in tokens; 0 if unknown, because an unknown one may be larger."""
    found = contexts(model, usable)
    return max(found) if found and all(found) else 0


def digest_of(model: ModelName, usable: Iterable[DirectoryEntry]) -> str:
    """Return the digest of the model's file; empty if unknown or if workers differ."""
    digests = {offer.digest for worker in usable for offer in worker.announcement.models if offer.name == model and offer.ready}
    return digests.pop() if len(digests) == 1 else ""


def any_recently_lost(workers: Iterable[DirectoryEntry], now: datetime) -> bool:
    """Return whether a worker left so recently that it may be back soon, for example after a restart."""
    return any(not worker.alive and (now - worker.since).total_seconds() < RECENTLY_LOST_SECONDS for worker in workers)


def any_starting(workers: Iterable[DirectoryEntry]) -> bool:
    """Return whether a worker has not said yet which models it has."""
    return any(worker.alive and worker.announcement.not_ready == STARTING for worker in workers)


def ensure_capable(model: ModelName, usable: Sequence[DirectoryEntry], *, wants_answer: bool, has_images: bool = False) -> None:
    """Raise BadRequest if the model only moderates, only embeds and a prompt wants an answer, or can't see the prompt's images. Before a
    worker has started, any may."""
    offers = [offer for worker in usable for offer in worker.announcement.models if offer.name == model]
    ready = [offer for offer in offers if offer.ready]
    if not ready:
        return
    if all(offer.only_moderates for offer in ready):
        raise errors.BadRequest(f"{model} is a moderation model", hint="name it in a route for /v1/moderations, or choose another model")
    if wants_answer and not any(offer.answers_prompts for offer in ready):
        raise errors.BadRequest(f"{model} is an embedding model", hint="request embeddings, or choose another model")
    if has_images and not any(offer.sees_images for offer in offers):
        raise errors.BadRequest(f"{model} doesn't support images", hint="leave them out, or choose a model with images among its abilities")


def ensure_task(route: Route, *, moderates: bool) -> None:
    """Raise BadRequest if the route is for moderation and the request isn't, or the other way around."""
    if route.moderates and not moderates:
        raise errors.BadRequest(f"{route.name} is a moderation route", hint="use POST /v1/moderations, or choose another model")
    if moderates and not route.moderates:
        raise errors.BadRequest(f"{route.name} is not a moderation route", hint=_MODERATION_HINT)


def find_moderation(names: ModelNames, allows: Callable[[str], bool]) -> ModelName:
    """Return the only route for moderation that the caller may use, or the one called `moderation`. Raises UnknownModel and BadRequest."""
    found = [name for name, route in names.routes.items() if route.moderates and allows(name)]
    if not found:
        raise errors.UnknownModel("no moderation route is configured", hint=_MODERATION_HINT)
    if len(found) > 1 and _MODERATION not in found:
        raise errors.BadRequest(f"model is missing, with several moderation routes: {', '.join(sorted(found))}", hint="name one of them")
    return ModelName(_MODERATION if _MODERATION in found else found[0])


def no_moderation(name: ModelName | None) -> errors.UnknownModel:
    return errors.UnknownModel(f"there is no moderation route {name!r}", hint=_MODERATION_HINT)


def _meanings(requested: str, names: ModelNames) -> tuple[ModelName, ...]:
    """Return the possible models, likeliest first. A model's own name wins over an equal alias, unless only routes may be named."""
    spellings = model_names.spellings(requested)
    resolved = [names.aliases[name] for name in spellings if name in names.aliases]
    if names.only_routes:
        spellings = ()
    resolved = [*spellings[:1], *resolved]
    return tuple(
        dict.fromkeys(
            ModelName(name)
            for name in (*resolved, *spellings, *(spelling for name in resolved for spelling in model_names.spellings(name)))
            if not names.hides(name)
        )
    )


def _serves(worker: DirectoryEntry, model: ModelName) -> bool:
    return any(offer.name == model and offer.ready for offer in worker.announcement.models)


def has_model(worker: DirectoryEntry, model: ModelName) -> bool:
    return any(offer.name == model for offer in worker.announcement.models)


def _no_worker(workers: Sequence[DirectoryEntry], hint: str = "") -> errors.NotReachable:
    why = f": {reasons(workers)}" if workers else ""
    return errors.NotReachable(f"no worker serves a model now{why}", hint=hint or _NO_WORKER_HINT)


def reasons(workers: Sequence[DirectoryEntry]) -> str:
    return say_reasons((f"{worker.node[:8]}…", worker.why_not or "has no model ready") for worker in workers)


def _reasons_for(model: ModelName, workers: Sequence[DirectoryEntry]) -> str:
    """Return why the workers that have the model can't run it."""

    def reason(worker: DirectoryEntry) -> str:
        problems = (offer.problem for offer in worker.announcement.models if offer.name == model)
        return worker.why_not or next(filter(None, problems), "has no model ready")

    return say_reasons((f"{worker.node[:8]}…", reason(worker)) for worker in workers)


def listed(models: tuple[ServedModel, ...], workers: Sequence[DirectoryEntry]) -> ServedModels:
    """Add why there are none, or what these workers work without."""
    used = [worker for worker in workers if not worker.why_not]
    if not models:
        return ServedModels((), "" if used else reasons(workers))
    lacking = ((f"{worker.node[:8]}…", worker.announcement.warning) for worker in used if worker.announcement.warning)
    return ServedModels(models, warning=say_reasons(lacking))
