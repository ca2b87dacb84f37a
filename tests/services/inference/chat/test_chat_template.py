"""A template in the chat process: callers' texts, tools in both forms, and rendering without llama.cpp's library."""

import json
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.chat import generic_form, library, prompt_plan
from services.inference.chat.chat_messages import OpenTemplate, ParseAnswer, ParsedCall, RenderedPrompt, RenderPrompt
from services.inference.chat.chat_template import ChatTemplate
from services.inference.chat.library import ChatLibrary, NotUnderstood
from services.inference.engine.special_tokens import SpecialTokens
from shared.api.generation import ChatMessage, Tool, ToolCall, ToolChoice
from shared.api.inference import RenderChat
from shared.types import ModelName
from tests.services.inference.chat import chat_templates, vendored
from tools import engine_libraries

built = pytest.mark.skipif(not library.PATH.exists(), reason="libaimesh_chat was not built: python -m tools.engine_libraries")

WEATHER = Tool("get_weather", "Says the weather.", '{"type": "object", "properties": {"city": {"type": "string"}}}')
CALL = ToolCall("call_abcdefghijklmnopqrstuvwx", "get_weather", '{"city": "Zürich"}')
QUESTION = ChatMessage("user", "Is it <warm> & dry?")
CONVERSATION = (QUESTION, ChatMessage("assistant", "", (CALL,)), ChatMessage("tool", "18 °C", tool_call_id=CALL.id))
NOON = int(datetime(2031, 2, 3, 12, tzinfo=UTC).timestamp())
FAMILIES = {
    "hermes": chat_templates.HERMES,
    "llama": chat_templates.LLAMA,
    "mistral": chat_templates.MISTRAL,
    "gemma": chat_templates.GEMMA,
    "phi": chat_templates.PHI,
    "packaged": chat_templates.packaged(),
}
SPECIAL = SpecialTokens(chat_templates.SPECIAL)


@cache
def chat_library() -> ChatLibrary:
    return ChatLibrary()


def opened(source: str, *, with_library: bool = True) -> ChatTemplate:
    template = OpenTemplate(source, "<s>", "</s>", chat_templates.SPECIAL)
    return ChatTemplate(chat_library() if with_library and library.PATH.exists() else None, template)


@cache
def template(family: str, *, with_library: bool = True) -> ChatTemplate:
    return opened(FAMILIES[family], with_library=with_library)


def prompt_of(messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...] = (), *, marked: bool = False) -> RenderPrompt:
    return RenderPrompt(prompt_plan.message_rows(messages), prompt_plan.tool_rows(tools), now=NOON, marked=marked)


def render(family: str, messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...] = (), *, with_library: bool = True) -> str:
    return template(family, with_library=with_library).render(prompt_of(messages, tools)).prompt


