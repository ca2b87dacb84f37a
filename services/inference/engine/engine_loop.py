"""The engine's loop: commands in, one step of all sequences, reports out. Knows neither llama.cpp nor sockets."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from services.inference.engine import sampling, sequence
from services.inference.engine.engine_messages import AnswerProgress, GenerationAccepted, GenerationRefused, StartGeneration, StepReport
from services.inference.engine.hashed_tokens import HashedTokens
from services.inference.engine.kv_slots import KvMode, SlotPlace, Slots
from services.inference.engine.prefill_budget import PrefillBudget
from services.inference.engine.sampling import Parameters
from services.inference.engine.scheduler import Feed, Scheduler, StepPlan
from services.inference.engine.sequence import DrawnToken
from services.inference.tool_calls import tool_call_parser
from services.inference.tool_calls.tool_call_parser import ToolCallParser
from services.inference.tool_calls.tool_format import ToolStyle
from shared import errors
from shared.api.generation import ChatMessage, Tool


class Compute(Protocol):
    """What the loop needs of a model. ``llama_model.LlamaModel`` is the real one. All of it blocks."""

    #: The longest sequence, and all that the slots hold together.
    context_tokens: int
    pool_tokens: int
    #: No token stands for more bytes of text.
    longest_token_bytes: int
    #: The most tokens of prompts in one step.
    step_tokens: int
    #: How the model writes calls of tools; None where it has no place for them.
    tool_style: ToolStyle | None
    #: Whether a slot can go back to the middle of what it has read.
    can_reuse: bool
    #: What the computing itself took, ever.
    decode_seconds: float

    def prompt_tokens(self, messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...] = (), *, raw: bool = False) -> list[int]:
        """``raw``: of the one message's text as it is. Raises BadRequest where the model cannot take these messages, or not so many
        tokens. Safe to call in another thread than all else, one call at a time."""
        ...

    def begin(self, sequence: tuple[int, int], parameters: Parameters, grammar: str, delivered: Sequence[int]) -> None:
        """A sequence's tokens are drawn by these. Raises BadRequest for what the model cannot take."""
        ...

    def settle(self, place: SlotPlace) -> bool:
        """Have a slot hold what the place says and nothing else. False if that cannot be: the slot is empty then."""
        ...

    def clear(self, slot: int) -> None:
        """Have it hold nothing."""
        ...

    def run(self, feeds: Sequence[Feed]) -> list[DrawnToken | None]:
        """Compute one batch; the token drawn for each feed that asks for one. Raises ModelCrashed: start anew."""
        ...

    def piece(self, token: int, *, with_tools: bool = False) -> bytes | None:
        """The bytes of a token; None for one that ends the answer. ``with_tools``: what marks a call of a tool is spelled out."""
        ...

    def end(self, sequence: tuple[int, int]) -> None:
        """Safe to call twice."""
        ...


class Loop:
    """Runs generations on one model. Not thread-safe: one caller, who alternates commands and ``step``. Only ``tokenize`` may run
    in another thread meanwhile."""

    def __init__(self, compute: Compute, *, slots: int, mode: KvMode, clock: Callable[[], float] = time.perf_counter) -> None:
        self._compute = compute
        self._clock = clock
        held = Slots(slots, mode, capacity=compute.pool_tokens, reuse=compute.can_reuse)
        self._scheduler = Scheduler(held, PrefillBudget(compute.step_tokens))

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    def measure(self, command: StartGeneration) -> int:
        """The bytes of a command's text. Raises BadRequest for a text that cannot fit the context, before any work is done on it."""
        size = sum(_text_bytes(message.content) for message in command.messages)
        context = self._compute.context_tokens
        if size > (most := context * self._compute.longest_token_bytes):
            raise errors.BadRequest(
                f"the prompt has {size} bytes; the model's context of {context} tokens holds at most {most} bytes of text",
                hint="shorten the prompt, or raise ENGINE_CONTEXT_TOKENS on the worker",
            )
        calls = sum(_text_bytes(call.arguments) for message in command.messages for call in message.tool_calls)
        return size + calls + sum(_text_bytes(tool.description) + _text_bytes(tool.parameters) for tool in command.tools)

    def tokenize(self, command: StartGeneration) -> HashedTokens:
        """The prompt's tokens, for ``begin``. Raises BadRequest."""
        return HashedTokens(self._compute.prompt_tokens(command.messages, command.tools, raw=command.raw))

    def begin(self, command: StartGeneration, prompt: HashedTokens) -> GenerationAccepted | GenerationRefused:
        """Queue a command's answers."""
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
        """Unknown ids are already over."""
        for cancelled in self._scheduler.cancel(identity):
            self._compute.end((cancelled.id, cancelled.answer))

    def step(self) -> StepReport | None:
        """Compute one step; None when nothing runs."""
        began, decoded = self._clock(), self._compute.decode_seconds
        plan = self._plan()
        if not plan.feeds:
            return None
        drawn = self._compute.run(plan.feeds)
        progress = [(feed, token) for feed, token in zip(plan.feeds, drawn, strict=True) if token is not None]
        self._scheduler.fed(plan, self._clock() - began)
        told = tuple(self._progress(progress))
        return StepReport(told, self._clock() - began, self._compute.decode_seconds - decoded, plan.answering, plan.read)

    def _plan(self) -> StepPlan:
        """Admit who can begin, and plan a step that the model's memory has room for."""
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
        # What remembers an answer reserves memory for all of it: not for the wish, which may be anything.
        limited = msgspec.structs.replace(parameters, max_tokens=started.limit)
        self._compute.begin((command.id, answer), limited, command.grammar, command.delivered)
        return started

    def _parser(self, command: StartGeneration, answer: int) -> ToolCallParser | None:
        style = self._compute.tool_style
        # gpt-oss speaks in channels also where it has no tools.
        if style is None or not (command.tools or style is ToolStyle.HARMONY):
            return None
        return ToolCallParser(style, command.tools, tool_call_parser.ids_of(f"{command.request}/{answer}"))

    def _piece(self, running: sequence.Sequence, token: int) -> bytes | None:
        return self._compute.piece(token, with_tools=running.output.calls is not None)

    def _progress(self, drawn: list[tuple[Feed, DrawnToken]]) -> Iterator[AnswerProgress]:
        for feed, token in drawn:
            running = feed.sequence
            taken = running.take(token.token, self._piece(running, token.token))
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
