"""Executes administrators' orders to load and unload models on workers."""

import asyncio
from dataclasses import dataclass
from typing import TypeVar

from services.gateway.config_snapshot import ConfigSource
from services.gateway.scheduling import routing
from shared import errors
from shared.api import gateway, inference
from shared.api.gateway import LoadOnWorker, ModelPlace, ModelPlaces, UnloadOnWorkers
from shared.api.inference import ModelStatus
from shared.api.method import Method
from shared.protocol import directory
from shared.protocol.directory import Directory, DirectoryEntry
from shared.rpc import RpcCall, RpcClient, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.telemetry import logs
from shared.types import ModelName, NodeId, Role

#: Workers to try before the last one's error is returned.
ATTEMPTS = 3
#: Another worker may have memory, or be reachable.
_RETRYABLE = (errors.PeerError, errors.UnknownModel, errors.UnknownMethod)

Order = TypeVar("Order", inference.LoadModel, inference.UnloadModel)

_log = logs.get(part="model orders")


@dataclass(frozen=True, slots=True)
class ModelOrders:
    rpc: RpcClient
    nodes: Directory
    source: ConfigSource
    audit_reporting: AuditReporting

    @serves(gateway.load_model)
    async def load(self, request: LoadOnWorker, call: RpcCall) -> ModelPlaces:
        """Load the model on one worker. Raises UnknownModel, or the last worker's error."""
        place = await self._load_on_one(request, call.remaining_seconds())
        self.audit_reporting.report_action("model.load", call.principal, target=request.model, worker=str(request.worker or ""))
        return ModelPlaces((place,))

    @serves(gateway.unload_model)
    async def unload(self, request: UnloadOnWorkers, call: RpcCall) -> ModelPlaces:
        """Unload the model; return each worker's state. Raises UnknownModel, or the error of the only worker."""
        places = await self._unload_everywhere(request, call.remaining_seconds())
        self.audit_reporting.report_action("model.unload", call.principal, target=request.model, worker=str(request.worker or ""))
        return ModelPlaces(places)

    async def _load_on_one(self, request: LoadOnWorker, seconds: float) -> ModelPlace:
        model, workers = self._find(request.model, request.worker)
        workers.sort(key=directory.expected_wait)
        order = inference.LoadModel(model, request.pin)
        *others, last = workers[:ATTEMPTS]
        for worker in others:
            try:
                return await self._send(inference.load_model, worker, order, seconds)
            except _RETRYABLE as error:
                _log.info("worker did not load a model", worker=worker.node, model=model, code=errors.code_of(error))
        return await self._send(inference.load_model, last, order, seconds)

    async def _unload_everywhere(self, request: UnloadOnWorkers, seconds: float) -> tuple[ModelPlace, ...]:
        model, workers = self._find(request.model, request.worker)
        order = inference.UnloadModel(model)
        if len(workers) == 1:
            return (await self._send(inference.unload_model, workers[0], order, seconds),)
        async with asyncio.TaskGroup() as tasks:
            unloads = [tasks.create_task(self._try_unload(worker, order, seconds)) for worker in workers]
        return tuple(task.result() for task in unloads)

    async def _send(self, method: Method[Order, ModelStatus], worker: DirectoryEntry, order: Order, seconds: float) -> ModelPlace:
        status = await self.rpc.call(method, order, to=worker.node, deadline_seconds=seconds)
        return ModelPlace(worker.node, status.model_id, status.state.value, status.detail, status.pinned, status.memory_bytes)

    async def _try_unload(self, worker: DirectoryEntry, order: inference.UnloadModel, seconds: float) -> ModelPlace:
        """Return an error as a state, so that it doesn't stop the other workers."""
        try:
            return await self._send(inference.unload_model, worker, order, seconds)
        except errors.AimeshError as error:
            return ModelPlace(worker.node, order.model_id, "", error.message)

    def _find(self, requested: ModelName, id_prefix: NodeId | None) -> tuple[ModelName, list[DirectoryEntry]]:
        """Find the model by name or alias, and its workers in any state, to retry failed ones. Raises UnknownModel or NotFound."""
        alive = [entry for entry in self.nodes.entries(Role.WORKER) if entry.alive and not entry.announcement.draining]
        model = requested
        if not any(routing.has_model(entry, model) for entry in alive):
            model = self.source.config.names.resolve(requested)
        holders = [entry for entry in alive if routing.has_model(entry, model)]
        if not holders:
            raise errors.UnknownModel(f"no worker has the model {requested[:80]!r}", hint="see `aicli models` and `aicli nodes`")
        if id_prefix is None:
            return model, holders
        matching = [entry for entry in holders if entry.node.startswith(id_prefix)]
        if len(matching) != 1:
            many = "several workers have" if matching else "no worker with the model has"
            raise errors.NotFound(f"{many} an id that starts with {id_prefix[:60]!r}", hint="see `aicli nodes` for the ids")
        return model, matching
