"""The engine's loop: takes commands, computes steps of all sequences and returns reports. Independent of llama.cpp and sockets."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from services.inference.engine import sampling, sequence
from services.inference.engine.engine_messages import (
    AnswerProgress,
    ConvertTokens,
    GenerationAccepted,
    GenerationRefused,
    PreparedPrompt,
    StartGeneration,
    StepReport,
)  # fmt: skip
from services.inference.engine.kv_slots import KvLayout, SlotPlace, Slots
from services.inference.engine.lookup import PromptLookup, Speculation
from services.inference.engine.prompt_cache import HashedTokens, PromptCache, SavedPrompt
from services.inference.engine.sampling import Parameters
from services.inference.engine.scheduler import Feed, PrefillBudget, Scheduler, StepPlan
from services.inference.engine.sequence import DrawnToken, ImagePrompt
from services.inference.images.prompt_images import DecodedImage, position_of
from shared import errors


class EngineModel(Protocol):
    """The part of a model that the loop uses, implemented by `LlamaModel`. All methods block."""

    layout: KvLayout
    context_tokens: int
    pool_tokens: int
    longest_token_bytes: int
    step_tokens: int
    #: A step may always take so long.
    unnoticed_seconds: float
    #: Whether a slot can be cut back to a prefix of its tokens.
    can_cut: bool
    #: The same for a slot that was saved.
    can_cut_saved: bool
    decode_seconds: float

    def prompt_tokens(self, prompt: PreparedPrompt) -> list[int]:
        """Compile the prompt's grammar for ``begin``, and tokenize its text. Raises BadRequest for a text that is too long, or a grammar
        that isn't possible. May run in another thread than the rest, one call at a time."""

    def read_images(self, command: StartGeneration, images: Sequence[DecodedImage], is_wanted: Callable[[], bool]) -> ImagePrompt:
        """The same for a prompt with images, which it encodes until the prompt isn't wanted. Runs in its own thread."""

    def convert(self, command: ConvertTokens) -> bytes:
        """Return token ids, or a text in UTF-8, also of more tokens than the context has. Raises BadRequest. May run in another thread, as
        ``prompt_tokens``."""

    def begin(self, sequence: tuple[int, int], parameters: Parameters, prompt: PreparedPrompt, delivered: Sequence[int]) -> None:
        """Set up sampling for a sequence. Raises BadRequest."""

    def show(self, spellings: tuple[str, ...]) -> None:
        """Spell these special tokens out in answers. It takes up to three seconds, so call it before the first prompt."""

    def check_adapter(self, number: int) -> None:
        """Raises Unavailable if there is no usable adapter of this number."""

    def settle(self, place: SlotPlace) -> int:
        """Make a slot hold exactly the tokens in ``place``, or else fewer of them; return how many."""

    def clear(self, slot: int) -> None: ...

    def saved_tokens(self, slot: int, tokens: HashedTokens) -> int:
        """Return how many of a slot's tokens can be saved."""

    def saved_bytes(self, slot: int) -> int:
        """Return the size of all tokens of a slot."""

    def save(self, slot: int, position: int) -> memoryview | None:
        """Cut a slot to ``saved_tokens``, which end at this position, and return what restores them; None without memory for it."""

    def can_draft(self, adapter: int) -> bool:
        """Whether the tokens of an answer are the same if several are computed at once, as far as they are at all."""

    def run(self, feeds: Sequence[Feed]) -> list[list[DrawnToken]]:
        """Compute one batch and return the next tokens of each feed that samples: one, and one more for each right guess. Wrong ones are
        forgotten. Raises ModelCrashed; the process must then end, because the state of the model's memory is unknown."""

    def piece(self, token: int) -> bytes | None:
        """Return the bytes of a token; None for an end token."""

    def end(self, sequence: tuple[int, int]) -> None:
        """Safe to call twice."""


