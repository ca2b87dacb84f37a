"""Executes administrators' orders to pull models into the stores of workers, and owners' orders to remove them and to let none in."""

from collections.abc import Mapping

from shared import access_table, errors, model_sources
from shared.api import gateway, inference
from shared.api.gateway import PulledPlace, PulledPlaces, PullOnWorkers, WorkerPull
from shared.api.method import Nothing
from shared.node import lifecycle
from shared.protocol.directory import Directory, DirectoryEntry
from shared.rpc import RpcCall, RpcClient, StreamCall, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.types import NodeId, Permission, Role

#: Workers of one order.
MAX_WORKERS = 64


class PullOrders:
    def __init__(self, rpc: RpcClient, nodes: Directory, audit_reporting: AuditReporting) -> None:
        self._rpc = rpc
        self._nodes = nodes
        self._audit_reporting = audit_reporting

    @serves(gateway.pull_model)
    async def pull(self, request: PullOnWorkers, stream: StreamCall[WorkerPull]) -> PulledPlaces:
        """Pull the model on each worker. Raises NotFound without one, and the error of the only worker."""
        workers = self._find(request.worker, request.labels)
        target = model_sources.redact(request.source)
        self._audit_reporting.report_action(
            "model.pull", stream.principal, target=target, workers=", ".join(worker.node for worker in workers)
        )
        if len(workers) == 1:
            return PulledPlaces((await self._pull(workers[0].node, request, stream),))
        async with lifecycle.background() as tasks:
            pulls = [tasks.create_task(self._try_pull(worker.node, request, stream)) for worker in workers]
            return PulledPlaces(tuple([await pull for pull in pulls]))

    @serves(gateway.set_model_consent)
    async def set_consent(self, request: gateway.ConsentOnWorker, call: RpcCall) -> gateway.Consented:
        """Raises NotFound, and the worker's error."""
        worker, is_administrator = self._find_own(request.worker, call)
        order = inference.SetModelConsent(call.principal.user_id, request.accepts_models, is_administrator)
        await self._rpc.call(inference.set_model_consent, order, to=worker.node, deadline_seconds=call.remaining_seconds())
        self._audit_reporting.report_action(
            "node.accept_models", call.principal, target=worker.node, accepts=str(request.accepts_models).lower()
        )
        return gateway.Consented(worker.node, request.accepts_models)

    @serves(gateway.remove_model)
    async def remove_model(self, request: gateway.RemoveFromWorker, call: RpcCall) -> Nothing:
        """Raises NotFound, and the worker's error."""
        worker, is_administrator = self._find_own(request.worker, call)
        order = inference.RemoveModel(request.model, call.principal.user_id, is_administrator)
        await self._rpc.call(inference.remove_model, order, to=worker.node, deadline_seconds=call.remaining_seconds())
        self._audit_reporting.report_action("node.remove_model", call.principal, target=worker.node, model=request.model)
        return Nothing()

    def _find_own(self, id_prefix: NodeId, call: RpcCall) -> tuple[DirectoryEntry, bool]:
        """Return the worker, and whether the caller is an administrator. The worker checks its certificate, too. Raises NotFound."""
        (worker,) = self._find(id_prefix, {})
        is_administrator = access_table.may(call.principal, Permission.EVERYTHING)
        if not is_administrator and worker.announcement.owner != str(call.principal.user_id):
            raise errors.NotFound("no worker matches", hint="see `aicli admin nodes list` for yours")
        return worker, is_administrator

    async def _pull(self, worker: NodeId, request: PullOnWorkers, stream: StreamCall[WorkerPull]) -> PulledPlace:
        order = inference.PullModel(request.source, request.name, request.insecure)
        async with self._rpc.stream(inference.pull_model, order, to=worker, deadline_seconds=stream.remaining_seconds()) as answer:
            async for progress in answer:
                await stream.send(WorkerPull(worker, progress))
            return PulledPlace(worker, answer.end)

    async def _try_pull(self, worker: NodeId, request: PullOnWorkers, stream: StreamCall[WorkerPull]) -> PulledPlace:
        """Return an error as a detail, so that it doesn't stop the other workers."""
        try:
            return await self._pull(worker, request, stream)
        except errors.AimeshError as error:
            return PulledPlace(worker, detail=error.message)

    def _find(self, id_prefix: NodeId | None, labels: Mapping[str, str]) -> list[DirectoryEntry]:
        if id_prefix is None and not labels:
            raise errors.BadRequest("the order names no worker", hint="use --node or --label")
        alive = [entry for entry in self._nodes.entries(Role.WORKER) if entry.alive and not entry.announcement.draining]
        prefix = id_prefix or ""
        found = [entry for entry in alive if entry.node.startswith(prefix) and labels.items() <= entry.announcement.labels.items()]
        if not found or (id_prefix is not None and len(found) > 1):
            raise errors.NotFound(
                f"{'several workers match' if found else 'no worker matches'}", hint="see `aicli nodes` for ids and labels"
            )
        if len(found) > MAX_WORKERS:
            raise errors.BadRequest(f"{len(found)} workers match; at most {MAX_WORKERS} can pull at once", hint="add another --label")
        return found
