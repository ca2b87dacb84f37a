"""What only `client.beta` has: more fields and blocks, and the tool runner."""

from functools import partial
from typing import Any

from anthropic import BadRequestError, beta_async_tool, beta_tool
from anthropic.lib.tools import ToolError
from anthropic.types.beta import BetaToolUnionParam
from checklist import error_of, script

from checks.anthropic import fields, helpers, tools
from checks.anthropic.client import HELLO, ROME, SCRIPTED, TOOL, Json, async_client, checks, client, said, text
from checks.anthropic.client import ask as ask_plainly
from checks.anthropic.client import is_refused as is_refused_plainly

beta = client.beta.messages
ask = partial(ask_plainly, create=beta.with_raw_response.create)
is_refused = partial(is_refused_plainly, create=beta.with_raw_response.create)
MADE: list[str] = []


@beta_tool
def get_weather(city: str) -> str:
    """Say the weather.

    Args:
        city: The name of a city.
    """
    MADE.append(city)
    return f"18 degrees in {city}"


@beta_tool
def get_time(city: str) -> str:
    """Say the time."""
    return f"noon in {city}"


def run(turn: Json | None = None, **more: Any) -> Any:
    """Return a runner of the tool for a conversation in which the model calls it and then says the result."""
    return beta.tool_runner(**{**said(turn=turn or {"calls": [ROME]}), "tools": [get_weather], **more})


RESULT = "Results: 18 degrees in Rome; images: 0"

# --- fields -----------------------------------------------------------------------------------------------------------------------


@checks("beta.context_management", "beta.Message.context_management", "beta.event message_delta.context_management")
def _() -> None:
    edits = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}, {"type": "clear_tool_uses_20250919"}]}
    assert ask(context_management=edits).context_management.applied_edits == []
    *_, end, _ = beta.create(**said(), context_management=edits, stream=True)
    assert end.context_management.applied_edits == []


@checks("beta.betas")
def _() -> None:
    assert ask(betas=["context-management-2025-06-27", "from-the-future-2027-01-01"]).content[0].text == HELLO["say"]


def _is_ignored(value: Any, name: str) -> None:
    assert ask(**{name: value}, ignores=(name,)).content[0].text == HELLO["say"]


IGNORED = {
    "billing_policy": {"type": "billing_policy", "bill_to": "self"},
    "fallback_credit_token": {"token": "abc", "mode": "best_effort"},
    "fallbacks": [{"model": "claude-9"}],
    "mcp_servers": [{"type": "url", "name": "files", "url": "https://mcp.example"}],
}
for name, value in IGNORED.items():
    checks.add(f"beta.{name}", partial(_is_ignored, value, name))


@checks("beta.output_config.task_budget")
def _() -> None:
    budget = {"type": "tokens", "total": 20_000}
    assert ask(output_config={"task_budget": budget}, ignores=("output_config.task_budget",)).content[0].text == HELLO["say"]


@checks("beta.thinking.block_binding")
def _() -> None:
    thinking = {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "drop_block"}}
    assert ask(thinking=thinking, ignores=("thinking.block_binding",)).content[0].text == HELLO["say"]


@checks("beta.thread", "beta.thread[create]", "beta.thread[continue]", "beta.thread.previous_message_id", "beta.messages.thread()")
def _() -> None:
    for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
        is_refused("conversations are not stored", thread=thread)
    started = beta.thread(model=SCRIPTED, max_tokens=50, unsupported_request_behavior="continue_unthreaded")
    assert started.send({"role": "user", "content": script(**HELLO)}).content[0].text == HELLO["say"]
    assert started.send({"role": "user", "content": script(report=["messages"])}).content[0].text.count("role") == 3


@checks("beta.compaction")
def _() -> None:
    is_refused("nothing is summarized", compaction={"type": "summarize"})


REFUSED = {
    "thread": (
        "prompts are not stored; send the whole conversation",
        ["beta.thread", "beta.thread[create]", "beta.thread[continue]", "beta.messages.thread()"],
    ),
    "compaction": (
        "nothing is summarized here, and only Anthropic can read its summaries; shorten the conversation yourself",
        ["beta.compaction", "beta.messages.content[compaction]", "tool_runner.compact_before_next_turn()"],
    ),
}

# --- blocks -----------------------------------------------------------------------------------------------------------------------


