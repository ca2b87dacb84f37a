"""What the gateway serves over HTTP and RPC, and its features."""

from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from services.gateway import background_jobs
from services.gateway.background_jobs import Partitions, UpkeepJob
from services.gateway.configuration import ended_keys
from services.gateway.features import Features, Site
from services.gateway.http_api import line_app
from services.gateway.http_api.body_load import BodyTurns
from services.gateway.http_api.cors import CorsPolicy
from services.gateway.http_api.http_app import HttpAccess, HttpApp, HttpRoute
from services.gateway.http_api.http_over_rpc import HttpOverRpc
from services.gateway.http_api.openapi import Reference
from services.gateway.http_api.rest_accounts import RestAccounts
from services.gateway.http_api.rest_billing import RestBilling
from services.gateway.http_api.rest_inference import RestInference
from services.gateway.http_api.rest_models import RestModels
from services.gateway.http_api.rest_usage import RestUsage
from services.gateway.http_api.rest_versions import RestVersions
from services.gateway.http_api.rpc_routes import RpcRoutes
from services.gateway.job_rules import JobRules
from services.gateway.openai_api.background_responses import Background
from services.gateway.openai_api.infill_route import InfillRoute
from services.gateway.openai_api.openai_embeddings import OpenAiEmbeddings
from services.gateway.openai_api.openai_moderations import OpenAiModerations
from services.gateway.openai_api.openai_routes import OpenAiRoutes
from services.gateway.openai_api.rerank_route import RerankRoute
from services.gateway.openai_api.token_routes import TokenRoutes
from services.gateway.rpc_api.config_rpc import ConfigRpc
from services.gateway.rpc_api.deferred_rpc import DeferredRpc
from services.gateway.rpc_api.policy_rpc import PolicyRpc
from services.gateway.rpc_api.rollouts_rpc import RolloutsRpc
from services.gateway.rpc_api.routes_rpc import RoutesRpc
from services.gateway.servers import Servers
from services.gateway.settings import GatewaySettings, GatewaySettingsRpc
from services.gateway.wiring.admission import Admission
from services.gateway.wiring.answering import Answers
from services.gateway.wiring.model_parts import ModelParts
from services.gateway.wiring.scheduling import Scheduling
from services.gateway.wiring.selling import Selling
from services.gateway.wiring.stores import Stores
from shared import features
from shared.node import Node
from shared.types import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All that is connected before the edge."""

    settings: GatewaySettings
    node: Node
    stores: Stores
    scheduling: Scheduling
    admission: Admission
    answers: Answers
    selling: Selling
    models: ModelParts


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    features: Features
    http: HttpApp
    served: tuple[object, ...]

    def tasks(self, parts: Parts) -> Iterator[Coroutine[Any, Any, Any]]:
        stores, metrics, repeat = parts.stores, parts.node.metrics, background_jobs.repeat
        partitions = Partitions(stores.database, metrics)

        async def delete_old() -> None:
            await partitions.drop_old(parts.settings.request_log_days)
            await parts.selling.reports.delete_old()
            await self.features.delete_old()

        remove_policies = partial(ended_keys.remove_policies, stores.config, parts.scheduling.live, parts.node.rpc)
        yield repeat(UpkeepJob.PARTITIONS, 600, partitions.extend, metrics)
        yield repeat(UpkeepJob.RETENTION, 3600, delete_old, metrics)
        yield repeat(UpkeepJob.KEY_POLICIES, ended_keys.SECONDS, remove_policies, metrics)
        yield repeat(UpkeepJob.ITEMS, 15, stores.items.measure, metrics)
        yield from self.features.tasks()


def build(parts: Parts) -> Edge:
    settings, node, stores, admission, turns, built = parts.settings, parts.node, parts.stores, parts.admission, BodyTurns(), Features()
    owners = JobRules(admission.search, admission.callers.identify_owner, parts.scheduling.models.of)
    images, memory, traces = parts.answers.images, node.dispatcher.memory, node.traces
    built.build(
        Site(
            settings=settings, node=node, database=stores.database, items=stores.items, audit_reporting=admission.audit_reporting,
            now=admission.ledger.database_clock.now, runs=parts.answers.runs, catalogue=parts.scheduling.models.of,
            right_calls=parts.scheduling.models.right_calls,
            meters=None if stores.provider is None else stores.provider.meters,
            requests=stores.requests, owners=owners, take_turn=turns.turn,
            on_tenant_event=built.on_tenant_event,
            serve_lines=lambda paths: line_app.build(
                routes, paths, node.metrics, memory=memory, images=images, traces=traces, turns=turns
            ),
        )
    )  # fmt: skip
    routes = (*_routes(parts, built.background), *built.routes)
    http = _http(parts, routes, turns)
    return Edge(
        features=built,
        http=http,
        served=(HttpOverRpc(http), *_served(parts), *built.served),
    )


def _routes(parts: Parts, background: Background) -> Iterator[HttpRoute]:
    """List the routes of the API's reference."""
    node, runs, stored, selling, models = parts.node, parts.answers.runs, parts.answers.stored, parts.selling, parts.models
    for part in (
        RestAccounts(node.rpc),
        RestInference(runs),
        RestUsage(parts.stores.requests, selling.reports, parts.admission.quotas, selling.accounts),
        RestBilling(selling.billing_rpc, selling.accounts, node.id),
        RestModels(models.search, parts.scheduling.models.listed, node.id),
        RestVersions(models.registry, models.trust, node.id),
        OpenAiRoutes(runs, parts.scheduling.models.of, stored, background),
        OpenAiEmbeddings(runs),
        OpenAiModerations(runs),
        TokenRoutes(runs, stored),
        RerankRoute(runs),
        InfillRoute(runs),
    ):
        yield from part.routes()


