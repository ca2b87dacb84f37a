"""Checks what the types of documents can't say: within a document, and between documents. Pure."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from uuid import UUID

import msgspec

from services.gateway.facts import active_hours, config_snapshot, model_routes, tiers, upstream_prices
from services.gateway.facts.config_snapshot import DocumentKey, StoredDocument
from services.gateway.facts.unreadable import Unreadable
from shared import errors, limits
from shared.config_documents import (
    FIXED_NAMES,
    MAX_CONFIG_BYTES,
    MAX_POLICIES,
    MAX_ROUTES,
    MAX_SERVERS,
    MAX_TENANT_BYTES,
    MAX_TENANT_DOCUMENTS,
    MAX_TENANTS_BYTES,
    MAX_TENANTS_DOCUMENTS,
    NAME_PREFIXES,
    ConfigKind,
    DefaultModelDocument,
    Document,
    GuardDocument,
    ModelLimitDocument,
    PlanDocument,
    PolicyDocument,
    RouteDocument,
    ServerDocument,
    TrustDocument,
    UpstreamPriceDocument,
)
from shared.types import ModelName, TenantId

#: The path of a mistake within a document, and what is wrong.
Mistake = tuple[tuple[str | int, ...], str]
CheckGuard = Callable[[GuardDocument], Iterator[Mistake]]

NOTHING: Mapping[DocumentKey, int] = MappingProxyType({})
_MINUTE, _HOUR = limits.BY_NAME["requests_per_minute"], limits.BY_NAME["requests_per_hour"]
#: The error of a percentage as a binary fraction.
_ROUNDING = 1e-6


def describe_names(kind: ConfigKind, name: str) -> str:
    """Return the names that documents of this kind may have, for people; empty if ``name`` is one."""
    fixed, prefixes = FIXED_NAMES.get(kind, ()), NAME_PREFIXES.get(kind, ())
    if not fixed or name in fixed or any(name.startswith(prefix) and _is_id(name.removeprefix(prefix)) for prefix in prefixes):
        return ""
    return " or ".join((*fixed, *(f"{prefix}ID" for prefix in prefixes)))


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def check_body(body: Document, check_guard: CheckGuard) -> Iterator[Mistake]:
    """Yield each mistake within a document. ``check_guard`` checks what only the guard can: patterns and countries."""
    if isinstance(body, RouteDocument):
        for position in _repeated([target.name for target in body.targets]):
            yield ("targets", position, "name"), "must be unique within its route"
        yield from _check_targets(body)
        if body.cache_seconds is not None and body.cache is None:
            yield ("cache_seconds",), "has no effect without cache: same_request"
    if isinstance(body, PolicyDocument) and body.guard is not None:
        for position in _repeated([pattern.name for pattern in body.guard.patterns]):
            yield ("guard", "patterns", position, "name"), "must be unique"
        yield from check_guard(body.guard)
    if isinstance(body, UpstreamPriceDocument):
        price = upstream_prices.compiled(body)
        if price.cached_input_micro_per_million > price.input_micro_per_million:
            yield ("cached_input",), "must not exceed input"
    if isinstance(body, TrustDocument):
        yield from _check_keys(body)


def _check_keys(body: TrustDocument) -> Iterator[Mistake]:
    # Imported late: the keys' library takes 50 ms.
    from shared.models import trust_bundle  # noqa: PLC0415

    for position, key in enumerate(body.keys):
        try:
            trust_bundle.read_public_key(key)
        except errors.BadRequest as error:
            yield ("keys", position), f"{error.message}; {error.hint}"


def _repeated(names: Sequence[str]) -> Iterator[int]:
    """Yield the positions of names that occur earlier, too."""
    return (position for position, name in enumerate(names) if name in names[:position])


def _check_targets(route: RouteDocument) -> Iterator[Mistake]:
    for position, target in enumerate(route.targets):
        if target.share is not None and abs(target.share * 100 - round(target.share * 100)) > _ROUNDING:
            yield ("targets", position, "share"), "must have at most two decimals"
        if len(route.targets) > 1 and target.share is None and target.order is None:
            yield ("targets", position), "is never used; give it a share or an order"
        low, high = (target.when.min_prompt_tokens, target.when.max_prompt_tokens) if target.when else (None, None)
        if low is not None and high is not None and low > high:
            yield ("targets", position, "when", "min_prompt_tokens"), "must not exceed max_prompt_tokens"
        if target.when is not None and target.when.hours is not None:
            try:
                active_hours.parse(target.when.hours)
            except ValueError as error:
                yield ("targets", position, "when", "hours"), str(error)
        if target.moderates is not route.targets[0].moderates:
            yield ("targets", position, "task"), "must be the same for all targets of a route"
        if target.format is not None and not target.moderates:
            yield ("targets", position, "format"), "needs `task: moderation`"
    shares = [model_routes.hundredths(target.share) for target in route.targets if target.share is not None]
    if shares and sum(shares) != model_routes.WHOLE:
        yield ("targets",), f"the shares add up to {sum(shares) / 100:g}, not 100"


def check_change(
    current: Mapping[DocumentKey, StoredDocument], changed: Mapping[DocumentKey, Document | None], tenant: TenantId | None
) -> Iterator[str]:
    """Yield each mistake of a change by people of a tenant, or by an administrator (None): nothing that tenants write is in the way of an
    administrator."""
    written = {key: body for key, body in changed.items() if body is not None}
    kept = {key: stored for key, stored in current.items() if stored.body is not None and stored.tenant is None and key not in changed}
    of_mesh = {key: body for key, stored in kept.items() if (body := stored.usable) is not None}
    unreadable = {key: stored.size for key, stored in kept.items() if isinstance(stored.body, Unreadable)}
    if tenant is None:
        yield from check_together(of_mesh | written, unreadable)
        yield from _check_rates(of_mesh | written, written)
        return
    yield from _check_moderation(
        written, {name: body for (_, name), body in of_mesh.items() if isinstance(body, RouteDocument)}, unreadable
    )
    bounds = ("your policies", tenant, MAX_TENANT_DOCUMENTS, MAX_TENANT_BYTES), (
        "the policies of all organizations and users", None, MAX_TENANTS_DOCUMENTS, MAX_TENANTS_BYTES
    )  # fmt: skip
    sizes = [len(msgspec.json.encode(body)) for body in written.values()]
    for subject, of, max_documents, max_bytes in bounds:
        before = {
            key: stored.size
            for key, stored in current.items()
            if stored.body is not None and (stored.tenant == of if of is not None else stored.tenant is not None)
        }
        others = [size for key, size in before.items() if key not in changed]
        for what, limit, was, would in (
            ("documents", max_documents, len(before), len(others) + len(sizes)),
            ("bytes as JSON", max_bytes, sum(before.values()), sum(others) + sum(sizes)),
        ):
            if would > max(limit, was):
                yield f"{subject} would have {would} {what}; the limit is {limit}"


def check_together(documents: Mapping[DocumentKey, Document], unreadable: Mapping[DocumentKey, int] = NOTHING) -> Iterator[str]:
    """Yield each mistake between the documents of the mesh, as they are after a change. ``unreadable``: the bytes of those that this
    gateway can't read; what refers to them may be right."""
    routes = {name: body for (_, name), body in documents.items() if isinstance(body, RouteDocument)}
    size = sum(len(msgspec.json.encode(body)) for key, body in documents.items() if key not in unreadable) + sum(unreadable.values())
    if size > MAX_CONFIG_BYTES:
        yield f"the configuration would have {size} bytes as JSON; the limit is {MAX_CONFIG_BYTES}"
    policies = sum(isinstance(body, PolicyDocument) for body in documents.values())
    if policies > MAX_POLICIES:
        yield f"policies: there would be {policies}; the limit is {MAX_POLICIES}"
    if len(routes) > MAX_ROUTES:
        yield f"routes: there would be {len(routes)}; the limit is {MAX_ROUTES}"
    servers = sum(isinstance(body, ServerDocument) for body in documents.values())
    if servers > MAX_SERVERS:
        yield f"servers: there would be {servers}; the limit is {MAX_SERVERS}"
    yield from _check_moderation(documents, routes, unreadable)
    for name, route in routes.items():
        for position, target in enumerate(route.targets):
            if target.model in routes and target.model != name:
                yield f"routes.{name}.targets[{position}].model: {target.model} is a route; name a served model"
            if target.daily_ceiling is not None and (ConfigKind.UPSTREAM_PRICE, target.model) not in {**documents, **unreadable}:
                yield f"routes.{name}.targets[{position}].daily_ceiling: upstream_prices has no {target.model}"
        compared = {target.name: target.model for target in route.targets}.get(route.compare_cost_with or "", route.compare_cost_with)
        if compared is not None and (ConfigKind.UPSTREAM_PRICE, compared) not in {**documents, **unreadable}:
            yield f"routes.{name}.compare_cost_with: upstream_prices has no {compared}"


