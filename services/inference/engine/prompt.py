"""Renders a chat to a prompt with the model's chat template, and prevents callers from using special tokens.

The template comes with the model and is untrusted: it runs in Jinja's immutable sandbox, with limits on its output and its time.

If a caller writes `<|im_start|>`, it must stay plain text, or else the caller could speak as the system. llama.cpp recognizes special
tokens by their spelling, so each spelling in a message is marked before rendering, and the rendered text is split inside each marked
spelling. llama.cpp then sees two parts of plain text. Everything else is tokenized in one piece, as in the model's training.
"""

import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from itertools import takewhile
from types import FrameType

import jinja2

from services.inference.engine import template_sandbox
from services.inference.tool_calls import chat_rows
from services.inference.tool_calls.chat_rows import PROBE_TOOL, Habits
from shared import errors
from shared.api.generation import ChatMessage, Tool, ToolCall

#: Templates add a few words per message to texts of at most 1 MiB.
MAX_RENDERED_CHARACTERS = 4 * 1024 * 1024
#: Honest templates take a millisecond; other prompts wait meanwhile.
MAX_RENDER_SECONDS = 1.0
#: The longest published templates have 17,000 characters and compile in 0.1 s, once per model.
MAX_COMPILE_SECONDS = 5.0
MAX_SOURCE_CHARACTERS = 64 * 1024
#: The C library expands a letter of a date format up to a few hundred times.
MAX_DATE_FORMAT_CHARACTERS = 64

#: Characters per search for special tokens, which holds the GIL for about a millisecond.
_SEARCHED_AT_ONCE = 16 * 1024

#: A noncharacter, which Unicode reserves for internal use; it is removed from callers' texts.
MARK = "\ufdd0"

_PROBE_CALL = ToolCall("call_0123456789abcdefghijklmn", PROBE_TOOL.name, '{"probe_key":"probe_value"}')
_PROBE_DAY = datetime(2025, 1, 1, tzinfo=UTC)

#: A template may raise an error with a long text of a caller.
MAX_FAULT_CHARACTERS = 500

#: The alarm repeats, in case a template swallows the first exception.
_RING_AGAIN_SECONDS = 0.05

#: Errors of a template, which compiles to Python code.
_TEMPLATE_FAULTS = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError,
)  # fmt: skip


class TemplateTooSlow(Exception):
    """Raised inside a render that exceeds MAX_RENDER_SECONDS."""


