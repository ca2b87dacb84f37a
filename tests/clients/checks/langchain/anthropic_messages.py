"""ChatAnthropic."""

import json
from functools import partial
from typing import Any

import anthropic
from checklist import error_of, script
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage

from checks.langchain.chat_checks import ADA, PERSON, PNG, ROME, SCRIPTED, Person, add_common_checks, checks, get_weather, report


def make(**options: Any) -> ChatAnthropic:
    return ChatAnthropic(**{"model": SCRIPTED, "max_retries": 0, "max_tokens": 200, **options})


add_common_checks("ChatAnthropic", make)


def _reaches(name: str, value: Any, there: str) -> None:
    assert report(make(**{name: value}), there) == value


for name, value in {"temperature": 0.25, "top_p": 0.5, "top_k": 5, "max_tokens": 77}.items():
    checks.add(f"ChatAnthropic.{name}", partial(_reaches, name, value, name))


@checks("ChatAnthropic.model", "ChatAnthropic.anthropic_api_url", "ChatAnthropic.anthropic_api_key")
def _() -> None:
    error_of(anthropic.AuthenticationError, partial(make(api_key="wrong").invoke, "Hi"))
    assert make().invoke("Hi").response_metadata["model"] == SCRIPTED


@checks("ChatAnthropic.stop_sequences")
def _() -> None:
    assert report(make(stop_sequences=["END"]), "stop") == ["END"]


@checks("ChatAnthropic.streaming")
def _() -> None:
    assert make(streaming=True).invoke(script(say="Hi you")).text == "Hi you"


@checks("ChatAnthropic.stream_usage")
def _() -> None:
    used = [chunk.usage_metadata for chunk in make().stream(script(say="Hi you")) if chunk.usage_metadata]
    assert sum(each["output_tokens"] for each in used) == 2


@checks("ChatAnthropic.thinking")
def _() -> None:
    for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}):
        answer = make(thinking=thinking, max_tokens=2000).invoke(script(think="Well.", say="Hi"))
        assert [block["type"] for block in answer.content] == ["thinking", "text"]
        assert answer.content_blocks[0]["reasoning"] == "Well."
    assert report(make(thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2000), "reasoning_effort") == "low"


@checks("ChatAnthropic thinking sent back")
def _() -> None:
    bound = make(thinking={"type": "adaptive"}).bind_tools([get_weather])
    question = HumanMessage(script(think="Well.", say="Wait.", calls=[ROME]))
    called = bound.invoke([question])
    result = get_weather.invoke(called.tool_calls[0])
    assert bound.invoke([question, called, result]).text == "Results: 18 degrees in Rome; images: 0"


@checks("ChatAnthropic thinking in a stream")
def _() -> None:
    chunks = make(thinking={"type": "adaptive"}).stream(script(think="Well, well.", say="Hi"))
    thoughts = [block for chunk in chunks for block in chunk.content_blocks if block["type"] == "reasoning"]
    assert "".join(block.get("reasoning", "") for block in thoughts) == "Well, well."


@checks("ChatAnthropic.output_config")
def _() -> None:
    assert report(make(output_config={"effort": "low"}, thinking={"type": "adaptive"}), "reasoning_effort") == "low"


@checks("ChatAnthropic.reasoning_effort")
def _() -> None:
    assert report(make(reasoning_effort="high", thinking={"type": "adaptive"}), "reasoning_effort") == "high"


def _accepted(name: str, value: Any) -> None:
    assert make(**{name: value}).invoke(script(say="Hi")).text == "Hi"


for name, value in {
    "betas": ["context-1m-2025-08-07"],
    "mcp_servers": [{"type": "url", "url": "https://example.org/mcp", "name": "docs"}],
    "container": "container_1",
    "inference_geo": "us",
    "user_profile_id": "user_1",
    "model_kwargs": {"service_tier": "auto"},
    "reuse_last_container": True,
}.items():
    checks.add(f"ChatAnthropic.{name}", partial(_accepted, name, value))


@checks("ChatAnthropic.context_management")
def _() -> None:
    edits = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    answer = make(context_management=edits, betas=["context-management-2025-06-27"]).invoke(script(say="Hi"))
    assert answer.response_metadata["context_management"] == {"applied_edits": []}


@checks("ChatAnthropic.default_headers")
def _() -> None:
    strict = make(default_headers={"x-aimesh-strict": "1"}, model_kwargs={"extra_body": {"next_year": 1}})
    assert "next_year" in str(error_of(anthropic.BadRequestError, partial(strict.invoke, "Hi")))


@checks("ChatAnthropic.with_structured_output() strict schema")
def _() -> None:
    bound = make().with_structured_output(Person, method="json_schema").first
    assert set(report(bound, "response_format")["json_schema"]["schema"]["properties"]) == {"name", "age"}
    assert (
        make().with_structured_output(Person.model_json_schema(), method="json_schema").invoke(script(say=json.dumps(PERSON[1])))
        == PERSON[1]
    )


@checks("ChatAnthropic cache_control")
def _() -> None:
    block = {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}
    assert report(make(), "messages.0", SystemMessage([block])) == {"role": "system", "content": "Be kind."}
    assert make().invoke(script(say="Hi"), cache_control={"type": "ephemeral"}).text == "Hi"


@checks("ChatAnthropic source blocks")
def _() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A note."}, "title": "Note"}
    content = report(make(), "messages.0.content", HumanMessage([document, picture]))
    assert "A note." in content[0]["text"]
    assert content[1]["type"] == "image_url"


@checks("ChatAnthropic PDF block")
def _() -> None:
    part = {"type": "file", "base64": "AAAA", "mime_type": "application/pdf"}
    assert "PDF" in str(error_of(anthropic.BadRequestError, partial(make().invoke, [HumanMessage([part])])))


@checks("ChatAnthropic image URL")
def _() -> None:
    part = {"type": "image", "url": "https://example.org/a.png"}
    assert "URL" in str(error_of(anthropic.BadRequestError, partial(make().invoke, [HumanMessage([part])])))


@checks("ChatAnthropic built-in tools")
def _() -> None:
    tools = [get_weather, {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]
    assert [one["function"]["name"] for one in report(make().bind_tools(tools), "tools")] == ["get_weather"]


@checks("ChatAnthropic.get_num_tokens_from_messages()")
def _() -> None:
    short = make().get_num_tokens_from_messages([HumanMessage("Hi")])
    assert 0 < short < make().get_num_tokens_from_messages([HumanMessage("Hi " * 100)], tools=[get_weather])


@checks("ChatAnthropic stop_reason")
def _() -> None:
    assert make().invoke(script(say="Hi", finish="length")).response_metadata["stop_reason"] == "max_tokens"
    assert make().bind_tools([get_weather]).invoke(script(calls=[ROME])).response_metadata["stop_reason"] == "tool_use"
    assert ADA.age == 36


#: What concerns only the client.
_LOCAL = {"max_retries", "default_request_timeout", "anthropic_proxy"}
checks.ensure_named("ChatAnthropic", set(ChatAnthropic.model_fields) - set(BaseChatModel.model_fields) - _LOCAL)
