"""What this mesh runs with, as far as its services tell. Settings are the environment of each service: they are read here, not changed."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from litestar import get
from litestar.di import NamedDependency

from services.web.visits import Page, Visit
from shared.api import accounts, auth, gateway
from shared.api.gateway import NodeRow

#: NIST SP 800-63B-4 §3.1.1.2, for passwords that are the only factor.
ADVISED_WITHOUT_MFA = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceVersion:
    service: str
    #: More than one while an upgrade goes on.
    versions: tuple[str, ...]
    nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsPage:
    #: None where auth did not answer.
    options: accounts.SignInOptions | None
    advised_length: int
    #: The ids of the keys that sign logins; None where auth did not answer.
    signing_keys: tuple[str, ...] | None
    #: None where the gateway did not answer; so too below.
    versions: tuple[ServiceVersion, ...] | None
    default_model: str | None
    address: str
    is_address_set: bool
    is_over_tls: bool


@get("/admin/settings")
async def show_settings(visit: NamedDependency[Visit]) -> Page:
    options, keys, nodes, models = await asyncio.gather(
        visit.ask(accounts.get_sign_in_options, accounts.GetSignInOptions()),
        visit.ask(auth.get_signing_keys, auth.GetSigningKeys()),
        visit.ask(gateway.list_nodes, gateway.ListNodes()),
        visit.ask(gateway.list_models, gateway.ListModels()),
    )
    view = SettingsPage(
        options=options,
        advised_length=ADVISED_WITHOUT_MFA,
        signing_keys=tuple(key.kid for key in keys.keys) if keys else None,
        versions=versions_of(nodes.nodes) if nodes else None,
        default_model=models.models[0].name if models and models.models else None,
        address=visit.address,
        is_address_set=bool(visit.site.settings.public_url),
        is_over_tls=visit.secure,
    )
    return visit.page("admin/settings.html", view, here="admin")


def versions_of(nodes: Iterable[NodeRow]) -> tuple[ServiceVersion, ...]:
    """Of those that are there now."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        if node.alive:
            found.setdefault(node.service, []).append(node.version)
    return tuple(
        ServiceVersion(service=service, versions=tuple(sorted(set(versions) - {""})), nodes=len(versions))
        for service, versions in sorted(found.items())
    )


ROUTES = (show_settings,)
