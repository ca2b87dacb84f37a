"""Ways to run an agent, its events and its tools."""

import typing
from typing import Any

from checklist import script
from pydantic_ai import (
    Agent,
    BinaryContent,
    DeferredToolRequests,
    DeferredToolResults,
    FunctionToolset,
    ModelResponseStreamEvent,
    ModelRetry,
    Tool,
    ToolReturn,
    direct,
)
from pydantic_ai.capabilities import NativeTool
from pydantic_ai.messages import ModelRequest
from pydantic_ai.native_tools import CodeExecutionTool, MCPServerTool, WebFetchTool, WebSearchTool

from checks.pydantic_ai.client import (
    ANN,
    APIS,
    CALL,
    EVERYTHING,
    HELLO,
    IMAGE,
    RESULT,
    ROME,
    SCRIPTED,
    THINKS,
    Person,
    checks,
    each,
    get_weather,
    opened,
    run,
)  # fmt: skip

# --- ways to run ------------------------------------------------------------------------------------------------------------------


async def _runs(api: str) -> None:
    assert (await run(api, {"calls": [ROME]}, tools=[get_weather])).output == RESULT


async def _streams_text(api: str) -> None:
    async with opened(api) as model, Agent(model).run_stream(script(**HELLO)) as result:
        assert [piece async for piece in result.stream_text(delta=True, debounce_by=None)] == ["Hello ", "you."]
        assert result.usage.output_tokens == 2


async def _streams_output(api: str) -> None:
    async with opened(api) as model, Agent(model, output_type=Person).run_stream(script(**CALL)) as result:
        assert [each async for each in result.stream_output(debounce_by=None)][-1] == ANN


async def _iterates(api: str) -> None:
    async with opened(api) as model, Agent(model, tools=[get_weather]).iter(script(calls=[ROME])) as running:
        nodes = [type(node).__name__ async for node in running]
    assert nodes == ["UserPromptNode", "ModelRequestNode", "CallToolsNode", "ModelRequestNode", "CallToolsNode", "End"]
    assert running.result is not None
    assert running.result.output == RESULT


async def _requests_directly(api: str) -> None:
    messages = [ModelRequest.user_text_prompt(script(**HELLO))]
    async with opened(api) as model:
        response = await direct.model_request(model, messages)
        assert (response.text, response.finish_reason) == (HELLO["say"], "stop")
        assert response.provider_response_id
        assert response.model_name == SCRIPTED
        async with direct.model_request_stream(model, messages) as stream:
            assert [event async for event in stream]
        assert stream.get().text == HELLO["say"]


for name, check in {
    "Agent.run()": _runs,
    "Agent.run_stream() text": _streams_text,
    "Agent.run_stream() output": _streams_output,
    "Agent.iter()": _iterates,
    "direct.model_request()": _requests_directly,
}.items():
    each(name, check)


@checks("Agent.run_sync()")
def _() -> None:
    assert Agent(f"openai-chat:{SCRIPTED}").run_sync(script(**HELLO)).output == HELLO["say"]
    assert Agent(f"openai-responses:{SCRIPTED}").run_sync(script(**HELLO)).output == HELLO["say"]
    assert Agent(f"anthropic:{SCRIPTED}").run_sync(script(**HELLO)).output == HELLO["say"]


@checks("Agent.run_stream_sync()")
def _() -> None:
    assert "".join(Agent(f"openai-chat:{SCRIPTED}").run_stream_sync(script(**HELLO)).stream_text(delta=True)) == HELLO["say"]


@checks("direct.model_request_sync()", "direct.model_request_stream_sync()")
def _() -> None:
    messages = [ModelRequest.user_text_prompt(script(**HELLO))]
    assert direct.model_request_sync(f"openai-chat:{SCRIPTED}", messages).text == HELLO["say"]
    with direct.model_request_stream_sync(f"openai-chat:{SCRIPTED}", messages) as stream:
        assert list(stream)


# --- events -------------------------------------------------------------------------------------------------------------------------

EVENTS = {
    "part_start",
    "part_delta",
    "part_end",
    "final_result",
    "function_tool_call",
    "function_tool_result",
    "agent_run_result",
}


async def _events(api: str, **agent: Any) -> list[Any]:
    async with (
        opened(api) as model,
        Agent(model, **agent).run_stream_events(script(turns=[EVERYTHING, HELLO]), model_settings=THINKS[api]) as events,
    ):
        return [event async for event in events]