def _http(parts: Parts, routes: tuple[HttpRoute, ...], turns: BodyTurns) -> HttpApp:
    node, admission = parts.node, parts.admission
    rpc_routes = RpcRoutes(node.rpc, node.dispatcher.find, node.id, parts.stores.recovery.log.finish).routes()
    all_routes = (*routes, *rpc_routes, *Reference(routes).routes(), *parts.selling.webhooks.routes())
    access = HttpAccess(
        identify=admission.callers.identify,
        identify_person=admission.callers.identify_person,
        quotas=admission.quotas,
        refused=admission.refused,
        on_refusal=admission.audit_reporting.report_refusal,
        cors=CorsPolicy(parts.settings.cors_origins),
        # The features that only other gateways have.
        list_lacking=lambda: node.directory.features_of(Role.GATEWAY).keys() - features.known().keys(),
    )
    return HttpApp(
        all_routes, access, node.metrics, memory=node.dispatcher.memory, images=parts.answers.images, traces=node.traces, turns=turns
    )


def _served(parts: Parts) -> tuple[object, ...]:
    """List the RPC methods' objects."""
    settings, node, stores, admission, live = parts.settings, parts.node, parts.stores, parts.admission, parts.scheduling.live
    rpc, audit_reporting = node.rpc, admission.audit_reporting
    servers = Servers(live, rpc, node.trust, settings.prompt_hash_secret)
    config = ConfigRpc(
        live,
        stores.config,
        settings,
        rpc,
        audit_reporting,
        servers,
        served=parts.scheduling.models.served,
        gateways=lambda: node.directory.entries(Role.GATEWAY),
    )
    return (
        stores.recovery,
        *parts.selling.served,
        *parts.models.served,
        parts.answers.stored,
        GatewaySettingsRpc(settings, lambda: {name: offer.terms for name, offer in live.config.offers.items()}),
        servers,
        config,
        PolicyRpc(live, rpc, audit_reporting, admission.quotas),
        RoutesRpc(live, node.directory, stores.requests.read_spending, admission.ledger.price_of),
        DeferredRpc(stores.deferred, audit_reporting),
        RolloutsRpc(live, stores.config, stores.rollouts, rpc, audit_reporting),
    )
