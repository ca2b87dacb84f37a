"""Renders chat templates with Jinja, for templates that llama.cpp can't read, and where its library was not built.

Only the chat process imports this module: it bounds the time and the memory of a template. Tools use the generic form.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.inference.chat.chat_messages import OpenTemplate, RenderedPrompt, RenderPrompt, TemplateCapabilities
from services.inference.chat.library import NotUnderstood

#: A template may raise an error with a long text of a caller.
_REASON_CHARACTERS = 500
#: What a template does wrong: it compiles to Python.
_FAULTS = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError,
)  # fmt: skip


Made = TypeVar("Made")


class _Generation(Extension):
    """`{% generation %}` marks the answer for training; prompts ignore it."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class PlainTemplate:
    def __init__(self, opened: OpenTemplate) -> None:
        """Raises NotUnderstood, with the line."""
        sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
        sandbox.filters["tojson"] = _to_json
        sandbox.globals["raise_exception"] = _refuse
        self._given: dict[str, object] = {"bos_token": opened.bos, "eos_token": opened.eos, "documents": None}
        self._compiled = None
        if opened.template:
            self._compiled = _understood(lambda: sandbox.from_string(opened.template))
            # A few templates iterate the list of tools, which only works if the name is undefined.
            with suppress(NotUnderstood):
                self.render(RenderPrompt(({"role": "user", "content": "Hello."},), variables={"tools": None}))
                self._given["tools"] = None
        self.capabilities = TemplateCapabilities(supports_reasoning_effort=False)

    def render(self, request: RenderPrompt) -> RenderedPrompt:
        """Raises NotUnderstood, with the line."""
        compiled = self._compiled
        if compiled is None:
            if len(request.messages) > 1:
                raise NotUnderstood("this model has no chat template and only supports plain prompts; send prompt, not messages")
            return RenderedPrompt(str(request.messages[0]["content"]))
        variables = {
            **self._given,
            "messages": request.messages,
            "add_generation_prompt": request.answer,
            "enable_thinking": request.thinking,
            "strftime_now": lambda form: time.strftime(form, time.gmtime(request.now or None)),
            **request.variables,
        }
        return RenderedPrompt(_understood(lambda: compiled.render(variables)))


def _understood(make: Callable[[], Made]) -> Made:
    try:
        return make()
    except _FAULTS as fault:
        lines = [frame.lineno for frame in traceback.extract_tb(sys.exc_info()[2]) if frame.filename == "<template>"]
        line = getattr(fault, "lineno", None) or (lines[-1] if lines else None)
        place = "" if line is None else f"line {line}: "
        raise NotUnderstood(place + str(fault)[:_REASON_CHARACTERS]) from fault


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))