def _check_rates(documents: Mapping[DocumentKey, Document], written: Mapping[DocumentKey, Document]) -> Iterator[str]:
    """Yield each written limit per minute above the limit per hour. Documents from before this rule stay as they are."""
    plans = config_snapshot.all_plans({name: body for (_, name), body in documents.items() if isinstance(body, PlanDocument)})
    for (_, name), body in written.items():
        if not isinstance(body, PlanDocument | ModelLimitDocument):
            continue
        is_plan = isinstance(body, PlanDocument)
        rule = plans[name] if is_plan else config_snapshot.tier_plan(tiers.NO_LIMITS, body, "")
        minute, hour = _MINUTE.of(rule), _HOUR.of(rule)
        if _MINUTE.of(body) is not None and minute is not None and hour is not None and minute > hour:
            where = f"{'plans' if is_plan else 'model_limits'}.{name}.{_MINUTE.name}"
            yield f"{where}: {minute} is more than its {hour} {_HOUR.words}; set {_HOUR.name}, too"


def _check_moderation(
    documents: Mapping[DocumentKey, Document], routes: Mapping[str, RouteDocument], unreadable: Collection[DocumentKey]
) -> Iterator[str]:
    for (_, name), body in documents.items():
        if isinstance(body, PolicyDocument) and body.guard is not None and (rule := body.guard.moderation) is not None:
            found = routes.get(rule.route)
            if found is None and (ConfigKind.ROUTE, rule.route) in unreadable:
                continue
            if found is None or not found.targets[0].moderates:
                yield f"policies.{name}.guard.moderation.route: {rule.route} is not a route whose targets have `task: moderation`"


def warnings(documents: Mapping[DocumentKey, Document | None], routes: Collection[str], served: Collection[ModelName]) -> Iterator[str]:
    """Yield what a change may have overlooked, given the ``served`` models and all ``routes``."""
    for (_, name), body in documents.items():
        match body:
            case RouteDocument():
                for target in body.targets:
                    if target.model not in served:
                        yield f"route {name}: no worker serves {target.model} now"
            case DefaultModelDocument() if body.model not in served and body.model not in routes:
                yield f"default model: no worker serves {body.model} now, and no route has this name"