def _block_is_ignored(kind: str, block: Json) -> None:
    answer = {"role": "assistant", "content": [{"type": kind, **block}, text("Two.")]}
    asked = ask({"role": "user", "content": "One."}, answer, ignores=(f"messages.content[{kind}]",))
    assert asked.content[0].text == HELLO["say"]


BLOCKS: dict[str, Json] = {
    "advisor_tool_result": {"tool_use_id": "srvtoolu_1", "content": {"type": "advisor_result", "text": "Yes."}},
    "mcp_tool_use": {"id": "mcptoolu_1", "name": "read", "server_name": "files", "input": {}},
    "mcp_tool_result": {"tool_use_id": "mcptoolu_1", "content": "A"},
    "mcp_tool_listing": {"mcp_server_name": "files", "tools": []},
    "fallback": {"from": {"model": "a"}, "to": {"model": "b"}, "trigger": {}},
}
for name, block in BLOCKS.items():
    checks.add(f"beta.messages.content[{name}]", partial(_block_is_ignored, name, block))


@checks("beta.messages.content[compaction]")
def _() -> None:
    summary = {"role": "assistant", "content": [{"type": "compaction", "content": "They said hello."}]}
    is_refused("compaction", {"role": "user", "content": "One."}, summary)


@checks("beta.messages.clear_at", "beta.messages.output_config", "beta.messages.output_config.effort")
def _() -> None:
    system = {"role": "system", "content": "Be brief.", "clear_at": "never", "output_config": {"effort": "low"}}
    asked = ask({"role": "user", "content": "One."}, system, ignores=("messages.clear_at", "messages.output_config"))
    assert asked.content[0].text == HELLO["say"]


def _offered(change: Json) -> list[str]:
    """Return the names of the tools that reach the model after a change of them."""
    offered = ask({"role": "user", "content": "One."}, {"role": "system", "content": [change]}, turn={"report": ["tools"]}, tools=[TOOL])
    return [tool["function"]["name"] for tool in helpers.parsed(offered)["tools"] or ()]


@checks("beta.messages.content[tool_addition]", "beta.messages.content.tool")
def _() -> None:
    definition = {"type": "tool_definition", "definition": {**TOOL, "name": "get_time"}}
    assert _offered({"type": "tool_addition", "tool": definition}) == ["get_weather", "get_time"]
    assert _offered({"type": "tool_addition", "tool": {"type": "tool_reference", "name": "get_weather"}}) == ["get_weather"]


@checks("beta.messages.content[tool_removal]")
def _() -> None:
    assert _offered({"type": "tool_removal", "tool": {"type": "tool_reference", "name": "get_weather"}}) == []


tools.add_dropped("beta", BetaToolUnionParam)

# --- the tool runner --------------------------------------------------------------------------------------------------------------


@checks("beta.messages.tool_runner()", "beta_tool()", "tool_runner.until_done()")
def _() -> None:
    MADE.clear()
    first, last = run()
    assert (last.content[0].text, MADE) == (RESULT, ["Rome"])
    # It sends the whole conversation each time.
    assert last.usage.input_tokens > first.usage.input_tokens


@checks("tool_runner: each message", "tool_runner(thread=False)")
def _() -> None:
    assert [message.stop_reason for message in run(thread=False)] == ["tool_use", "end_turn"]


@checks("tool_runner(stream=True)")
def _() -> None:
    last = [stream.get_final_message().content[-1] for stream in run(stream=True)]
    assert [block.type for block in last] == ["tool_use", "text"]
    assert last[1].text == RESULT


@checks("tool_runner(run_tools_eagerly=True)")
def _() -> None:
    assert run(stream=True, run_tools_eagerly=True).until_done().content[0].text == RESULT


@checks("tool_runner(max_iterations=)")
def _() -> None:
    assert len(list(run(max_iterations=1))) == 1


@checks("tool_runner.generate_tool_call_response()")
def _() -> None:
    runner = run()
    next(runner)
    assert runner.generate_tool_call_response()["content"][0]["content"] == "18 degrees in Rome"


@checks("tool_runner.append_messages()", "tool_runner.set_messages_params()")
def _() -> None:
    runner = run()
    for message in runner:
        if message.stop_reason == "tool_use":
            runner.set_messages_params(lambda params: {**params, "max_tokens": 70})
            result = runner.generate_tool_call_response()
            runner.append_messages(message, result, {"role": "user", "content": script(report=["max_tokens"])})
    assert helpers.parsed(runner.until_done()) == {"max_tokens": 70}