async def _has_event(api: str, kind: str) -> None:
    assert kind in {event.event_kind for event in await _events(api, tools=[get_weather])}


async def _has_deltas(api: str) -> None:
    deltas = [event.delta for event in await _events(api, tools=[get_weather]) if event.event_kind == "part_delta"]
    assert {delta.part_delta_kind for delta in deltas} == {"text", "thinking", "tool_call"}


async def _has_output_events(api: str) -> None:
    async with opened(api) as model, Agent(model, output_type=Person).run_stream_events(script(**CALL)) as events:
        kinds = {event.event_kind async for event in events}
    assert {"output_tool_call", "output_tool_result"} <= kinds


for name in sorted(EVENTS):
    each(f"event.{name}", _has_event, APIS, name)
each("deltas of texts, thoughts and calls", _has_deltas)
each("event.output_tool_call", _has_output_events)
each("event.output_tool_result", _has_output_events)
STREAM_EVENTS = [kind.event_kind for kind in typing.get_args(typing.get_args(ModelResponseStreamEvent)[0])]

# --- tools ------------------------------------------------------------------------------------------------------------------------------


async def _tool_retries(api: str) -> None:
    tries: list[str] = []

    def get_weather(city: str) -> str:
        tries.append(city)
        if len(tries) == 1:
            raise ModelRetry("once more")
        return "18 degrees"

    found = await run(api, {"turns": [{"calls": [ROME]}, {"calls": [ROME]}]}, tools=[get_weather])
    assert tries == ["Rome", "Rome"]
    assert "18 degrees" in found.output


async def _tool_returns_image(api: str) -> None:
    def get_weather(city: str) -> ToolReturn:
        return ToolReturn(return_value="a picture", content=["the sky", IMAGE])

    assert (await run(api, {"calls": [ROME]}, tools=[get_weather])).output.endswith("images: 1")

    def get_picture(city: str) -> BinaryContent:
        return IMAGE

    assert (await run(api, {"calls": [["get_picture", {"city": "Rome"}]]}, tools=[get_picture])).output.endswith("images: 1")


async def _calls_in_parallel(api: str) -> None:
    found = await run(api, {"calls": [ROME, ["get_weather", {"city": "Oslo"}]]}, tools=[get_weather])
    assert "Rome" in found.output
    assert "Oslo" in found.output


async def _approves(api: str) -> None:
    async with opened(api) as model:
        agent = Agent(model, tools=[Tool(get_weather, requires_approval=True)], output_type=[str, DeferredToolRequests])
        first = await agent.run(script(calls=[ROME]))
        assert isinstance(first.output, DeferredToolRequests)
        approvals = {call.tool_call_id: True for call in first.output.approvals}
        last = await agent.run(message_history=first.all_messages(), deferred_tool_results=DeferredToolResults(approvals=approvals))
    assert last.output == RESULT


async def _toolset(api: str) -> None:
    assert (await run(api, {"calls": [ROME]}, toolsets=[FunctionToolset([get_weather])])).output == RESULT


for name, check in {
    "ModelRetry": _tool_retries,
    "ToolReturn": _tool_returns_image,
    "parallel calls": _calls_in_parallel,
    "requires_approval": _approves,
    "FunctionToolset": _toolset,
}.items():
    each(name, check)

SERVER: dict[str, tuple[Any, str, str]] = {
    "WebSearchTool": (WebSearchTool(), "tools[web_search]", "tools[web_search_20250305]"),
    "CodeExecutionTool": (CodeExecutionTool(), "tools[code_interpreter]", "tools[code_execution_20250825]"),
    "MCPServerTool": (MCPServerTool(id="files", url="https://mcp.example"), "tools[mcp]", "mcp_servers"),
    "WebFetchTool": (WebFetchTool(), "", "tools[web_fetch_20250910]"),
}


async def _native_tool_is_ignored(api: str, tool: Any, name: str) -> None:
    assert (await run(api, HELLO, capabilities=[NativeTool(tool)], ignores=(name,))).output == HELLO["say"]


for name, (tool, responses, messages) in SERVER.items():
    if responses:
        each(name, _native_tool_is_ignored, ("responses",), tool, responses)
    each(name, _native_tool_is_ignored, ("anthropic",), tool, messages)
