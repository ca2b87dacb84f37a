import pytest

from services.inference.chat import library
from services.inference.chat.chat_messages import OpenTemplate, ParseAnswer, ParsedAnswer, ParsedCall, RenderPrompt
from services.inference.chat.library import ChatLibrary, NotUnderstood, OpenedTemplate

pytestmark = pytest.mark.skipif(not library.PATH.exists(), reason="libaimesh_chat was not built: python -m tools.engine_libraries")

#: Our own template, in a form that many models use.
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\nCall <tool_call>{"name": …, "arguments": …}</tool_call>:' }}
{%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if date_string is defined and say_date %}{{ date_string + strftime_now('|%Y-%m-%d') }}{% endif %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
USER: dict[str, object] = {"role": "user", "content": "What is the weather?"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: dict[str, object] = {"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": PARAMETERS}}


@pytest.fixture(scope="module")
def chat() -> ChatLibrary:
    return ChatLibrary()


@pytest.fixture
def template(chat: ChatLibrary) -> OpenedTemplate:
    return chat.open(OpenTemplate(TEMPLATE))


def test_call_is_rendered_and_read(chat: ChatLibrary, template: OpenedTemplate) -> None:
    rendered = template.render(RenderPrompt((USER,), (TOOL,)))
    assert rendered.prompt.endswith("What is the weather?<|im_end|>\n<|im_start|>assistant\n")
    assert [trigger.value for trigger in rendered.triggers] == ["<tool_call>\n"]
    answer = 'Let me see.<tool_call>\n{"name": "weather", "arguments": {"city": "Köln \\"1\\""}}\n</tool_call>'
    read = chat.parse(ParseAnswer(rendered.parser, answer))
    assert read == ParsedAnswer("", "Let me see.", (ParsedCall("weather", '{"city": "Köln \\"1\\""}'),), end=11)


def test_arguments_are_read_while_they_are_written(chat: ChatLibrary, template: OpenedTemplate) -> None:
    rendered = template.render(RenderPrompt((USER,), (TOOL,)))
    read = chat.parse(ParseAnswer(rendered.parser, '<tool_call>\n{"name": "weather", "arguments": {"city": "Kö'))
    assert [(call.name, call.arguments) for call in read.calls] == [("weather", '{"city": "Kö')]


def test_thoughts_are_apart(chat: ChatLibrary, template: OpenedTemplate) -> None:
    assert not template.capabilities.supports_reasoning_effort
    rendered = template.render(RenderPrompt((USER,)))
    assert (rendered.thinking_start, "</think>" in rendered.thinking_ends) == ("<think>", True)
    read = chat.parse(ParseAnswer(rendered.parser, "<think>\nHm.\n</think>\n\nRain."))
    assert (read.reasoning.strip(), read.content) == ("Hm.", "Rain.")
    assert chat.parse(ParseAnswer(rendered.parser, "<think>\nWärm. \n</thi")).end == len("<think>\nWärm.")


def test_date_is_an_argument(template: OpenedTemplate) -> None:
    said = RenderPrompt((USER,), variables={"say_date": True}, now=1_000_000_000)
    assert "09 Sep 2001|2001-09-09" in template.render(said).prompt


def test_template_that_cannot_be_read_is_refused_with_its_reason(chat: ChatLibrary) -> None:
    with pytest.raises(NotUnderstood, match="Unexpected token"):
        chat.open(OpenTemplate("{% if %}"))
    with pytest.raises(NotUnderstood, match="empty"):
        chat.open(OpenTemplate(""))


def test_answer_that_the_parser_refuses_is_not_understood(chat: ChatLibrary, template: OpenedTemplate) -> None:
    rendered = template.render(RenderPrompt((USER,), (TOOL,)))
    with pytest.raises(NotUnderstood, match="not what the template describes"):
        chat.parse(ParseAnswer(rendered.parser, '<tool_call>\n{"name": "other"'))
    with pytest.raises(NotUnderstood, match="parse error"):
        chat.parse(ParseAnswer("no parser", "text"))
