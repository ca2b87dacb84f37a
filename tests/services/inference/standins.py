"""Stand-ins for what surrounds the worker in tests: a reader of answers, a node, a model that is no neural network."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from services.inference import jobs
from services.inference.engine.sampling import Parameters, mix
from services.inference.engine.scheduler import Feed
from shared import directory, errors, identity, telemetry
from shared.api import inference
from shared.api.gateway import Check
from shared.api.generation import ChatMessage, Sampling
from shared.api.inference import Chunk
from shared.trust import Trust
from shared.types import MeshName, ModelName, NodeId, Role

#: Ends an answer; no byte of any UTF-8 text.
END_TOKEN = 0xFF


class Reader:
    """A sink that keeps everything. Also stands in for the stream of a mesh call."""

    def __init__(self) -> None:
        self.accepted = False
        self.prompt_tokens: int | None = None
        self.chunks: list[Chunk] = []

    def accept(self, prompt_tokens: int | inference.Accepted | None = None) -> None:
        """As a sink it is told a number, as a mesh call the contract's message."""
        self.accepted = True
        self.prompt_tokens = prompt_tokens.prompt_tokens if isinstance(prompt_tokens, inference.Accepted) else prompt_tokens

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

    def changed(self) -> None:
        self.changes += 1

    def restarting(self, model: ModelName) -> None:
        self.restarts.append(model)


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for what another program does and nobody here can signal."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@dataclass
class Offer:
    models: tuple[directory.ModelOffer, ...]
    load: directory.Load
    not_ready: str


class Roads:
    """A node's transports: attached, or not and why."""

    def __init__(self) -> None:
        self.trouble = ""
        self.round_trips: dict[NodeId, float] = {}

    def checks(self) -> tuple[Check, ...]:
        return (Check("Hyperswarm", not self.trouble, self.trouble),)

    def round_trip_seconds(self, node: NodeId) -> float | None:
        return self.round_trips.get(node)


class Node:
    """Keeps what the service offers. ``tasks`` is given to it where the service is run."""

    tasks: asyncio.TaskGroup

    def __init__(self) -> None:
        self.metrics = telemetry.Metrics("inference")
        self.offers: list[Offer] = []
        key = identity.NodeKey(identity.new_seed())
        self.id = key.id
        self.mesh = MeshName("home")
        self.directory = directory.Directory(lambda: 0.0)
        self.trust = Trust(key, Role.WORKER)
        self.roads = Roads()

    def offer(self, *, models: tuple[directory.ModelOffer, ...], load: directory.Load, not_ready: str = "") -> None:
        self.offers.append(Offer(models, load, not_ready))


def job(prompt: str | tuple[ChatMessage, ...] = "hello", *, model: str = "smollm2", **sampling: object) -> jobs.Job:
    asked = Sampling(**sampling)  # type: ignore[arg-type]
    return jobs.check(ModelName(model), prompt, asked, context_tokens=2048, draw_seed=lambda: 1)


@dataclass
class ByteModel:
    """A model whose tokens are bytes. It says the prompt again and then ends; with a temperature each byte is shifted by
    (seed, position), so that what it says shows which randomness it was given. Checks that it is fed without gaps."""

    context_tokens: int = 64
    #: slot -> what has been fed to it.
    memory: dict[int, list[int]] = field(default_factory=dict)
    parameters: dict[int, Parameters] = field(default_factory=dict)
    prompts: dict[int, int] = field(default_factory=dict)
    #: (slot, start, count) of every feed, step by step.
    steps: list[list[tuple[int, int, int]]] = field(default_factory=list)
    crash: bool = False

    def prompt_tokens(self, messages: tuple[ChatMessage, ...]) -> list[int]:
        if messages[0].content == "refuse":
            raise errors.BadRequest("the model's chat template refuses these messages")
        return list(messages[0].content.encode())

    def begin(self, slot: int, parameters: Parameters) -> None:
        assert slot not in self.memory, "the slot is in use"
        self.memory[slot] = []
        self.parameters[slot] = parameters

    def run(self, feeds: list[Feed]) -> list[int | None]:
        if self.crash:
            raise errors.ModelCrashed("llama_decode gave -3")
        self.steps.append([(feed.slot, feed.start, len(feed.tokens)) for feed in feeds])
        return [self._run(feed) for feed in feeds]

    def piece(self, token: int) -> bytes | None:
        return None if token == END_TOKEN else bytes([token])

    def end(self, slot: int) -> None:
        self.memory.pop(slot, None)

    def _run(self, feed: Feed) -> int | None:
        memory = self.memory[feed.slot]
        assert len(memory) == feed.start, "fed with a gap or twice"
        memory.extend(feed.tokens)
        if not feed.sample:
            return None
        said = feed.start + len(feed.tokens) - feed.sequence.prompt_tokens
        if said == feed.sequence.prompt_tokens:
            return END_TOKEN
        parameters = self.parameters[feed.slot]
        if parameters.temperature == 0:
            return memory[said]
        return ord("a") + mix(parameters.seed, len(memory)) % 26
