"""Orders of administrators about models: have a worker load one, have workers give its memory back."""

import asyncio
from collections.abc import Mapping

from services.gateway import node_interface
from shared import errors
from shared.api import inference
from shared.api.gateway import LoadOnWorker, ModelPlace, ModelPlaces, UnloadOnWorkers
from shared.api.inference import ModelStatus
from shared.discovery import directory
from shared.discovery.directory import DirectoryEntry
from shared.telemetry import logs
from shared.types import ModelName, NodeId, Role

#: Workers that are asked to load a model before the last one's reason is the answer.
ATTEMPTS = 3
#: What is not the model's fault: another worker may have room, or be there.
_WORTH_ANOTHER = (errors.PeerError, errors.UnknownModel, errors.UnknownMethod)

_log = logs.get(part="model orders")


class ModelOrders:
    def __init__(self, rpc: node_interface.NodeRpc, nodes: node_interface.NodeDirectory, aliases: Mapping[str, str]) -> None:
        self._rpc = rpc
        self._nodes = nodes
        self._aliases = aliases

    async def load(self, request: LoadOnWorker, seconds: float) -> ModelPlaces:
        """Returns when one worker has it in memory; raises UnknownModel, or what the last worker said."""
        model, workers = self._find(request.model, request.worker)
        workers.sort(key=directory.expected_wait)
        order = inference.LoadModel(model, request.pin)
        *others, last = workers[:ATTEMPTS]
        for worker in others:
            try:
                return ModelPlaces((await self._load(worker, order, seconds),))
            except _WORTH_ANOTHER as error:
                _log.info("worker did not load a model", worker=worker.node, model=model, code=errors.code_of(error))
        return ModelPlaces((await self._load(last, order, seconds),))

    async def unload(self, request: UnloadOnWorkers, seconds: float) -> ModelPlaces:
        """Returns what each worker said; raises UnknownModel, and the reason where there is only one worker."""
        model, workers = self._find(request.model, request.worker)
        order = inference.UnloadModel(model)
        if len(workers) == 1:
            return ModelPlaces((await self._unload(workers[0], order, seconds),))
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._told(worker, order, seconds)) for worker in workers]
        return ModelPlaces(tuple(task.result() for task in asked))

    async def _load(self, worker: DirectoryEntry, order: inference.LoadModel, seconds: float) -> ModelPlace:
        status = await self._rpc.call(inference.load_model, order, to=worker.node, deadline_seconds=seconds)
        return _place(worker.node, status)

    async def _unload(self, worker: DirectoryEntry, order: inference.UnloadModel, seconds: float) -> ModelPlace:
        status = await self._rpc.call(inference.unload_model, order, to=worker.node, deadline_seconds=seconds)
        return _place(worker.node, status)

    async def _told(self, worker: DirectoryEntry, order: inference.UnloadModel, seconds: float) -> ModelPlace:
        """One worker that refuses keeps no other from obeying."""
        try:
            return await self._unload(worker, order, seconds)
        except errors.AimeshError as error:
            return ModelPlace(worker.node, order.model_id, "", error.message)

    def _find(self, asked: ModelName, beginning: NodeId | None) -> tuple[ModelName, list[DirectoryEntry]]:
        """The model by its name or alias, and the workers that have it, in whatever state: one that failed is loaded by asking
        for it. Raises UnknownModel or NotFound."""
        alive = [entry for entry in self._nodes.entries(Role.WORKER) if entry.alive and not entry.announcement.draining]
        model = asked
        if not any(_has(entry, model) for entry in alive):
            model = ModelName(self._aliases.get(asked, asked))
        holders = [entry for entry in alive if _has(entry, model)]
        if not holders:
            raise errors.UnknownModel(f"no worker has the model {asked[:80]!r}", hint="`aicli models` and `aicli nodes` show what there is")
        if beginning is None:
            return model, holders
        meant = [entry for entry in holders if entry.node.startswith(beginning)]
        if len(meant) != 1:
            many = "several workers have" if meant else "no worker with the model has"
            raise errors.NotFound(f"{many} an id that begins with {beginning[:60]!r}", hint="`aicli nodes` shows the ids")
        return model, meant


def _has(worker: DirectoryEntry, model: ModelName) -> bool:
    return any(offer.name == model for offer in worker.announcement.models)


def _place(worker: NodeId, status: ModelStatus) -> ModelPlace:
    return ModelPlace(worker, status.model_id, status.state.value, status.detail, status.pinned, status.memory_bytes)
