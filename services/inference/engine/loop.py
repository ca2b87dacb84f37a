"""The engine's loop: commands in, one step of all sequences, reports out. Knows neither llama.cpp nor sockets."""

from collections.abc import Iterator
from typing import Protocol

from services.inference.engine import scheduler, sequence
from services.inference.engine.sampling import Parameters
from services.inference.engine.scheduler import Feed
from services.inference.engine.wire import Accepted, Cancel, Generate, Progress, Refused, Step
from shared import errors
from shared.api.generation import ChatMessage


class Compute(Protocol):
    """What the loop needs of a model. ``llama_model.LlamaModel`` is the real one. All of it blocks."""

    context_tokens: int

    def prompt_tokens(self, messages: tuple[ChatMessage, ...]) -> list[int]:
        """Raises BadRequest where the model cannot take these messages."""
        ...

    def begin(self, slot: int, parameters: Parameters) -> None:
        """A sequence takes an empty slot."""
        ...

    def run(self, feeds: list[Feed]) -> list[int | None]:
        """Compute one step; the sampled token for each feed that asks for one. Raises ModelCrashed: start anew."""
        ...

    def piece(self, token: int) -> bytes | None:
        """The bytes of a token; None for one that ends the answer."""
        ...

    def end(self, slot: int) -> None:
        """Forget the slot's tokens. Safe to call twice."""
        ...


class Loop:
    """Runs generations on one model. Not thread-safe: one caller, who alternates ``handle`` and ``step``."""

    def __init__(self, compute: Compute, *, slots: int, chunk_tokens: int) -> None:
        self._compute = compute
        self._scheduler = scheduler.Scheduler(slots, chunk_tokens)

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    def handle(self, command: Generate | Cancel) -> Accepted | Refused | None:
        match command:
            case Generate():
                return self._generate(command)
            case Cancel():
                slot = self._scheduler.cancel(command.id)
                if slot is not None:
                    self._compute.end(slot)
                return None

    def step(self) -> Step | None:
        """Compute one step; None when it showed nothing, as in the middle of a prompt."""
        for slot, admitted in self._scheduler.admit():
            self._compute.begin(slot, admitted.parameters)
        feeds = self._scheduler.plan()
        if not feeds:
            return None
        tokens = self._compute.run(feeds)
        self._scheduler.fed(feeds)
        progress = tuple(self._progress(feeds, tokens))
        return Step(progress) if progress else None

    def _generate(self, command: Generate) -> Accepted | Refused:
        try:
            tokens = self._compute.prompt_tokens(command.messages)
            started = sequence.start(command.id, tokens, command.parameters, context_tokens=self._compute.context_tokens)
        except errors.BadRequest as error:
            return Refused(command.id, error.to_problem())
        self._scheduler.submit(started)
        return Accepted(command.id, started.prompt_tokens)

    def _progress(self, feeds: list[Feed], tokens: list[int | None]) -> Iterator[Progress]:
        for feed, token in zip(feeds, tokens, strict=True):
            if token is None:
                continue
            taken = feed.sequence.take(token, self._compute.piece(token))
            if taken.finish is not None:
                self._scheduler.remove(feed.slot)
                self._compute.end(feed.slot)
            yield Progress(feed.sequence.id, taken.token_ids, taken.text, taken.finish)
