"""The registry of pushed models, deployments, and what is known about models."""

from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.model_orders import ModelOrders
from services.gateway.models import catalog, registry
from services.gateway.models.deployment_store import DeploymentStore
from services.gateway.models.deployments import Deployments
from services.gateway.models.model_readers import ModelReaders
from services.gateway.models.name_uses import NameUses
from services.gateway.models.registry import ModelRegistry
from services.gateway.models.registry_store import RegistryStore
from services.gateway.models.used_everywhere import UsedEverywhere
from services.gateway.pull_orders import PullOrders
from services.gateway.rpc_api.deployment_rpc import DeploymentRpc
from services.gateway.rpc_api.model_peers_rpc import ModelPeersRpc
from services.gateway.rpc_api.model_search_rpc import ModelSearch
from services.gateway.rpc_api.model_trust_rpc import ModelTrustRpc
from services.gateway.settings import GatewaySettings
from services.gateway.wiring.admission import Admission
from services.gateway.wiring.scheduling import Scheduling
from services.gateway.wiring.stores import Stores
from shared.api.inference import ModelFacts
from shared.api.model_copies import VERSION_SOURCE
from shared.background.tasks import keep
from shared.config_documents import ConfigKind, DeploymentDocument
from shared.node import Node
from shared.types import ModelName


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    registry: ModelRegistry
    search: ModelSearch
    trust: ModelTrustRpc
    deployments: Deployments
    served: tuple[object, ...]

    def tasks(self, stores: Stores) -> Iterator[Coroutine[Any, Any, Any]]:
        yield keep("deployments", self.deployments.run)
        yield from (keep("models", self.registry.run) for _ in range(registry.JOBS if stores.origin else 0))


def build(settings: GatewaySettings, node: Node, stores: Stores, scheduling: Scheduling, admission: Admission) -> ModelParts:
    live, rpc, directory, audit_reporting = scheduling.live, node.rpc, node.directory, admission.audit_reporting
    rows = RegistryStore(stores.database)
    search = ModelSearch(live, rpc, directory, stores.hub, scheduling.models.of, audit_reporting, catalog.load())

    async def find_facts(source: str) -> ModelFacts | None:
        if source.startswith(VERSION_SOURCE):
            return await models.find_facts(source.removeprefix(VERSION_SOURCE))
        return search.find_facts(source)

    deployments = Deployments(
        directory,
        rpc,
        DeploymentStore(stores.database, stores.cache),
        read_documents=lambda: live.bodies_of(DeploymentDocument),
        read_versions=lambda: live.config.models,
        changed=live.changed,
        find_facts=find_facts,
        serve_next=rows.serve_next,
        items=stores.items,
        metrics=node.metrics,
    )

    async def is_deployed(channel: str) -> bool:
        """Perhaps since just now."""
        await live.reload()
        return deployments.is_deployed(channel)

    models = ModelRegistry(
        rows,
        stores.origin,
        directory,
        ModelReaders(rows, rpc),
        audit_reporting,
        items=stores.items,
        gibibytes=settings.model_origin_quota,
        is_deployed=is_deployed,
        find_use=NameUses(live, directory, lambda: frozenset(deployments.documents), live.reload).find,
        wait_until_used=UsedEverywhere(live, directory),
    )
    trust = ModelTrustRpc(live, rows, models, audit_reporting)
    served = (
        ModelOrders(rpc, directory, live, audit_reporting),
        PullOrders(rpc, directory, audit_reporting),
        DeploymentRpc(live, deployments, search.find_source, audit_reporting),
        search,
        models,
        trust,
        ModelPeersRpc(node, models.readers, partial(_source_of, live), models.find_size),
    )
    return ModelParts(registry=models, search=search, trust=trust, deployments=deployments, served=served)


def _source_of(live: LiveConfiguration, model: ModelName) -> str | None:
    """Return the source of a deployed model."""
    stored = live.documents.get((ConfigKind.DEPLOYMENT, model))
    return document.source if stored is not None and isinstance(document := stored.usable, DeploymentDocument) else None