class EngineLoop:
    """Runs generations on one model. Not thread-safe: one thread alternates commands and ``step``. Only ``tokenize`` and ``convert``
    may run in another one."""

    def __init__(
        self,
        compute: EngineModel,
        *,
        slots: int,
        cache_bytes: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``cache_bytes``: for prompts that lose their slot."""
        self._compute = compute
        self.convert, self.show, self.read_images = compute.convert, compute.show, compute.read_images
        self._clock = clock
        self._cache = PromptCache(cache_bytes, can_cut=compute.can_cut_saved)
        held = Slots(slots, compute.layout, capacity=compute.pool_tokens, can_cut=compute.can_cut, cache=self._cache)
        held.on_loss = self._save
        self._scheduler = Scheduler(held, PrefillBudget(compute.step_tokens, compute.unnoticed_seconds))
        self._speculation = Speculation(lambda token: compute.piece(token) is None)

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    @property
    def makes_way(self) -> bool:
        """Whether it computes for batches only."""
        return self._scheduler.makes_way

    def measure(self, command: StartGeneration) -> int:
        """Return the size of a command's text. Raises ContextExceeded if it can't fit the context, and Unavailable if the engine doesn't
        have its adapter, before any work is done."""
        self._compute.check_adapter(command.adapter)
        size = len(command.prompt.text.encode("utf-8", "replace"))
        context = self._compute.context_tokens
        if size > (most := context * self._compute.longest_token_bytes):
            raise errors.ContextExceeded.because(
                f"{size} bytes > {most} maximum; this model's maximum context length is {context} tokens",
                hint="shorten the prompt, or raise ENGINE_CONTEXT_TOKENS on the worker",
            )
        return size

    def tokenize(self, command: StartGeneration) -> ImagePrompt:
        """Tokenize the prompt and compile the grammar for ``begin``. Raises BadRequest."""
        return ImagePrompt(HashedTokens(self._compute.prompt_tokens(command.prompt)))

    def begin(self, command: StartGeneration, prompt: ImagePrompt) -> GenerationAccepted | GenerationRefused:
        try:
            started, delivered = [], ""
            for answer in range(command.parameters.n):
                one, delivered = self._start(command, prompt, answer)
                started.append(one)
        except errors.BadRequest as error:
            for answer in range(command.parameters.n):
                self._compute.end((command.id, answer))
            return GenerationRefused(command.id, error.to_problem())
        for one in started:
            self._scheduler.submit(one)
        said = delivered if command.delivered else None
        return GenerationAccepted(command.id, len(prompt.hashed.tokens), said, prompt.seconds)

    def cancel(self, identity: int, answer: int | None = None) -> None:
        """Forget a request, or one of its answers; unknown ones have already ended."""
        for cancelled in self._scheduler.cancel(identity, answer):
            self._compute.end((cancelled.id, cancelled.answer))

    def step(self, *, is_usual: bool = True) -> StepReport | None:
        """Compute one step; None if nothing runs. For ``is_usual`` see ``PrefillBudget``."""
        began, decoded = self._clock(), self._compute.decode_seconds
        plan = self._plan()
        if not plan.feeds:
            return None
        drawn = self._compute.run(plan.feeds)
        seconds = self._clock() - began
        for feed in plan.feeds:
            feed.sequence.seconds += seconds if feed.sequence.is_batch else 0.0
        # A report for each token: a stop sequence among them must not count those behind it.
        progress = [(feed, self._append(feed, token)) for feed, tokens in zip(plan.feeds, drawn, strict=True) for token in tokens]
        accepted = len(progress) - 1 if plan.drafted else 0
        self._scheduler.complete_step(plan, seconds, accepted=accepted, is_usual=is_usual)
        for feed, one in progress:
            if one.finish is not None:
                self._scheduler.finish(feed.slot)
                self._compute.end((feed.sequence.id, feed.sequence.answer))
        return StepReport(
            tuple(one for _, one in progress),
            self._clock() - began,
            self._compute.decode_seconds - decoded,
            plan.answering,
            plan.read,
            self._cache.bytes,
            self._cache.hits,
            plan.drafted,
            accepted,
            all(feed.sequence.is_batch for feed in plan.feeds),
            self._scheduler.take_preempted(),
        )

    def _append(self, feed: Feed, token: DrawnToken) -> AnswerProgress:
        return feed.sequence.append(token, self._compute.piece(token.token))

    def _save(self, slot: int, salt: str, tokens: HashedTokens, above: int) -> None:
        tokens = tokens.first(self._compute.saved_tokens(slot, tokens))
        size = self._compute.saved_bytes(slot)
        # More than what is held elsewhere, or will be kept, so the slot may be cut.
        if not size or not self._cache.wants(tokens, salt, above, size, self._scheduler.step_seconds):
            return
        began = self._clock()
        if (state := self._compute.save(slot, position_of(len(tokens.tokens), tokens.spans))) is not None:
            self._cache.put(SavedPrompt(salt, tokens, state), self._clock() - began)

    def _plan(self) -> StepPlan:
        while True:
            for place in self._scheduler.admit():
                if (kept := self._compute.settle(place)) < place.kept:
                    self._scheduler.restart(place.slot, kept)
            plan = self._scheduler.plan()
            if plan is None:
                self._compute.clear(self._scheduler.preempt())
                continue
            for slot in self._scheduler.make_room(plan):
                self._compute.clear(slot)
            return plan

    def _start(self, command: StartGeneration, prompt: ImagePrompt, answer: int) -> tuple[sequence.Sequence, str]:
        """Return the sequence, and the text that was delivered."""
        parameters = sampling.of_answer(command.parameters, answer)
        context_tokens = self._compute.context_tokens
        # What an adapter computed is of no use to another one.
        salt = f"{command.adapter}:{command.salt}" if command.salt else ""
        started = sequence.start(
            *(command.id, answer, prompt, parameters),
            context_tokens=context_tokens,
            salt=salt,
            adapter=command.adapter,
            is_batch=command.is_batch,
        )
        delivered = "".join(started.replay(token, self._compute.piece(token)) for token in command.delivered)
        # Samplers reserve memory for max_tokens, so pass the real limit.
        limited = msgspec.structs.replace(parameters, max_tokens=started.limit)
        self._compute.begin((command.id, answer), limited, command.prompt, command.delivered)
        if self._compute.can_draft(command.adapter):
            started.lookup = PromptLookup(started.tokens, self._speculation)
        return started, delivered
