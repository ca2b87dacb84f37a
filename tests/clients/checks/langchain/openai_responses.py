"""ChatOpenAI with the Responses API."""

import json
from functools import partial
from typing import Any

import openai
from checklist import error_of, script
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, custom_tool

from checks.langchain.chat_checks import ROME, add_common_checks, checks, get_weather, report
from checks.langchain.openai_chats import make as make_chat


def make(**options: Any) -> ChatOpenAI:
    return make_chat(use_responses_api=True, **options)


add_common_checks("Responses", make)


def ignored(answer: Any) -> list[str]:
    """Return what the answer says had no effect."""
    found: str = answer.response_metadata["headers"].get("x-aimesh-ignored", "")
    return found.split(", ")


@checks("ChatOpenAI.use_responses_api", "ChatOpenAI.output_version")
def _() -> None:
    for version, kind in (("responses/v1", "text"), ("v1", "text")):
        answer = make(output_version=version).invoke(script(say="Hi"))
        assert [block["type"] for block in answer.content] == [kind]
        assert answer.response_metadata["status"] == "completed"
    assert make(output_version="v0").invoke(script(say="Hi")).text == "Hi"


@checks("ChatOpenAI.reasoning")
def _() -> None:
    assert report(make(reasoning={"effort": "low"}), "reasoning_effort") == "low"
    answer = make(reasoning={"effort": "low", "summary": "auto"}).invoke(script(think="Well.", say="Hi"))
    (thoughts,) = (block for block in answer.content_blocks if block["type"] == "reasoning")
    assert thoughts["reasoning"] == "Well."
    assert answer.usage_metadata["output_token_details"]["reasoning"] == 1


@checks("reasoning in a stream")
def _() -> None:
    chunks = make(reasoning={"summary": "auto"}).stream(script(think="Well, well.", say="Hi"))
    thoughts = [block for chunk in chunks for block in chunk.content_blocks if block["type"] == "reasoning"]
    assert "".join(block.get("reasoning", "") for block in thoughts) == "Well, well."


@checks("ChatOpenAI.include")
def _() -> None:
    assert make(include=["reasoning.encrypted_content"]).invoke(script(say="Hi")).text == "Hi"


@checks("ChatOpenAI.truncation")
def _() -> None:
    assert make(truncation="auto").invoke(script(say="Hi")).text == "Hi"


@checks("ChatOpenAI.context_management")
def _() -> None:
    manages = make(context_management=[{"type": "compaction", "compact_threshold": 1000}])
    assert "context_management" in ignored(manages.invoke(script(say="Hi")))


@checks("ChatOpenAI.use_previous_response_id")
def _() -> None:
    chat = make(use_previous_response_id=True)
    first = chat.invoke(script(say="Hi"))
    error = error_of(openai.BadRequestError, partial(chat.invoke, [HumanMessage("Hi"), first, HumanMessage("Ho")]))
    assert "whole conversation as input" in error.message, error.message


@checks("Responses verbosity and store")
def _() -> None:
    assert make(verbosity="low", store=False).invoke(script(say="Hi")).text == "Hi"


@checks("Responses answers sent back")
def _() -> None:
    for options in ({}, {"store": False}, {"store": True}, {"output_version": "v1"}):
        bound = make(reasoning={"summary": "auto"}, **options).bind_tools([get_weather])
        question = HumanMessage(script(think="Well.", say="Wait.", calls=[ROME]))
        called = bound.invoke([question])
        answer = bound.invoke([question, called, get_weather.invoke(called.tool_calls[0])])
        assert answer.text == "Results: 18 degrees in Rome; images: 0"


@checks("custom_tool()")
def _() -> None:
    @custom_tool
    def run_code(code: str) -> str:
        """Run code."""
        return f"ran {code}"

    bound, question = (
        make(output_version="responses/v1").bind_tools([run_code]),
        HumanMessage(script(calls=[["run_code", {"input": "1+1"}]])),
    )
    called = bound.invoke([question])
    result = run_code.invoke(called.tool_calls[0])
    assert bound.invoke([question, called, result]).text == "Results: ran 1+1; images: 0"


@checks("Responses built-in tools")
def _() -> None:
    for kind in ("web_search", "file_search", "code_interpreter", "image_generation"):
        answer = make().bind_tools([get_weather, {"type": kind}]).invoke(script(report=["tools"]))
        assert [one["function"]["name"] for one in json.loads(answer.text)["tools"]] == ["get_weather"]
        assert f"tools[{kind}]" in ignored(answer)


@checks("Responses configuration_update")
def _() -> None:
    update = [
        {"type": "configuration_update", "reasoning": {"effort": "high"}},
        {"type": "text", "text": script(report=["reasoning_effort"])},
    ]
    assert json.loads(make(reasoning={"effort": "low"}).invoke([HumanMessage(update)]).text) == {"reasoning_effort": "high"}


#: What concerns only the client.
_LOCAL = {
    *("client", "async_client", "root_client", "root_async_client", "http_client", "http_async_client", "http_socket_options"),
    *("max_retries", "request_timeout", "openai_proxy", "openai_organization", "stream_chunk_timeout", "tiktoken_model_name"),
}
checks.ensure_named("ChatOpenAI", set(ChatOpenAI.model_fields) - set(BaseChatModel.model_fields) - _LOCAL)