RENDERED = {
    "hermes": "<|im_start|>system\nYou answer questions.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "llama": "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 03 Feb 2031<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] hi[/INST]",
    "gemma": "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "phi": "<|user|>\nhi<|end|>\n<|assistant|>\n",
    "packaged": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.mark.parametrize("with_library", [pytest.param(True, marks=built), False], ids=["llama.cpp", "Jinja"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_renders_a_question(family: str, with_library: bool) -> None:
    assert render(family, (ChatMessage("user", "hi"),), with_library=with_library) == RENDERED[family]


@built
def test_answer_of_a_template_without_thoughts_and_tools_needs_no_parser() -> None:
    for family in FAMILIES:
        assert template(family).render(prompt_of((QUESTION,))).parser == ""
    assert template("hermes").render(prompt_of((QUESTION,), (WEATHER,))).parser != ""


@built
@pytest.mark.parametrize(("family", "reads"), [(family, family in ("hermes", "llama")) for family in FAMILIES])
def test_templates_without_calls_use_the_generic_form(family: str, reads: bool) -> None:
    rendered = template(family).render(prompt_of((QUESTION,), (WEATHER,)))
    assert (template(family).capabilities.reads_calls, rendered.generic) == (reads, not reads)


@pytest.mark.parametrize("with_library", [pytest.param(True, marks=built), False], ids=["llama.cpp", "Jinja"])
@pytest.mark.parametrize("family", ["gemma", "phi", "packaged"])
def test_generic_form_writes_tools_calls_and_results_as_text(family: str, with_library: bool) -> None:
    conversation = (QUESTION, ChatMessage("assistant", "One moment.", (CALL,)), ChatMessage("tool", "warm", tool_call_id=CALL.id), QUESTION)
    rendered = render(family, conversation, (WEATHER,), with_library=with_library)
    function = {"name": WEATHER.name, "description": WEATHER.description, "parameters": json.loads(WEATHER.parameters)}
    assert json.dumps(function) in rendered
    call = f'One moment.\n{{"tool_calls": [{{"name": "{CALL.name}", "arguments": {CALL.arguments}}}]}}'
    result = f"Result of {CALL.name}: warm\n\n{QUESTION.content}"
    written = rendered.replace('{"city":"Zürich"}', CALL.arguments)
    assert 0 < written.index(QUESTION.content) < written.index(call) < written.index(result)


@pytest.mark.parametrize(
    ("source", "before", "after"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}", "system: You can call", "\n\nhelp|user: hi|"),
        ("{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}|{% endfor %}", "user: You can call", "|user: hi|"),
    ],
    ids=["a template with a system message", "one without"],
)
def test_tools_as_text_are_where_the_template_shows_them(source: str, before: str, after: str) -> None:
    chat = (ChatMessage("system", "help"), ChatMessage("user", "hi"))
    found = opened(source, with_library=False).render(prompt_of(chat, (WEATHER,))).prompt
    assert found.startswith(before)
    assert found.endswith(after)
    assert found.count(f'"name": "{WEATHER.name}"') == 1


@built
def test_tools_and_calls_in_hermes_format() -> None:
    rendered = render("hermes", CONVERSATION, (WEATHER,))
    assert '"name": "get_weather"' in rendered
    assert "<|im_start|>user\nIs it <warm> & dry?<|im_end|>" in rendered
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>' in rendered
    assert rendered.endswith("<tool_response>\n18 °C\n</tool_response><|im_end|>\n<|im_start|>assistant\n")


@built
def test_short_ids_match_between_a_call_and_its_answer() -> None:
    name = "mistralai-Mistral-Nemo-Instruct-2407.jinja"
    chat = opened((engine_libraries.templates_folder() / name).read_text(encoding="utf-8"))
    rendered = chat.render(prompt_of((*CONVERSATION, ChatMessage("assistant", "Warm."), QUESTION), (WEATHER,))).prompt
    called, answered = (re.search(pattern, rendered) for pattern in (r'"id": "(\w{9})"', r'"call_id": "(\w{9})"'))
    assert called is not None
    assert answered is not None
    assert called[1] == answered[1]


@built
def test_thoughts_of_earlier_answers_are_given_back() -> None:
    source = "{% for m in messages %}{{ m.role }}{{ '<think>' + m.reasoning_content if m.reasoning_content }}: {{ m.content }}|{% endfor %}"
    said = ChatMessage("assistant", "Yes.", reasoning="Hm.")
    for with_library in (True, False):
        rendered = opened(source, with_library=with_library).render(prompt_of((QUESTION, said, QUESTION))).prompt
        assert "assistant<think>Hm.: Yes." in rendered


# --- callers' text never becomes a special token ---------------------------------------------------------------------

TOKENIZER = re.compile("|".join(map(re.escape, chat_templates.SPECIAL)))
#: Callers' text: special tokens, their halves, escapes that JSON decodes, and ordinary letters.
written = st.lists(
    st.sampled_from(
        (*chat_templates.SPECIAL, "<|im_", "end|>", "[INS", "T]", "\\u003c|im_end|>", '"', "\\", " ", "\n", "a", "ä", "\ufdd0")
    ),
    max_size=4,
).map("".join)


def specials(family: str, messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...]) -> list[str]:
    """Return the special tokens that a tokenizer finds in the rendered chat, in order."""
    parts = SPECIAL.cut(template(family).render(prompt_of(messages, tools, marked=True)).prompt)
    return [found for part in parts for found in TOKENIZER.findall(part)]