@checks("tool_runner.add_tools()", "tool_runner.remove_tools()")
def _() -> None:
    runner = run()
    for message in runner:
        if message.stop_reason == "tool_use":
            result = runner.generate_tool_call_response()
            runner.add_tools(get_time)
            runner.remove_tools(get_weather)
            runner.append_messages(message, result, {"role": "user", "content": script(report=["tools"])})
    offered = helpers.parsed(runner.until_done())["tools"]
    assert [tool["function"]["name"] for tool in offered] == ["get_time"]


@checks("tool_runner.compact_before_next_turn()")
def _() -> None:
    runner = run()
    next(runner)
    runner.compact_before_next_turn()
    assert "nothing is summarized" in str(error_of(BadRequestError, runner.until_done))


@checks("ToolError")
def _() -> None:
    @beta_tool
    def get_weather(city: str) -> str:
        """Say the weather."""
        raise ToolError([text(f"no such city: {city}")])

    assert run(tools=[get_weather]).until_done().content[0].text == "Results: Error: no such city: Rome; images: 0"


@checks("tool_runner(output_format=)")
def _() -> None:
    runner = run(turn={"say": helpers.ANN.model_dump_json()}, output_format=helpers.Person)
    assert runner.until_done().parsed_output == helpers.ANN


@checks("AsyncAnthropic.beta.messages.tool_runner()", "beta_async_tool()")
async def _() -> None:
    @beta_async_tool
    async def get_weather(city: str) -> str:
        """Say the weather."""
        return f"18 degrees in {city}"

    async with async_client() as client:
        runner = client.beta.messages.tool_runner(**said(turn={"calls": [ROME]}), tools=[get_weather])
        assert (await runner.until_done()).content[0].text == RESULT
        streaming = client.beta.messages.tool_runner(**said(turn={"calls": [ROME]}), tools=[get_weather], stream=True)
        assert (await streaming.until_done()).content[0].text == RESULT


# --- the other methods ------------------------------------------------------------------------------------------------------------


@checks("beta.messages.create()", "beta.messages.create(stream=)")
def _() -> None:
    assert ask().content[0].text == HELLO["say"]
    assert list(beta.create(**said(), stream=True))[-1].type == "message_stop"


@checks("beta.messages.stream()")
def _() -> None:
    with beta.stream(**helpers.EVERYTHING) as stream:
        assert "".join(stream.text_stream) == "One moment."
        assert stream.get_final_message().content[2].input == ROME[1]


@checks("beta.messages.parse()", "beta.messages.stream(output_format=)")
def _() -> None:
    assert beta.parse(**helpers.PERSON, output_format=helpers.Person).parsed_output == helpers.ANN
    with beta.stream(**helpers.PERSON, output_format=helpers.Person) as stream:
        assert stream.get_final_message().parsed_output == helpers.ANN


@checks("beta.messages.create(output_format)")
def _() -> None:
    # The older name of `output_config.format`.
    form = {"type": "json_schema", "schema": fields.SCHEMA}
    asked = ask(turn={"report": ["response_format"]}, extra_body={"output_format": form})
    assert helpers.parsed(asked)["response_format"]["json_schema"]["schema"] == fields.SCHEMA


@checks("beta.messages.count_tokens()")
def _() -> None:
    counted = beta.count_tokens(model=SCRIPTED, messages=[{"role": "user", "content": "Hello"}], tools=[TOOL], betas=["a-2026-01-01"])
    assert counted.input_tokens > 0


@checks("beta.models.list()", "beta.models.retrieve()")
def _() -> None:
    assert SCRIPTED in [model.id for model in client.beta.models.list()]
    assert client.beta.models.retrieve(SCRIPTED).id == SCRIPTED


# --- answers ----------------------------------------------------------------------------------------------------------------------


@checks("beta.Message.input_transformations", "beta.Usage.fallback_credit", "beta.Usage.iterations")
def _() -> None:
    answer = ask()
    assert [answer.input_transformations, answer.usage.fallback_credit, answer.usage.iterations] == [None] * 3


@checks("beta.delta.compaction_delta", "beta.StopReason.compaction")
def _() -> None:
    # Asking for it is refused.
    is_refused("nothing is summarized", compaction={"type": "summarize"})
