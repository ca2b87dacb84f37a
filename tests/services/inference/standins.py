"""Fakes for tests of the worker: a reader of answers, a node, a toy model."""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pyhyperswarm.block_copies import BlockCopies

from services.inference import jobs
from services.inference.announcements import Announcements
from services.inference.backend_interface import Backend, WarningTopic
from services.inference.backends.llama import LlamaBackend
from services.inference.chat import prompt_plan
from services.inference.chat.chat_messages import RenderedPrompt
from services.inference.chat.model_chat import ModelChat
from services.inference.chat.prompt_plan import ReasoningDefaults
from services.inference.engine import engine_messages
from services.inference.engine.engine_messages import PreparedPrompt
from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared import telemetry
from shared.api import inference
from shared.api.gateway import Check
from shared.api.generation import ChatMessage, Sampling, ToolCall
from shared.api.inference import Chunk
from shared.identity import node_keys
from shared.identity.trust import Trust
from shared.node.certificate_renewal import CertificateRenewal
from shared.node.host_metrics import Host
from shared.node.membership_file import MembershipFile
from shared.protocol import directory
from shared.rpc import ConnectionPool, RpcClient
from shared.transports.swarm_transport import SwarmTransport
from shared.types import MeshName, ModelName, NodeId, Role
from tests import stopwatch

#: Ends an answer; no byte of any UTF-8 text.
END_TOKEN = 0xFF


def calls_of(chunks: Iterable[Chunk]) -> tuple[ToolCall, ...]:
    """Return the tool calls of one answer."""
    calls: dict[int, ToolCall] = {}
    for part in (part for chunk in chunks for part in chunk.call_parts):
        known = calls.get(part.index, ToolCall(part.id, part.name, ""))
        calls[part.index] = ToolCall(known.id, known.name, known.arguments + part.arguments)
    return tuple(calls.values())


class Reader:
    """A sink that keeps everything. Also a fake stream of a mesh call."""

    def __init__(self) -> None:
        self.accepted = False
        self.prompt_tokens: int | None = None
        self.chunks: list[Chunk] = []

    def accept(self, prompt_tokens: int | inference.PromptAccepted | None = None) -> None:
        """Take a number, as a sink, or a message, as a mesh call."""
        self.accepted = True
        self.prompt_tokens = prompt_tokens.prompt_tokens if isinstance(prompt_tokens, inference.PromptAccepted) else prompt_tokens

    async def send(self, item: Chunk) -> None:
        self.chunks.append(item)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def token_ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]


class Watch:
    """Counts what a backend reports."""

    def __init__(self) -> None:
        self.changes = 0
        self.restarts: list[str] = []
        self.parse_failures: list[str] = []
        self.warnings: dict[WarningTopic, str] = {}
        self.swaps: list[str] = []
        self.drafts: list[tuple[int, int]] = []
        self.preemptions = 0

    def changed(self) -> None:
        self.changes += 1

    load_changed = changed

    def restarting(self, model: ModelName) -> None:
        self.restarts.append(model)

    def warn(self, text: str, topic: WarningTopic) -> None:
        self.warnings[topic] = text

    def swapped(self, model: ModelName) -> None:
        self.swaps.append(model)

    def memory_found(self, free_bytes: int) -> None:
        pass

    def images_encoded(self, model: ModelName, seconds: float) -> None:
        """Not used by these tests."""

    def preempted(self, model: ModelName, answers: int) -> None:
        self.preemptions += answers

    def drafted(self, model: ModelName, tokens: int, accepted: int) -> None:
        self.drafts.append((tokens, accepted))

    def parse_failed(self, model: ModelName) -> None:
        self.parse_failures.append(model)


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll a condition in another process, which cannot signal it."""
    async with asyncio.timeout(stopwatch.patience(seconds)):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@dataclass
class Offer:
    models: tuple[directory.ModelOffer, ...]
    load: directory.WorkerLoad
    not_ready: str
    pulls: tuple[directory.ModelPull, ...] = ()
    warning: str = ""
    assigned: tuple[ModelName, ...] = ()
    refused: tuple[ModelName, ...] = ()
    notice: str = ""


class FakeTransports:
    """A node's transports: attached, or the reason why not."""

    def __init__(self) -> None:
        self.trouble = ""
        self.round_trips: dict[NodeId, float] = {}
        self.swarm: SwarmTransport | None = None

    def checks(self) -> tuple[Check, ...]:
        return (Check("Hyperswarm", not self.trouble, self.trouble),)

    def round_trip_seconds(self, node: NodeId) -> float | None:
        return self.round_trips.get(node)


class Node:
    """Records what the service offers. Tests that run the service set ``tasks``."""

    tasks: asyncio.TaskGroup

    def __init__(self, state_file: Path = Path("/nowhere/worker.mesh"), *, accept_models: bool | None = None) -> None:
        self.metrics = telemetry.Metrics("inference")
        self.host = Host(self.metrics, state_file.parent)
        self.offers: list[Offer] = []
        key = node_keys.NodeKey(node_keys.new_seed())
        self.id = key.id
        self.mesh = MeshName("home")
        self.directory = directory.Directory(lambda: 0.0)
        self.trust = Trust(key, Role.WORKER)
        self.node_transports, self.copies = FakeTransports(), BlockCopies()
        self.drain_started = asyncio.Event()
        kept = MembershipFile(self.mesh, Role.WORKER, accept_models=accept_models)
        self.rpc = RpcClient(ConnectionPool(self.directory, lambda node: None, random.Random()))  # type: ignore[arg-type,return-value]
        self.renewal = CertificateRenewal(self.trust, kept, state_file, self.directory, self.rpc)

    def offer(
        self,
        *,
        models: tuple[directory.ModelOffer, ...],
        load: directory.WorkerLoad,
        not_ready: str = "",
        pulls: tuple[directory.ModelPull, ...] = (),
        warning: str = "",
        assigned: tuple[ModelName, ...] = (),
        refused: tuple[ModelName, ...] = (),
        notice: str = "",
    ) -> None:
        self.offers.append(Offer(models, load, not_ready, pulls, warning, assigned, refused, notice))


def engine_pid(backend: LlamaBackend, model: ModelName) -> int | None:
    """Return the process id of the engine of a model."""
    replicas = backend._cache.get(model).replicas
    return replicas[0].engine.pid if replicas else None


class PlainChat(ModelChat):
    """Renders without a process: all texts of a chat, one per line."""

    async def open(self, loaded: engine_messages.Loaded) -> tuple[str, ...]:
        return ()

    async def prepare(self, job: jobs.GenerationJob, defaults: ReasoningDefaults) -> tuple[PreparedPrompt, RenderedPrompt]:
        rendered = RenderedPrompt(job.prompt.text)
        return prompt_plan.prepared(job, rendered), rendered


def job(prompt: str | tuple[ChatMessage, ...] = "hello", *, model: str = "smollm2", **sampling: object) -> jobs.GenerationJob:
    requested = Sampling(**sampling)  # type: ignore[arg-type]
    checked = jobs.check_prompt(ModelName(model), prompt, requested, context_tokens=2048, draw_seed=lambda: 1)
    return replace(checked, prompt=PreparedPrompt("\n".join(message.content for message in checked.messages)))


def worker(node: Node, backend: Backend) -> InferenceService:
    return InferenceService(InferenceSettings(node_key_file=Path("/nowhere/worker.nk")), node, backend, Announcements(node))