@built
@pytest.mark.parametrize("family", ["hermes", "llama", "mistral", "packaged"])
@given(data=st.data())
def test_caller_text_never_becomes_a_special_token(family: str, data: st.DataObject) -> None:
    def text() -> str:
        return data.draw(written)

    schema = {"type": "object", "properties": {"k" + text(): {"type": "string", "enum": ["e" + text()]}}}
    tool = Tool("f" + text(), text(), json.dumps(schema, ensure_ascii=data.draw(st.booleans())))
    identity = "i" + text()
    call = ToolCall(identity, "f" + text(), json.dumps({"k" + text(): [text()]}))
    question = ChatMessage("user", "q" + text())
    chat = (question, ChatMessage("assistant", "a" + text(), (call,)), ChatMessage("tool", "t" + text(), tool_call_id=identity))
    plain = Tool("f", "", json.dumps({"type": "object", "properties": {"a": {"type": "string", "enum": ["b"]}}}))
    call = ToolCall("i", "f", '{"a": ["b"]}')
    calm = (ChatMessage("user", "u"), ChatMessage("assistant", "t", (call,)), ChatMessage("tool", "r", tool_call_id="i"))
    assert specials(family, chat, (tool,)) == specials(family, calm, (plain,))


@built
def test_json_cannot_smuggle_in_a_special_token() -> None:
    call = ToolCall("a", "get_weather", r'{"city": "\u003c|im_end|>", "<|im_start|>": 1}')
    rendered = template("hermes").render(prompt_of((QUESTION, ChatMessage("assistant", "", (call,)), QUESTION), marked=True)).prompt
    assert '"<\ufdd0|im_end|>"' in rendered
    assert '"<\ufdd0|im_start|>"' in rendered


@built
def test_template_variables_are_marked_and_the_parser_is_not() -> None:
    source = "{{ greeting }}" + chat_templates.HERMES
    tool = Tool("f<|im_end|>", "", '{"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}')
    request = msgspec.structs.replace(prompt_of((QUESTION,), (tool,), marked=True), variables={"greeting": "<|im_end|>"})
    rendered = opened(source).render(request)
    assert rendered.prompt.startswith("<\ufdd0|im_end|>")
    assert "f<|im_end|>" in rendered.parser
    assert "\ufdd0" not in rendered.parser


# --- unusable templates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param("a\nb\n{% if %}", "line 3: ", id="its syntax"),
        pytest.param("a\n{{ raise_exception('roles must alternate') }}", "line 2: roles must alternate", id="its own refusal"),
        pytest.param("a\n\n{{ messages[0].content.nothing.at.all }}", "line 3: ", id="what is not there"),
        pytest.param("{{ ''.__class__.__mro__[1].__subclasses__() }}", "line 1: ", id="what reaches for the interpreter"),
        pytest.param("{{ messages.append(1) }}", "line 1: ", id="a change of its arguments"),
        pytest.param("{{ '' | no_such_filter }}", "line 1: ", id="an unknown filter"),
        pytest.param("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "recursion|nested", id="deep nesting"),
    ],
)
def test_template_that_nothing_can_render_is_refused_with_its_line(source: str, reason: str) -> None:
    with pytest.raises(NotUnderstood, match=reason):
        opened(source, with_library=False)


@built
@pytest.mark.parametrize("source", ["a\nb\n{% if %}", "a\nb\n{{ raise_exception('roles must alternate') }}"])
def test_template_that_llama_cpp_refuses_too_is_refused_with_its_line(source: str) -> None:
    with pytest.raises(NotUnderstood, match="line 3: "):
        opened(source)


@built
def test_template_that_only_jinja_can_render_is_used() -> None:
    source = "{% generation %}{{ messages[0].content | urlize(5) }}{% endgeneration %}"
    chat = opened(source)
    assert chat.render(prompt_of((ChatMessage("user", "hello"),))).prompt == "hello"
    assert not chat.capabilities.reads_calls


def test_model_without_a_template_takes_plain_prompts() -> None:
    chat = opened("", with_library=False)
    assert chat.render(prompt_of((ChatMessage("user", "a<|im_end|>"),), marked=True)).prompt == "a<\ufdd0|im_end|>"
    with pytest.raises(NotUnderstood, match="only supports plain prompts"):
        chat.render(prompt_of(CONVERSATION))
    with pytest.raises(NotUnderstood, match="only supports plain prompts"):
        chat.render(prompt_of((ChatMessage("system", "s"), QUESTION)))


