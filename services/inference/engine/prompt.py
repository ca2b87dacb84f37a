"""A chat becomes the model's prompt: renders the chat template of the model's file, and keeps users from writing its special tokens.

The template comes with the model, so it is data from a stranger: it runs in Jinja's immutable sandbox, with a bound on
what it may print and on how long it may take.

A user may write `<|im_start|>`; it must stay those twelve characters, or the user could speak as the system. llama.cpp
recognises special tokens in text by their spelling, and only the template's own may be recognised. So every spelling of
one in a message is marked before rendering, and the rendered text is cut inside each marked spelling: llama.cpp sees it
only in two parts, each an ordinary text. Everything else is tokenised in one piece, exactly as the model was trained.
"""

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared import errors
from shared.api.generation import ChatMessage

#: Templates add a few words per message to texts of at most 1 MiB.
MAX_RENDERED_CHARACTERS = 4 * 1024 * 1024
#: Honest templates take a millisecond; the engine stands still meanwhile.
MAX_RENDER_SECONDS = 1.0

#: A code point that Unicode reserves for a program's own use in memory (a noncharacter), removed from what users write.
MARK = "\ufdd0"

#: What a template's own mistakes raise: sandboxed code is still Python code.
_TEMPLATE_FAULTS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class TemplateTooSlow(Exception):
    """Raised inside a render that exceeds MAX_RENDER_SECONDS."""


class ChatTemplate:
    """The compiled chat template of one model. Raises jinja2.TemplateError from the constructor if it is no template."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = _raise_exception
        self._template = environment.from_string(source)
        self._bos = bos
        self._eos = eos

    def render(self, messages: tuple[ChatMessage, ...]) -> str:
        """Raises BadRequest when the template refuses these messages, or does not come to an end."""
        rows = [{"role": message.role, "content": message.content} for message in messages]
        pieces: list[str] = []
        room = MAX_RENDERED_CHARACTERS
        try:
            with _time_limit(MAX_RENDER_SECONDS):
                for piece in self._template.generate(messages=rows, add_generation_prompt=True, bos_token=self._bos, eos_token=self._eos):
                    room -= len(piece)
                    if room < 0:
                        raise errors.BadRequest(f"the model's chat template printed more than {MAX_RENDERED_CHARACTERS} characters")
                    pieces.append(piece)
        except TemplateTooSlow:
            raise errors.BadRequest(f"the model's chat template took more than {MAX_RENDER_SECONDS:g} s for these messages") from None
        except _TEMPLATE_FAULTS as fault:
            raise errors.BadRequest(f"the model's chat template refuses these messages: {fault}") from fault
        return "".join(pieces)


class SpecialTokens:
    """The spellings of a model's special tokens: marks them in users' texts, and cuts a rendered prompt at the marks."""

    def __init__(self, spellings: tuple[str, ...]) -> None:
        self._by_first: dict[str, list[str]] = {}
        for spelling in spellings:
            # One character cannot be cut in two; such tokens (single control characters) say nothing to a chat template.
            if len(spelling) > 1:
                self._by_first.setdefault(spelling[0], []).append(spelling)
        firsts = "|".join(re.escape(first) for first in self._by_first)
        self._firsts = re.compile(firsts or r"(?!)")

    def mark(self, text: str) -> str:
        """Put a MARK behind the first character of every special token that the text spells, or may begin to spell at
        its end, where a template may join another message's text to it."""
        text = text.replace(MARK, "")
        ends = text.rstrip()

        def marked(first: re.Match[str]) -> str:
            return first[0] + MARK if self._spelled(text, ends, first.start()) else first[0]

        return self._firsts.sub(marked, text)

    def cut(self, rendered: str) -> list[str]:
        """The parts of a rendered prompt that may each be tokenised with special tokens recognised."""
        return [part for part in rendered.split(MARK) if part]

    def _spelled(self, text: str, ends: str, at: int) -> bool:
        rest = ends[at:]
        return any(text.startswith(spelling, at) or (rest and spelling.startswith(rest)) for spelling in self._by_first[text[at]])


def _raise_exception(message: str) -> None:
    """What templates call to refuse a chat, for instance one whose roles do not alternate."""
    raise jinja2.TemplateError(str(message))


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block by an alarm. Only a main thread can have one; the engine renders in its main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TemplateTooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
