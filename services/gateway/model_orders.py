"""Executes administrators' orders to load and unload models on workers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.gateway.facts.config_snapshot import ConfigSource
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
        """Load the model on one worker, or for a purpose on all. Raises UnknownModel, or the last worker's error."""
        places = await self._load(request, call.remaining_seconds())
        purpose = str(request.purpose or "")
        self.audit_reporting.report_action(
            "model.load", call.principal, target=request.model, worker=str(request.worker or ""), purpose=purpose
        )
        return ModelPlaces(places)

    @serves(gateway.unload_model)
    async def unload(self, request: UnloadOnWorkers, call: RpcCall) -> ModelPlaces:
        """Unload the model; return each worker's state. Raises UnknownModel, or the error of the only worker."""
        model, workers = self._find(request.model, request.worker)
        places = await self._send_to_all(inference.unload_model, workers, inference.UnloadModel(model), call.remaining_seconds())
        self.audit_reporting.report_action("model.unload", call.principal, target=request.model, worker=str(request.worker or ""))
        return ModelPlaces(places)

    async def _load(self, request: LoadOnWorker, seconds: float) -> tuple[ModelPlace, ...]:
        model, workers = self._find(request.model, request.worker)
        order = inference.LoadModel(model, request.pin, request.purpose)
        if request.purpose is not None:
            # Else requests would still go to workers where it is loaded for something else.
            return await self._send_to_all(inference.load_model, workers, order, seconds)
        workers.sort(key=directory.expected_wait)
        *others, last = workers[:ATTEMPTS]
        for worker in others:
            try:
                return (await self._send(inference.load_model, worker, order, seconds),)
            except _RETRYABLE as error:
                _log.info("worker did not load a model", worker=worker.node, model=model, code=errors.code_of(error))
        return (await self._send(inference.load_model, last, order, seconds),)

    async def _send_to_all(
        self, method: Method[Order, ModelStatus], workers: Sequence[DirectoryEntry], order: Order, seconds: float
    ) -> tuple[ModelPlace, ...]:
        if len(workers) == 1:
            return (await self._send(method, workers[0], order, seconds),)
        async with asyncio.TaskGroup() as tasks:
            sent = [tasks.create_task(self._try_to_send(method, worker, order, seconds)) for worker in workers]
        return tuple(task.result() for task in sent)

    async def _send(self, method: Method[Order, ModelStatus], worker: DirectoryEntry, order: Order, seconds: float) -> ModelPlace:
        status = await self.rpc.call(method, order, to=worker.node, deadline_seconds=seconds)
        numbers = status.pinned, status.memory_bytes, status.context_tokens
        return ModelPlace(worker.node, status.model_id, status.state.value, status.detail, *numbers)

    async def _try_to_send(self, method: Method[Order, ModelStatus], worker: DirectoryEntry, order: Order, seconds: float) -> ModelPlace:
        """Return an error as a state, so that it doesn't stop the other workers."""
        try:
            return await self._send(method, worker, order, seconds)
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
