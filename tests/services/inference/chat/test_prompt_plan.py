"""From a request to the engine's prompt: grammars of calls for all vendored templates, thoughts, and template variables."""

import re
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest

from services.inference.chat import library, prompt_plan
from services.inference.chat.chat_messages import ParseAnswer, RenderedPrompt, RenderPrompt, TemplateCapabilities
from services.inference.chat.chat_template import ChatTemplate
from services.inference.chat.library import NotUnderstood
from services.inference.chat.prompt_plan import ReasoningDefaults
from services.inference.engine.engine_messages import PreparedPrompt, ThoughtBudget
from services.inference.structured_output.constraint import Constraint
from shared import errors
from shared.api.generation import FormatKind, OutputFormat, ReasoningEffort, Tool, ToolChoice
from tests.services.inference.chat import vendored
from tests.services.inference.standins import job
from tests.services.inference.structured_output.byte_answers import BYTES, END
from tests.services.inference.structured_output.test_call_grammar import as_models_write

built = pytest.mark.skipif(not library.PATH.exists(), reason="libaimesh_chat was not built: python -m tools.engine_libraries")
WEATHER = Tool("weather", "Weather.", '{"type":"object","properties":{"city":{"type":"string","maxLength":9}},"required":["city"]}')
ADD = Tool("add", "Adds.", '{"type":"object","properties":{"a":{"type":"integer"},"b":{"enum":["x","y"]}},"required":["a","b"]}')


@cache
def opened(path: Path) -> ChatTemplate:
    return ChatTemplate(vendored.library(), vendored.request_of(path))


def prepared(path: Path, **sampling: object) -> tuple[RenderedPrompt, PreparedPrompt]:
    asked, chat = job("What is the weather?", **sampling), opened(path)
    rendered = chat.render(prompt_plan.request_of(asked, chat.capabilities, ReasoningDefaults()))
    return rendered, prompt_plan.prepared(asked, rendered)