class ChatTemplate:
    """The compiled chat template of one model. The constructor raises jinja2.TemplateError.

    Not thread-safe. Only in the main thread is its time bounded.
    """

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        self.source = source
        self._sandbox = template_sandbox.Sandbox()
        self._template = _compiled(self._sandbox, source)
        self._bos = bos
        self._eos = eos

    def render(
        self,
        messages: tuple[ChatMessage, ...],
        tools: tuple[Tool, ...] = (),
        *,
        special: "SpecialTokens | None" = None,
        now: datetime | None = None,
    ) -> str:
        """Render the prompt, up to the start of the model's answer.

        ``special`` marks the caller's texts; without it they must be marked already. ``now`` is the template's date. Raises
        BadRequest if the template refuses the messages, takes too long, or omits some of the request's tools. A template without
        tools gets them as text.
        """
        in_use = bool(tools) or any(message.tool_calls or message.role == "tool" for message in messages)
        if in_use and not self.supports_tools:
            messages, tools, in_use = chat_rows.as_text(messages, tools, with_system=self._shows_system), (), False
        mark = special.mark if special else str
        habits = self._habits if in_use else Habits()
        rows = chat_rows.message_rows(messages, mark, habits)
        rendered = self._render(rows, chat_rows.tool_rows(tools, mark), now or datetime.now(UTC))
        if tools:
            _check_shown(tools, rendered.replace(MARK, ""))
        return rendered

    @cached_property
    def supports_tools(self) -> bool:
        """Whether the template shows tools to the model, found by a probe."""
        hello = ChatMessage("user", "hello")
        chats = ((hello,), (ChatMessage("system", "help"), hello))
        return any(
            PROBE_TOOL.name in self._probe(chat, Habits(), (PROBE_TOOL,)) and PROBE_TOOL.name not in self._probe(chat, Habits())
            for chat in chats
        )

    @cached_property
    def _shows_system(self) -> bool:
        messages = (ChatMessage("system", PROBE_TOOL.description), ChatMessage("user", "hello"))
        return PROBE_TOOL.description in self._probe(messages, Habits())

    @cached_property
    def rendered_call(self) -> str:
        """A rendered call of the probe tool and its result; empty if the template can't render one. `tool_format` derives from it
        how the model writes calls."""
        return self._rendered_call(self._habits)

    @cached_property
    def _habits(self) -> Habits:
        """The first habits, starting with the most usual, with which the template renders a call."""
        choices = (Habits(none, short, text) for text in (False, True) for short in (False, True) for none in (False, True))
        return next((habits for habits in choices if self._rendered_call(habits)), Habits())

    @cached_property
    def _without_tools(self) -> dict[str, object]:
        """The template's variables without tools: usually None, but a few templates always iterate the list, which only works if the
        name is undefined."""
        hello = chat_rows.message_rows((ChatMessage("user", "hello"),), str, Habits())
        with suppress(errors.BadRequest):
            self._print(hello, {"tools": None}, _PROBE_DAY)
            return {"tools": None}
        return {}

    def _rendered_call(self, habits: Habits) -> str:
        messages = (
            ChatMessage("user", "hello"),
            ChatMessage("assistant", "", (_PROBE_CALL,)),
            ChatMessage("tool", "probe_answer", tool_call_id=_PROBE_CALL.id),
        )
        rendered = self._probe(messages, habits)
        return rendered if PROBE_TOOL.name in rendered and "probe_value" in rendered else ""

    def _probe(self, messages: tuple[ChatMessage, ...], habits: Habits, tools: tuple[Tool, ...] = ()) -> str:
        """Render a fixed chat; empty if the template refuses it."""
        try:
            return self._render(chat_rows.message_rows(messages, str, habits), chat_rows.tool_rows(tools, str), _PROBE_DAY)
        except errors.BadRequest:
            return ""

    def _render(self, rows: list[chat_rows.Row], tools: list[chat_rows.Row], now: datetime) -> str:
        return self._print(rows, {"tools": tools} if tools else self._without_tools, now)

    def _print(self, rows: list[chat_rows.Row], tools: dict[str, object], now: datetime) -> str:
        pieces: list[str] = []
        room = MAX_RENDERED_CHARACTERS
        variables = {"messages": rows, "documents": None, "add_generation_prompt": True, "bos_token": self._bos, "eos_token": self._eos}
        self._sandbox.start()
        try:
            with _time_limit(MAX_RENDER_SECONDS):
                for piece in self._template.generate(variables, strftime_now=_clock(now), **tools):
                    room -= len(piece)
                    if room < 0:
                        raise errors.BadRequest(f"the model's chat template printed more than {MAX_RENDERED_CHARACTERS} characters")
                    pieces.append(piece)
        except TemplateTooSlow:
            raise errors.BadRequest(f"the model's chat template took more than {MAX_RENDER_SECONDS:g} s for these messages") from None
        except _TEMPLATE_FAULTS as fault:
            raise errors.BadRequest(f"the model's chat template refuses these messages: {str(fault)[:MAX_FAULT_CHARACTERS]}") from fault
        return "".join(pieces)