# --- the generic form --------------------------------------------------------------------------------------------------


def read(text: str) -> tuple[str, tuple[ParsedCall, ...], int]:
    parsed = template("phi", with_library=False).parse(ParseAnswer("generic:", text))
    return parsed.content, parsed.calls, parsed.end


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        pytest.param("Hi {there}", "Hi {there}", [], id="no call"),
        pytest.param('So: {"tool_ca', "So:", [], id="what may become one"),
        pytest.param('{"tool_calls": [{"name": "f", "arguments": {"a": "}\\"', "", [("f", '{"a": "}\\"')], id="a part of a call"),
        pytest.param(
            'So {"tool_calls": [{"name": "f", "arguments": {}}, {"name": "g\\u00e4", "arguments": {"x": [1]}}]}',
            "So",
            [("f", "{}"), ("gä", '{"x": [1]}')],
            id="two calls behind a text",
        ),
        pytest.param('{"tool_calls": [{"name": 7}]}', "", [], id="no name"),
    ],
)
def test_generic_calls_are_read(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    found, parsed, end = read(text)
    assert (found, [(call.name, call.arguments) for call in parsed], end) == (content, calls, len(content))
    for cut in range(len(text)):
        _, earlier, _ = read(text[:cut])
        assert all(call.arguments.startswith(before.arguments) for before, call in zip(earlier, parsed, strict=False))


@built
def test_generic_calls_behind_thoughts_are_read() -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}<think>\n"
    chat = opened(source)
    rendered: RenderedPrompt = chat.render(prompt_of((QUESTION,), (WEATHER,)))
    if rendered.thinking_start:
        text = 'Hm.</think>Well. {"tool_calls": [{"name": "f", "arguments": {}}]}'
        parsed = chat.parse(ParseAnswer(rendered.parser, text))
        assert (parsed.reasoning.strip(), parsed.content, parsed.calls) == ("Hm.", "Well.", (ParsedCall("f", "{}"),))
        assert parsed.end == len("Hm.</think>Well.")
    assert rendered.generic
    assert generic_form.TRIGGER in rendered.prompt


def test_choice_of_a_tool_is_no_part_of_the_prompt() -> None:
    chat = template("hermes", with_library=False)
    automatic = prompt_of((QUESTION,), (WEATHER,))
    assert chat.render(msgspec.structs.replace(automatic, choice=ToolChoice.REQUIRED)).prompt == chat.render(automatic).prompt


@built
def test_special_tokens_in_calls_are_text_of_answers() -> None:
    source = (engine_libraries.templates_folder() / "google-gemma-4-31B-it.jinja").read_text(encoding="utf-8")
    special = ("<bos>", "<eos>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|image>")
    shown = ChatTemplate(chat_library(), OpenTemplate(source, "<bos>", "<eos>", special)).capabilities.shown
    assert shown == ("<|tool_call>", "<tool_call|>", '<|"|>')


LATE = tuple(
    ChatMessage(role, said)
    for role, said in (("system", "Topmost"), ("user", "Greeting"), ("system", "Brevity"), ("assistant", "Consent"), ("user", "Further"))
)


@built
@pytest.mark.parametrize("path", vendored.sample(), ids=lambda path: path.stem)
def test_every_template_shows_later_instructions_where_they_are(path: Path) -> None:
    """Claude Code sends some behind the first question. Qwen 3.5 refuses them, gpt-oss drops them, DeepSeek moves them to the top."""
    template = ChatTemplate(vendored.library(), vendored.request_of(path))
    asked = prompt_plan.conversion_of(RenderChat(ModelName("m"), LATE), template.capabilities, marked=False)
    prompt = template.render(asked).prompt
    places = [prompt.find(message.content) for message in LATE]
    assert -1 not in places
    # Mistral Nemo's puts the first ones before the last question.
    assert places[1:] == sorted(places[1:])


def test_a_template_that_shows_later_instructions_gets_them_as_such() -> None:
    chat = opened(chat_templates.HERMES, with_library=False)
    asked = prompt_plan.conversion_of(RenderChat(ModelName("m"), LATE), chat.capabilities, marked=False)
    assert "<|im_start|>system\nBrevity<|im_end|>" in chat.render(asked).prompt
