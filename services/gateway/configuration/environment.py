"""Turns the settings of the environment into documents, which seed the configuration. Pure."""

from collections.abc import Iterator, Mapping

import msgspec

from services.gateway.facts import config_snapshot
from services.gateway.facts.config_snapshot import DocumentKey, StoredDocument
from services.gateway.facts.unreadable import Unreadable
from services.gateway.settings import GatewaySettings
from shared.config_documents import (
    DEFAULT_MODEL,
    DEFAULT_POLICY,
    MESH_POLICY,
    ConfigKind,
    DefaultModelDocument,
    Document,
    Machines,
    PlanDocument,
    PolicyDocument,
    RouteDocument,
    TargetDocument,
)
from shared.types import Tier

#: Of the built-in plan pro, if a payment provider collects it.
PRO_OVERAGE = 100.0
#: The origin of versions that come from settings.
ENVIRONMENT = "environment"
#: The name of the only target of a route that was an alias.
_TARGET = "main"
_SETTING = {
    ConfigKind.ROUTE: "MODEL_ALIASES",
    ConfigKind.MODEL_LIMIT: "MODEL_LIMITS",
    ConfigKind.DEFAULT_MODEL: "DEFAULT_MODEL",
}
_POLICY_SETTINGS = {MESH_POLICY: "ROUTING_POLICY or EXTERNAL_PROVIDERS", DEFAULT_POLICY: "EXTERNAL_PROVIDERS"}

#: The settings that become documents, with their defaults.
_DEFAULTS = {
    setting.name: setting.default if setting.default_factory is msgspec.NODEFAULT else setting.default_factory()
    for setting in msgspec.structs.fields(GatewaySettings)
    if setting.name
    in {
        "default_rate_limit",
        "premium_rate_limit",
        "tier_free",
        "tier_pro",
        "tier_enterprise",
        "model_limits",
        "model_aliases",
        "default_model",
        "routing_policy",
        "external_providers",
    }
}


def read_documents(settings: GatewaySettings) -> dict[DocumentKey, Document]:
    documents: dict[DocumentKey, Document] = {
        (ConfigKind.ROUTE, alias): RouteDocument(targets=(TargetDocument(name=_TARGET, model=model),))
        for alias, model in settings.model_aliases.items()
    }
    documents |= {(ConfigKind.PLAN, tier.value): config_snapshot.plan_document(tier, plan) for tier, plan in settings.plans().items()}
    if settings.payments != "manual" and isinstance(pro := documents[ConfigKind.PLAN, Tier.PRO.value], PlanDocument):
        # A card pays for usage beyond the tokens.
        documents[ConfigKind.PLAN, Tier.PRO.value] = msgspec.structs.replace(pro, overage_limit=PRO_OVERAGE)
    documents |= {(ConfigKind.MODEL_LIMIT, model): config_snapshot.limit_document(plan) for model, plan in settings.model_plans().items()}
    if settings.default_model:
        documents[ConfigKind.DEFAULT_MODEL, DEFAULT_MODEL] = DefaultModelDocument(model=settings.default_model)
    documents[ConfigKind.POLICY, MESH_POLICY] = PolicyDocument(
        machines=Machines(settings.routing_policy), external=settings.external_providers
    )
    documents[ConfigKind.POLICY, DEFAULT_POLICY] = PolicyDocument(external=settings.external_providers)
    return documents


def find_changes(
    wanted: Mapping[DocumentKey, Document], current: Mapping[DocumentKey, StoredDocument], *, force: bool = False
) -> dict[DocumentKey, Document | None]:
    """Return what the settings change: new documents, and those that nobody has edited by hand; with ``force`` these, too. What this
    gateway can't read is never changed: a newer one wrote it."""
    changes: dict[DocumentKey, Document | None] = {
        key: body
        for key, body in wanted.items()
        if (stored := current.get(key)) is None or (stored.body != body and (force or stored.origin == ENVIRONMENT))
    }
    changes |= {
        key: None for key, stored in current.items() if stored.origin == ENVIRONMENT and key not in wanted and stored.body is not None
    }
    unreadable = {key for key, stored in current.items() if isinstance(stored.body, Unreadable)}
    return {key: body for key, body in changes.items() if key not in unreadable}


def ignored_settings(settings: GatewaySettings, current: Mapping[DocumentKey, StoredDocument]) -> Iterator[str]:
    """Yield a line for each setting that has no effect, because its document was edited by hand."""
    defaults = read_documents(msgspec.structs.replace(settings, **_DEFAULTS))
    for key, body in read_documents(settings).items():
        stored, (kind, name) = current.get(key), key
        if stored is not None and stored.origin != ENVIRONMENT and stored.body != body and body != defaults.get(key):
            setting = _POLICY_SETTINGS[name] if kind is ConfigKind.POLICY else _SETTING.get(kind, f"TIER_{name.upper()}")
            yield f"{setting} is ignored for {kind.value} {name}, which was edited (version {stored.version})"