class SpecialTokens:
    """Marks the spellings of a model's special tokens in callers' texts, and splits a rendered prompt at the marks."""

    def __init__(self, spellings: tuple[str, ...]) -> None:
        # A single character can't be split; such tokens (control characters) mean nothing in a chat template.
        long = {spelling for spelling in spellings if len(spelling) > 1}
        self._spelled = re.compile(_lookahead(long))
        self._beginnings = {spelling[:end] for spelling in long for end in range(1, len(spelling))}
        self._longest = max(map(len, long), default=0)

    def mark(self, text: str) -> str:
        """Put a MARK after the first character of every special token in the text, and of every possible start of one at its end, to
        which a template may append other text."""
        text = text.replace(MARK, "")
        places = {*self._whole(text), *self._begun(text.rstrip())}
        pieces, before = [], 0
        for place in sorted(places):
            pieces.append(text[before : place + 1])
            before = place + 1
        return MARK.join((*pieces, text[before:]))

    def cut(self, rendered: str) -> list[str]:
        """Split a rendered prompt into parts that are safe to tokenize with special tokens recognized."""
        return [part for part in rendered.split(MARK) if part]

    def _whole(self, text: str) -> Iterator[int]:
        for start in range(0, len(text), _SEARCHED_AT_ONCE):
            end = start + _SEARCHED_AT_ONCE
            for found in self._spelled.finditer(text, start, end + self._longest):
                if found.start() >= end:
                    break
                yield found.start()

    def _begun(self, text: str) -> Iterator[int]:
        for start in range(max(0, len(text) - self._longest), len(text)):
            if text[start:] in self._beginnings:
                yield start


def _lookahead(spellings: set[str]) -> str:
    """Build a pattern for the first character of any spelling, with a lookahead because spellings may overlap."""
    firsts = {spelling[0] for spelling in spellings}
    tails = {first: [spelling[1:] for spelling in spellings if spelling[0] == first] for first in sorted(firsts)}
    return "|".join(f"{re.escape(first)}(?={_any_of(tails[first])})" for first in tails) or r"(?!)"


def _any_of(texts: list[str]) -> str:
    """Build a pattern for text that starts with one of these; it branches by character instead of trying each text in turn."""
    shared = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(min(texts), max(texts), strict=False)))
    tails = [text[len(shared) :] for text in texts]
    if "" in tails:
        return re.escape(shared)
    firsts = sorted({tail[0] for tail in tails})
    return f"{re.escape(shared)}(?:{'|'.join(_any_of([tail for tail in tails if tail[0] == first]) for first in firsts)})"


def _compiled(sandbox: template_sandbox.Sandbox, source: str) -> jinja2.Template:
    if len(source) > MAX_SOURCE_CHARACTERS:
        raise jinja2.TemplateError(f"it has {len(source)} characters; at most {MAX_SOURCE_CHARACTERS} are allowed")
    try:
        with _time_limit(MAX_COMPILE_SECONDS):
            return sandbox.from_string(source)
    except TemplateTooSlow:
        raise jinja2.TemplateError(f"it took more than {MAX_COMPILE_SECONDS:g} s to compile") from None
    except (*_TEMPLATE_FAULTS, SyntaxError) as fault:
        # Python's compiler has limits too, for example on nested loops.
        raise jinja2.TemplateError(str(fault)) from fault


def _clock(now: datetime) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:  # noqa: A002 -- templates may name it
        if len(format) > MAX_DATE_FORMAT_CHARACTERS:
            raise jinja2.TemplateError(f"a date format may have at most {MAX_DATE_FORMAT_CHARACTERS} characters")
        return now.strftime(format)

    return strftime_now


def _check_shown(tools: tuple[Tool, ...], rendered: str) -> None:
    """Check that the prompt shows all tools: some templates omit them, for example from chats without a system message."""
    for name in (tool.name.replace(MARK, "") for tool in tools):
        if name not in rendered and json.dumps(name, ensure_ascii=False)[1:-1] not in rendered:
            message = f"this model's chat template does not support tools in this chat: it omits {name[:64]!r}"
            raise errors.BadRequest(message, hint="send the chat without tools, or use a model that was trained to call them")


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block with an alarm. That only works in the main thread, where the engine renders (`tokenize_queue`)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    running = True

    def ring(_signal: int, _frame: FrameType | None) -> None:
        if running:
            raise TemplateTooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _RING_AGAIN_SECONDS)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
