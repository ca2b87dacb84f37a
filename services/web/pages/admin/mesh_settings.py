"""Show the settings that the services report. They come from the environment and cannot be changed here."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from litestar import get
from litestar.di import NamedDependency

from services.web.request_context import Page, PageRequest
from shared.api import accounts, auth, gateway, service_settings
from shared.api.gateway import NodeRow
from shared.api.service_settings import ShownSetting, ShownSettings, TierTerms

#: NIST SP 800-63B-4 §3.1.1.2, for passwords without a second factor.
ADVISED_WITHOUT_MFA = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceVersion:
    service: str
    #: More than one during an upgrade.
    versions: tuple[str, ...]
    nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettingsView:
    """The settings of one service, changed ones first."""

    service: str
    #: None if it did not respond.
    changed: tuple[ShownSetting, ...] | None
    usual: tuple[ShownSetting, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsPage:
    #: None if auth did not respond.
    options: accounts.SignInOptions | None
    advised_length: ClassVar[int] = ADVISED_WITHOUT_MFA
    #: The ids of the signing keys; None if auth did not respond.
    signing_keys: tuple[str, ...] | None
    #: None if the gateway did not respond; the same below.
    versions: tuple[ServiceVersion, ...] | None
    default_model: str | None
    is_address_set: bool
    is_over_tls: bool
    tiers: tuple[TierTerms, ...] | None
    services: tuple[ServiceSettingsView, ...]


@get("/admin/settings")
async def show_settings(page_request: NamedDependency[PageRequest]) -> Page:
    (options, keys), (nodes, models), (tiers, of_auth, of_gateway) = await asyncio.gather(
        asyncio.gather(
            page_request.fetch(accounts.get_sign_in_options, accounts.GetSignInOptions()),
            page_request.fetch(auth.get_signing_keys, auth.GetSigningKeys()),
        ),
        asyncio.gather(
            page_request.fetch(gateway.list_nodes, gateway.ListNodes()), page_request.fetch(gateway.list_models, gateway.ListModels())
        ),
        asyncio.gather(
            page_request.fetch(service_settings.list_tiers, service_settings.ListTiers()),
            page_request.fetch(service_settings.auth_settings, service_settings.GetSettings()),
            page_request.fetch(service_settings.gateway_settings, service_settings.GetSettings()),
        ),
    )
    view = SettingsPage(
        options=options,
        signing_keys=tuple(key.kid for key in keys.keys) if keys else None,
        versions=versions_of(nodes.nodes) if nodes else None,
        default_model=models.models[0].name if models and models.models else None,
        is_address_set=bool(page_request.app.settings.public_url),
        is_over_tls=page_request.secure,
        tiers=None if tiers is None else tiers.tiers,
        services=(settings_of("auth", of_auth), settings_of("gateway", of_gateway)),
    )
    return page_request.page("admin/settings.html", view)


def settings_of(service: str, answer: ShownSettings | None) -> ServiceSettingsView:
    """Split settings into changed ones and defaults. A secret counts as changed if it is set."""
    if answer is None:
        return ServiceSettingsView(service=service, changed=None)
    changed = tuple(each for each in answer.settings if (each.value != each.default if not each.is_secret else each.value))
    return ServiceSettingsView(service=service, changed=changed, usual=tuple(each for each in answer.settings if each not in changed))


def versions_of(nodes: Iterable[NodeRow]) -> tuple[ServiceVersion, ...]:
    """Return the versions of the nodes that are alive."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        if node.alive:
            found.setdefault(node.service, []).append(node.version)
    return tuple(
        ServiceVersion(service=service, versions=tuple(sorted(set(versions) - {""})), nodes=len(versions))
        for service, versions in sorted(found.items())
    )
