"""Assembles the gateway, and serves its RPC methods."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from services.gateway import node_rows
from services.gateway.facts.bad_field import BadField
from services.gateway.features import reads_outbox
from services.gateway.idempotency import cache_keys
from services.gateway.limits import limit_rules
from services.gateway.openai_api import rerank_route
from services.gateway.requests.repeated_request import RepeatedRequest
from services.gateway.rpc_api.account_notices import AccountNotices
from services.gateway.rpc_api.rpc_reader import RpcReader, ScoreReader, VectorReader
from services.gateway.settings import GatewaySettings
from services.gateway.wiring import admission, answering, edge, model_parts, scheduling, selling, stores
from services.gateway.wiring.edge import Edge, Parts
from shared import access_table, client_address, context, errors, features, plan_names, worker_pools
from shared.api import auth, embedding, gateway
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.api.usage_report import UserUsage
from shared.node import Node
from shared.protocol import replica_check
from shared.rpc import RpcCall, StreamCall, serves
from shared.types import Credential, Permission, Role, UserId


class GatewayService:
    """The gateway; create it with ``open``. The dispatcher calls the methods marked with ``serves``."""

    role: ClassVar[Role] = Role.GATEWAY

    def __init__(self, parts: Parts, at_edge: Edge) -> None:
        self.parts, self._edge = parts, at_edge
        self._node, self._runs = parts.node, parts.answers.runs
        self._scheduling, self._admission = parts.scheduling, parts.admission

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: GatewaySettings, node: Node) -> AsyncIterator["GatewayService"]:
        async with (
            stores.opened(settings, node, exports_usage=reads_outbox(settings)) as stored,
            scheduling.opened(settings, node, stored) as scheduled,
            admission.opened(settings, node, stored, scheduled) as admitting,
            answering.opened(settings, node, stored, scheduled, admitting) as answers,
        ):
            parts = Parts(
                settings=settings,
                node=node,
                stores=stored,
                scheduling=scheduled,
                admission=admitting,
                answers=answers,
                selling=selling.build(settings, node, stored, scheduled, admitting),
                models=model_parts.build(settings, node, stored, scheduled, admitting),
            )
            service = cls(parts, edge.build(parts))
            # The service's own methods are served by the node.
            for part in service._edge.served:
                node.dispatcher.add(part)
            service._start_tasks()
            yield service
            answers.guard_reporting.flush()
            await admitting.audit_reporting.send()

    def _start_tasks(self) -> None:
        parts, node = self.parts, self._node
        for task in (
            *parts.scheduling.tasks(node, parts.stores),
            *parts.admission.tasks(),
            *parts.answers.tasks(),
            *parts.selling.tasks(parts.settings, node.metrics, parts.stores),
            *parts.models.tasks(parts.stores),
            *self._edge.tasks(parts),
        ):
            node.tasks.create_task(task)

    async def checks(self) -> tuple[Check, ...]:
        auth_is_available = bool(self._node.directory.usable(Role.AUTH))
        detail = "" if auth_is_available else "no auth service on the mesh; start it with `aicli stack restart auth`"
        async with asyncio.TaskGroup() as tasks:
            stored = self.parts.stores
            database, cache = tasks.create_task(stored.requests.checks()), tasks.create_task(stored.cache.check())
            of_features = tasks.create_task(self._edge.features.checks())
        auth_check = Check("auth", auth_is_available, detail)
        recorder = await self._admission.recorder.check()
        return (*database.result(), cache.result(), auth_check, recorder, *of_features.result(), *self._check_features())

    def _check_features(self) -> Iterator[Check]:
        others = [entry.announcement for role in replica_check.COMPARED_WITH for entry in self._node.directory.reachable(role)]
        if different := replica_check.describe_features(features.known(), others):
            yield Check("features", ok=False, detail=different, needed=False)

    def asgi(self) -> client_address.ClientAddress:
        return client_address.ClientAddress(self._edge.http, self.parts.settings.web_hop_secret)

    # --- inference ----------------------------------------------------------------------------------------------------

    @serves(gateway.process_inference_request)
    async def process_inference_request(
        self, request: gateway.ProcessInferenceRequest, stream: StreamCall[gateway.InferenceChunk]
    ) -> gateway.InferenceResult:
        async with self._counting_refusals(stream):
            return await self._infer(request, stream)

    async def _infer(self, request: gateway.ProcessInferenceRequest, stream: StreamCall[gateway.InferenceChunk]) -> gateway.InferenceResult:
        seconds = self._begin(stream, flex=request.request.flex)
        if stream.is_whole and request.rest is not None:
            raise BadField("rest", "requires a stream; omit it to get the whole answer")
        repeat = RepeatedRequest(key=request.idempotency_key, rest=request.rest)
        cache = cache_keys.CacheRequest.OFF if request.fresh else cache_keys.CacheRequest.NOTHING
        # The rest of a call needs its earlier parts.
        whole = stream.is_whole or bool(request.request.tools)
        asked = await self._runs.admit_images(request.request)
        after, wants_parts = 0 if request.rest is None else request.rest.after, request.call_parts and not stream.is_whole
        return await self._runs.answer(
            stream.principal,
            asked,
            RpcReader(stream, after=after, wants_parts=wants_parts),
            seconds=seconds,
            repeat=repeat,
            cache=cache,
            whole=whole,
            streamed=not stream.is_whole,
        )

    @serves(gateway.cancel_inference)
    async def cancel_inference(self, request: gateway.CancelInference, call: RpcCall) -> Nothing:
        await self._runs.cancel(call.principal, request.idempotency_key)
        return Nothing()

    @serves(embedding.request_embeddings)
    async def embed(self, request: embedding.RequestEmbeddings, stream: StreamCall[embedding.Vectors]) -> embedding.EmbeddingResult:
        seconds, key = self._begin(stream, flex=request.request.flex), request.idempotency_key
        async with self._counting_refusals(stream):
            return await self._runs.embed(stream.principal, request.request, VectorReader(stream), seconds=seconds, key=key)

    @serves(embedding.request_ranking)
    async def rank(self, request: embedding.RequestRanking, stream: StreamCall[embedding.RankingNotice]) -> embedding.Ranking:
        reader, seconds = ScoreReader(stream), self._begin(stream)
        async with self._counting_refusals(stream):
            result = await self._runs.rank(stream.principal, request.request, reader, seconds=seconds)
        return rerank_route.rank(result, reader.scores, request.request.top_n)

    @asynccontextmanager
    async def _counting_refusals(self, call: RpcCall) -> AsyncIterator[None]:
        """Count the request if it is refused before the limits have counted it, as ``HttpApp`` does."""
        try:
            yield
        except errors.AimeshError as error:
            await self._admission.quotas.count_refused(call.principal, error)
            raise

    def _begin(self, call: RpcCall, *, flex: bool | None = None) -> float:
        """Give a request its id, and return how long it may take."""
        # It is the key of the request's row, so other services must not choose it. A client's is new.
        if call.caller_role is not Role.CLIENT:
            context.another()
        return min(self._runs.longest(flex=flex), call.remaining_seconds())

    # --- models and nodes ---------------------------------------------------------------------------------------------

    @serves(gateway.get_service_health)
    async def get_service_health(self, _request: gateway.GetServiceHealth, _call: RpcCall) -> gateway.ServiceHealth:
        checks = await self.checks()
        workers = self._node.directory.usable(Role.WORKER)
        healthy = all(check.ok for check in checks) and bool(workers)
        models, in_flight = self._scheduling.models.served(), self._scheduling.dispatch.in_flight
        return gateway.ServiceHealth("healthy" if healthy else "degraded", checks, len(workers), models, in_flight)

    @serves(gateway.list_models)
    async def list_models(self, _request: gateway.ListModels, call: RpcCall) -> gateway.ServedModels:
        caller = None if call.credential is None else await self._admission.callers.identify(call.credential)
        return self._scheduling.models.listed(caller)

    @serves(gateway.list_nodes)
    async def list_nodes(self, _request: gateway.ListNodes, call: RpcCall) -> gateway.NodeRows:
        return gateway.NodeRows(node_rows.of_mesh(self._node, self._scheduling.dispatch))

    @serves(gateway.give_up_pool)
    async def give_up_pool(self, request: gateway.GiveUpPool, call: RpcCall) -> Nothing:
        """Refuse what waits for a machine that won't come. Only metrics, which orders machines, may call this."""
        pool = worker_pools.find(self._scheduling.pools.pools, request.pool)
        self._scheduling.dispatch.give_up(pool.name, request.reason, request.seconds)
        return Nothing()

    @serves(gateway.pardon_node)
    async def pardon_node(self, request: gateway.PardonNode, call: RpcCall) -> gateway.PardonedNode:
        node = await self._scheduling.quarantine.pardon(request.node)
        self._admission.audit_reporting.report_action("node.pardon", call.principal, target=node)
        return gateway.PardonedNode(node)

    # --- quota and usage ----------------------------------------------------------------------------------------------

    @serves(gateway.get_user_quota)
    async def get_user_quota(self, request: gateway.GetUserQuota, call: RpcCall) -> gateway.UserQuota:
        principal = call.principal
        if request.user_id is not None and request.user_id != principal.user_id:
            if not access_table.may(principal, Permission.EVERYTHING):
                raise errors.NotAllowed("only an administrator can read another user's quota", hint="omit userId to read your own")
            principal = await self._read_principal(request.user_id, call.credential)
        models, accounts = self._scheduling.models, self.parts.selling.accounts
        found, reached = await self._admission.quotas.look(principal, lambda model: models.may_name(principal, model))
        hour, account = limit_rules.hourly(found), await accounts.account_of(principal)
        notices = AccountNotices(self._admission.ledger, self.parts.selling.billing_rpc.store, models.served)
        return gateway.UserQuota(
            user_id=principal.user_id,
            tier=plan_names.name_of(principal.tier),
            limit_per_hour=hour.limit,
            used_this_hour=hour.used,
            remaining=hour.remaining,
            resets_at=datetime.now(UTC) + timedelta(seconds=hour.resets_in_seconds),
            limits=found,
            account=account,
            key_budget=await accounts.find_key_budget(principal),
            notices=await notices.find(principal, account, reached),
        )

    @serves(gateway.erase_stored)
    async def erase_stored(self, request: gateway.EraseStored, _call: RpcCall) -> Nothing:
        """Only auth may call this, for a tenant that it erases."""
        await self._edge.features.erase(request.tenant_id, request.feature)
        return Nothing()

    @serves(gateway.read_usage)
    async def read_usage(self, request: gateway.ReadUsage, _call: RpcCall) -> UserUsage:
        """Return a tenant's usage. Only auth may call this; it has checked access."""
        return await self.parts.stores.requests.read_usage(request.tenant_id)

    async def _read_principal(self, user_id: UserId, credential: Credential | None) -> auth.Principal:
        user = await self._node.rpc.call(auth.get_user, auth.GetUser(user_id), credential=credential)
        return auth.Principal(user.id, user.username, user.role, user.tier)
