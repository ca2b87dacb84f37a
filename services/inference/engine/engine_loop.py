"""The engine's loop: takes commands, computes steps of all sequences and returns reports. Independent of llama.cpp and sockets."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from services.inference.engine import sampling, sequence
from services.inference.engine.engine_messages import AnswerProgress, GenerationAccepted, GenerationRefused, StartGeneration, StepReport
from services.inference.engine.kv_slots import HashedTokens, KvMode, SlotPlace, Slots
from services.inference.engine.sampling import Parameters
from services.inference.engine.scheduler import Feed, PrefillBudget, Scheduler, StepPlan
from services.inference.engine.sequence import DrawnToken
from services.inference.tool_calls import tool_call_parser
from services.inference.tool_calls.tool_call_parser import ToolCallParser
from services.inference.tool_calls.tool_format import ToolStyle
from shared import errors
from shared.api.generation import ChatMessage, Tool


class EngineModel(Protocol):
    """The part of a model that the loop uses, implemented by `LlamaModel`. All methods block."""

    context_tokens: int
    pool_tokens: int
    longest_token_bytes: int
    step_tokens: int
    #: How the model writes tool calls; None if it doesn't support tools.
    tool_style: ToolStyle | None
    #: Whether a slot can be cut back to a prefix of its tokens.
    can_reuse: bool
    decode_seconds: float

    def prompt_tokens(self, messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...] = (), *, raw: bool = False) -> list[int]:
        """Tokenize a chat, or with ``raw`` the text of its only message. Raises BadRequest for messages that the model doesn't
        support or that are too long. May run in another thread than the rest, one call at a time."""
        ...

    def begin(self, sequence: tuple[int, int], parameters: Parameters, grammar: str, delivered: Sequence[int]) -> None:
        """Set up sampling for a sequence. Raises BadRequest."""
        ...

    def settle(self, place: SlotPlace) -> bool:
        """Make a slot hold exactly the tokens in ``place``. Return False, with the slot empty, if that isn't possible."""
        ...

    def clear(self, slot: int) -> None: ...

    def run(self, feeds: Sequence[Feed]) -> list[DrawnToken | None]:
        """Compute one batch and return the next token for each feed that samples. Raises ModelCrashed; the process must then end."""
        ...

    def piece(self, token: int, *, with_tools: bool = False) -> bytes | None:
        """Return the bytes of a token; None for an end token. ``with_tools`` spells out the marks of tool calls."""
        ...

    def end(self, sequence: tuple[int, int]) -> None:
        """Safe to call twice."""
        ...


class EngineLoop:
    """Runs generations on one model. Not thread-safe: one thread alternates commands and ``step``. Only ``tokenize`` may run in
    another one."""

    def __init__(self, compute: EngineModel, *, slots: int, mode: KvMode, clock: Callable[[], float] = time.perf_counter) -> None:
        self._compute = compute
        self._clock = clock
        held = Slots(slots, mode, capacity=compute.pool_tokens, reuse=compute.can_reuse)
        self._scheduler = Scheduler(held, PrefillBudget(compute.step_tokens))

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    def measure(self, command: StartGeneration) -> int:
        """Return the size of a command's text. Raises ContextExceeded if it can't fit the context, before any work is done."""
        size = sum(_text_bytes(message.content) for message in command.messages)
        context = self._compute.context_tokens
        if size > (most := context * self._compute.longest_token_bytes):
            raise errors.ContextExceeded(
                f"the prompt has {size} bytes; this model's maximum context length is {context} tokens, at most {most} bytes of text",
                hint="shorten the prompt, or raise ENGINE_CONTEXT_TOKENS on the worker",
            )
        calls = sum(_text_bytes(call.arguments) for message in command.messages for call in message.tool_calls)
        return size + calls + sum(_text_bytes(tool.description) + _text_bytes(tool.parameters) for tool in command.tools)

    def tokenize(self, command: StartGeneration) -> HashedTokens:
        """Tokenize the prompt for ``begin``. Raises BadRequest."""
        return HashedTokens(self._compute.prompt_tokens(command.messages, command.tools, raw=command.raw))

    def begin(self, command: StartGeneration, prompt: HashedTokens) -> GenerationAccepted | GenerationRefused:
        try:
            started = [self._start(command, prompt, answer) for answer in range(command.parameters.n)]
        except errors.BadRequest as error:
            for answer in range(command.parameters.n):
                self._compute.end((command.id, answer))
            return GenerationRefused(command.id, error.to_problem())
        for one in started:
            self._scheduler.submit(one)
        return GenerationAccepted(command.id, len(prompt.tokens))

    def cancel(self, identity: int) -> None:
        """Forget a request; unknown ones have already ended."""
        for cancelled in self._scheduler.cancel(identity):
            self._compute.end((cancelled.id, cancelled.answer))

    def step(self) -> StepReport | None:
        """Compute one step; None if nothing runs."""
        began, decoded = self._clock(), self._compute.decode_seconds
        plan = self._plan()
        if not plan.feeds:
            return None
        drawn = self._compute.run(plan.feeds)
        progress = [(feed, token) for feed, token in zip(plan.feeds, drawn, strict=True) if token is not None]
        self._scheduler.complete_step(plan, self._clock() - began)
        answers = tuple(self._progress(progress))
        return StepReport(answers, self._clock() - began, self._compute.decode_seconds - decoded, plan.answering, plan.read)

    def _plan(self) -> StepPlan:
        while True:
            for place in self._scheduler.admit():
                if not self._compute.settle(place):
                    self._scheduler.restart(place.slot)
            plan = self._scheduler.plan()
            if plan is None:
                self._compute.clear(self._scheduler.preempt())
                continue
            for slot in self._scheduler.make_room(plan):
                self._compute.clear(slot)
            return plan

    def _start(self, command: StartGeneration, prompt: HashedTokens, answer: int) -> sequence.Sequence:
        parameters = sampling.of_answer(command.parameters, answer)
        started = sequence.start(
            command.id,
            answer,
            prompt,
            parameters,
            context_tokens=self._compute.context_tokens,
            salt=command.salt,
            calls=self._parser(command, answer),
        )
        for token in command.delivered:
            started.replay(token, self._piece(started, token))
        # Samplers reserve memory for max_tokens, so pass the real limit.
        limited = msgspec.structs.replace(parameters, max_tokens=started.limit)
        self._compute.begin((command.id, answer), limited, command.grammar, command.delivered)
        return started

    def _parser(self, command: StartGeneration, answer: int) -> ToolCallParser | None:
        style = self._compute.tool_style
        # gpt-oss uses channels even without tools.
        if style is None or not (command.tools or style is ToolStyle.HARMONY):
            return None
        return ToolCallParser(style, command.tools, tool_call_parser.ids_of(f"{command.request}/{answer}"))

    def _piece(self, running: sequence.Sequence, token: int) -> bytes | None:
        return self._compute.piece(token, with_tools=running.output.calls is not None)

    def _progress(self, drawn: list[tuple[Feed, DrawnToken]]) -> Iterator[AnswerProgress]:
        for feed, token in drawn:
            running = feed.sequence
            taken = running.append_token(token.token, self._piece(running, token.token))
            if taken.finish is not None:
                self._scheduler.finish(feed.slot)
                self._compute.end((running.id, running.answer))
            yield AnswerProgress(
                running.id,
                taken.token_ids,
                taken.text,
                taken.finish,
                running.answer,
                running.cached,
                (token.logprob,) if token.logprob is not None and taken.token_ids else (),
                taken.calls,
            )


def _text_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