def forced(path: Path) -> str:
    """Return the part of the template's own call that a forced call's grammar allows, up to where the answer may end."""
    rendered, prompt = prepared(path, tools=(WEATHER, ADD), tool_choice=ToolChoice.REQUIRED)
    assert prompt.grammar
    call: dict[str, object] = {"id": "123456789", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rom"}'}}
    user: dict[str, object] = {"role": "user", "content": "What is the weather?"}
    said = (user, {"role": "assistant", "content": "", "tool_calls": [call]})
    request = RenderPrompt(said, prompt_plan.tool_rows((WEATHER, ADD)), answer=False, marked=False)
    generic = '{"tool_calls": [{"name": "weather", "arguments": {"city": "Rom"}}]}'
    text = generic if rendered.generic else as_models_write(path.stem, opened(path).render(request).prompt[-2000:])
    # Thoughts that the prompt began must end first.
    before = f"Hm.{rendered.thinking_ends[0]}" if prompt.triggers else ""

    def begun() -> Constraint:
        constraint = BYTES.start(prompt.grammar, prompt.triggers, prompt.field)
        for token in before.encode():
            constraint.accept(token)
        assert constraint.applies
        assert not constraint.allows(END)
        return constraint

    possible = begun().masked(np.zeros(END + 2, np.float32)) == 0.0
    for start in (found.start() for found in re.finditer(r"\S|[ ](?=to=)", text)):
        if not possible[text[start].encode()[0]]:
            continue
        constraint, ends = begun(), 0
        raw = text[start:].encode()
        for count, token in enumerate(raw, 1):
            if not constraint.allows(token):
                break
            constraint.accept(token)
            ends = count if constraint.allows(END) else ends
        if ends:
            return before + raw[:ends].decode()
    raise AssertionError(f"the grammar allows no call of {text[-300:]!r}")


@built
def test_all_vendored_templates_give_a_call_when_it_is_forced() -> None:
    wrong = []
    for path in vendored.sample():
        try:
            answer = forced(path)
            rendered, _ = prepared(path, tools=(WEATHER, ADD), tool_choice=ToolChoice.REQUIRED)
            calls = opened(path).parse(ParseAnswer(rendered.parser, answer)).calls
            if [(call.name, msgspec.json.decode(call.arguments)) for call in calls] != [("weather", {"city": "Rom"})]:
                wrong.append((path.stem, answer, calls))
        except (AssertionError, NotUnderstood) as error:
            wrong.append((path.stem, str(error), ()))
    assert wrong == []


@built
@pytest.mark.parametrize("parallel", [False, True])
def test_the_mark_behind_calls_is_no_call(parallel: bool) -> None:
    path = next(each for each in vendored.paths() if each.stem == "moonshotai-Kimi-K2")
    _, prompt = prepared(path, tools=(WEATHER,), tool_choice=ToolChoice.REQUIRED, parallel_tool_calls=parallel)
    allowed = BYTES.start(prompt.grammar, prompt.triggers, prompt.field)
    for token in b"<|tool_call":
        allowed.accept(token)
    assert allowed.allows(ord("_"))
    assert not allowed.allows(ord("s")), "<|tool_calls_section_end|>"
    for token in b"_begin|>functions.weather:123":
        allowed.accept(token)
    assert not allowed.allows(ord("4")), "numbers of calls are short"


@built
def test_arguments_are_constrained_from_the_trigger_on() -> None:
    """Llama 3 has no trigger. The others may write any text first."""
    free = []
    for path in vendored.sample():
        rendered, prompt = prepared(path, tools=(WEATHER, ADD))
        if not prompt.grammar:
            free.append(path.stem)
            continue
        assert prompt.triggers
        assert prompt.is_optional
        constraint = BYTES.start(prompt.grammar, prompt.triggers, prompt.field)
        constraint.accept(ord("a"))
        assert not constraint.applies
        if rendered.triggers[0].kind == "word":
            for byte in rendered.triggers[0].value.encode():
                constraint.accept(byte)
            assert constraint.applies
            assert not (constraint.masked(np.zeros(END + 2, np.float32))[:256] == 0.0).all()
    assert free == [path.stem for path in vendored.sample() if path.stem.startswith("meta-llama-Ll")]


@pytest.fixture
def can() -> TemplateCapabilities:
    return TemplateCapabilities(supports_reasoning_effort=True)


THINKS = RenderedPrompt("p", "<think>", (), "<think>", ("</think>",), (), (), "x")
FORMAT = OutputFormat(FormatKind.JSON)


@pytest.mark.parametrize(
    ("effort", "thinking", "budget", "variable"),
    [
        (ReasoningEffort.NONE, False, 0, "low"),
        (ReasoningEffort.MINIMAL, False, 0, "low"),
        (ReasoningEffort.LOW, True, 1024, "low"),
        (ReasoningEffort.MEDIUM, True, 8192, "medium"),
        (ReasoningEffort.HIGH, True, None, "high"),
        (ReasoningEffort.XHIGH, True, None, "high"),
        (None, True, None, None),
    ],
)
def test_effort_sets_thinking_budget_and_variable(
    can: TemplateCapabilities, effort: ReasoningEffort | None, thinking: bool, budget: int | None, variable: str | None
) -> None:
    asked = job(reasoning_effort=effort)
    request = prompt_plan.request_of(asked, can, ReasoningDefaults())
    assert (request.thinking, request.variables.get("reasoning_effort")) == (thinking, variable)
    assert prompt_plan.budget_of(asked.requested, ReasoningDefaults(), thinking=request.thinking) == budget
    without = msgspec.structs.replace(can, supports_reasoning_effort=False)
    assert prompt_plan.request_of(asked, without, ReasoningDefaults()).variables == {}


def test_request_goes_before_the_models_own_defaults(can: TemplateCapabilities) -> None:
    off = ReasoningDefaults(thinking=False, budget=7)
    assert prompt_plan.request_of(job(), can, off).thinking is False
    assert prompt_plan.request_of(job(reasoning_effort=ReasoningEffort.HIGH), can, off).thinking is True
    assert prompt_plan.budget_of(job().requested, off, thinking=True) == 7
    asked = job(chat_template_kwargs='{"enable_thinking": false, "other": [1]}', reasoning_effort=ReasoningEffort.HIGH)
    request = prompt_plan.request_of(asked, can, ReasoningDefaults())
    assert (request.thinking, request.variables) == (False, {"reasoning_effort": "high", "other": [1]})


def test_thoughts_that_the_prompt_began_come_before_the_format() -> None:
    prompt = prompt_plan.prepared(job(format=FORMAT), THINKS, 5)
    assert (prompt.triggers, prompt.budget) == ((r"</think>\s*()",), ThoughtBudget(5, "", ("</think>",), must_continue=True))
    assert prompt_plan.prepared(job(format=FORMAT), THINKS).budget == ThoughtBudget(None, "", ("</think>",), must_continue=True)
    assert prompt_plan.prepared(job(), THINKS).budget is None
    constraint = BYTES.start(prompt.grammar, prompt.triggers)
    for token in b"Hm {</think>":
        assert not constraint.applies
        constraint.accept(token)
    assert [constraint.allows(ord("{")), constraint.allows(ord("a"))] == [True, False]
    closed = msgspec.structs.replace(THINKS, generation_prompt="<think></think>")
    prompt = prompt_plan.prepared(job(format=FORMAT), closed, 5)
    assert (prompt.triggers, prompt.budget) == ((), ThoughtBudget(5, "<think>", ("</think>",)))


def test_schema_that_is_not_supported_is_refused_only_if_a_call_is_forced() -> None:
    tool = Tool("f", "", '{"type": "object", "properties": {"x": {"not": {}}}}')
    rendered = msgspec.structs.replace(THINKS, generic=True)
    assert prompt_plan.prepared(job(tools=(tool,)), rendered).grammar == ""
    with pytest.raises(errors.BadRequest, match=r"^tools: .*not"):
        prompt_plan.prepared(job(tools=(tool,), tool_choice=ToolChoice.REQUIRED), rendered)


def test_grammar_of_a_forced_call_behind_thoughts_is_not_optional() -> None:
    tool = Tool("f", "", '{"type": "object", "properties": {"x": {"type": "integer"}}}')
    prompt = prompt_plan.prepared(job(tools=(tool,), tool_choice=ToolChoice.REQUIRED), msgspec.structs.replace(THINKS, generic=True))
    assert prompt.triggers == (r"</think>\s*()",)
    assert not prompt.is_optional


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ((Tool("f"), Tool("f")), r"tools\[1\]\.function\.name is used"),
        ((Tool("f", "", "[]"),), r"tools\[0\]\.function\.parameters must be"),
        ((Tool("f", "", "{" * 100_000),), r"tools\[0\]\.function\.parameters must be"),
    ],
)
def test_tools_are_checked(tools: tuple[Tool, ...], words: str) -> None:
    with pytest.raises(errors.BadRequest, match=words):
        prompt_plan.tool_rows(tools)


def test_template_variables_are_checked() -> None:
    with pytest.raises(errors.BadRequest, match="chat_template_kwargs has 5000 bytes; at most 4096"):
        job(chat_template_kwargs=" " * 5000)
    for wrong in ("[]", "{", "[" * 3000):
        with pytest.raises(errors.BadRequest, match="chat_template_kwargs must be a JSON object"):
            job(chat_template_kwargs=wrong)


def test_conversion_keeps_the_marks_only_for_the_engine() -> None:
    assert RenderPrompt(()).marked
