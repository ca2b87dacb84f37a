"""Every item and tool of the Responses API."""

import json
from functools import partial
from typing import Any

import openai
from checklist import script
from openai.types.responses import response_create_params
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from openai.types.responses.tool_param import ToolParam

from checks.openai.client import PARAMETERS, PNG, SCRIPTED, checks, client, has_no_effect, is_refused, tags_of, works
from checks.openai.responses import Person, create, report, said

TOOL = {"type": "function", "name": "get_weather", "description": "Says the weather.", "parameters": PARAMETERS, "strict": True}
FUNCTION = {"name": "get_weather", "description": "Says the weather.", "parameters": PARAMETERS}
CUSTOM = {"type": "custom", "name": "patch", "description": "Edits files.", "format": {"type": "text"}}
ROME = ["get_weather", {"city": "Rome"}]
CALL = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Rome"}'}


def functions(*tools: Any, **fields: Any) -> list[Any]:
    """Return the functions that reached the model."""
    return [tool["function"] for tool in report("tools", tools=list(tools), **fields) or []]


# --- tools ----------------------------------------------------------------------------------------------------------------------


@checks("responses.tools", "responses.tools.function")
def _() -> None:
    assert functions(TOOL) == [FUNCTION]
    answer = works(create, **said(say="Wait.", calls=[ROME, ROME]), tools=[TOOL])
    assert [item.type for item in answer.output] == ["message", "function_call", "function_call"]
    call = answer.output[1]
    assert (call.name, json.loads(call.arguments), call.status) == ("get_weather", {"city": "Rome"}, "completed")
    assert call.call_id != answer.output[2].call_id
    assert answer.tools[0].name == "get_weather"


@checks("responses.tools.custom")
def _() -> None:
    (item,) = works(create, **said(calls=[["patch", {"input": "*** Begin"}]]), tools=[CUSTOM]).output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "patch", "*** Begin")


@checks("responses.tools.custom grammar")
def _() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}
    (function,) = functions({**CUSTOM, "format": grammar})
    assert 'start: "a"' in function["description"]


@checks("responses.tools.namespace")
def _() -> None:
    space = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [TOOL, CUSTOM]}
    flat = [function["name"] for function in functions(space)]
    assert len(flat) == 2
    item, custom = works(create, **said(calls=[[flat[0], {"city": "Rome"}], [flat[1], {"input": "x"}]]), tools=[space]).output
    assert (item.type, item.namespace, item.name) == ("function_call", "crm", "get_weather")
    assert (custom.type, custom.namespace, custom.name, custom.input) == ("custom_tool_call", "crm", "patch", "x")


#: Those that run at OpenAI, or are built into its models. They are left out.
HOSTED = {
    "file_search": {"vector_store_ids": ["vs_1"]},
    "computer": {},
    "computer_use_preview": {"display_width": 1, "display_height": 1, "environment": "browser"},
    "web_search": {"search_context_size": "low"},
    "web_search_2025_08_26": {},
    "web_search_preview": {},
    "web_search_preview_2025_03_11": {},
    "mcp": {"server_label": "x", "server_url": "https://example.org"},
    "code_interpreter": {"container": {"type": "auto"}},
    "programmatic_tool_calling": {},
    "image_generation": {},
    "local_shell": {},
    "shell": {},
    "tool_search": {},
    "apply_patch": {},
}


def _left_out(kind: str) -> None:
    tool = {"type": kind, **HOSTED[kind]}
    answer = has_no_effect(create, f"tools[{kind}]", **said(report=["tools"]), tools=[TOOL, tool])
    assert [each["function"] for each in json.loads(answer.output_text)["tools"]] == [FUNCTION]
    if kind not in {"tool_search", "local_shell"}:
        choice = {"type": kind} | ({"server_label": "x"} if kind == "mcp" else {})
        is_refused(create, kind, **said(say="Hi"), tools=[TOOL, tool], tool_choice=choice)


for kind in HOSTED:
    checks.add(f"responses.tools.{kind}", partial(_left_out, kind))


@checks("responses.tool_choice")
def _() -> None:
    assert report("tools", tools=[TOOL], tool_choice="none") is None
    assert report("tool_choice", tools=[TOOL], tool_choice="auto") is None
    assert report("tool_choice", tools=[TOOL], tool_choice="required") == "required"


@checks("responses.tool_choice function")
def _() -> None:
    assert functions(TOOL, {**TOOL, "name": "other"}, tool_choice={"type": "function", "name": "get_weather"}) == [FUNCTION]


@checks("responses.tool_choice custom")
def _() -> None:
    assert [each["name"] for each in functions(TOOL, CUSTOM, tool_choice={"type": "custom", "name": "patch"})] == ["patch"]


@checks("responses.tool_choice allowed_tools")
def _() -> None:
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]}
    assert functions(TOOL, {**TOOL, "name": "other"}, tool_choice=allowed) == [FUNCTION]


@checks("responses.parallel_tool_calls")
def _() -> None:
    assert report("parallel_tool_calls", tools=[TOOL], parallel_tool_calls=False) is False
    assert works(create, **said(say="Hi"), parallel_tool_calls=False).parallel_tool_calls is False


@checks("pydantic_function_tool() of responses")
def _() -> None:
    tools = [openai.pydantic_function_tool(Person)["function"] | {"type": "function"}]
    answer = client.responses.parse(**said(calls=[["Person", {"name": "Ada", "age": 36}]]), tools=tools)
    assert json.loads(answer.output[0].arguments) == {"name": "Ada", "age": 36}


# --- items ----------------------------------------------------------------------------------------------------------------------


@checks("responses.input.message")
def _() -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
    ]
    assert [report(f"messages.{index}", *items)["content"] for index in range(2)] == ["Be kind.\n\nBe brief.", "Hi"]


@checks("responses.input.message output_text", "responses.input.message refusal")
def _() -> None:
    texts = [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}, {"type": "refusal", "refusal": " no."}]
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": texts, "phase": "final_answer"}
    answer = create(**said(item, report=["messages.0"])).parse()
    assert json.loads(answer.output_text)["messages.0"] == {"role": "assistant", "content": "Hello no."}


@checks("responses.input.message input_image")
def _() -> None:
    picture = {"type": "input_image", "image_url": PNG, "detail": "low"}
    content = report("messages.0.content", {"role": "user", "content": [{"type": "input_text", "text": "Look"}, picture]})
    assert [part["type"] for part in content] == ["text", "image_url"]


def _part(part: dict[str, Any], sentence: str) -> None:
    is_refused(create, sentence, **said({"role": "user", "content": [part]}, say="Hi"))


checks.add(
    "responses.input.message input_file",
    partial(_part, {"type": "input_file", "file_data": "AAAA", "filename": "a.pdf"}, "files are not supported"),
)
checks.add(
    "responses.input.message input_audio",
    partial(_part, {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "audio"),
)
checks.add(
    "responses.input.message input_image file_id",
    partial(_part, {"type": "input_image", "file_id": "file_1", "detail": "auto"}, "image_url"),
)


def results(*items: Any, **fields: Any) -> str:
    """Return what the model answers to these items."""
    text: str = create(model=SCRIPTED, input=[{"role": "user", "content": script(calls=[ROME])}, *items], **fields).parse().output_text
    return text


@checks("responses.input.function_call", "responses.input.function_call_output")
def _() -> None:
    second = {**CALL, "call_id": "call_2"}
    outputs = [{"type": "function_call_output", "call_id": f"call_{n}", "output": text} for n, text in ((1, "18"), (2, "19"))]
    assert results(CALL, second, *outputs, tools=[TOOL]) == "Results: 18, 19; images: 0"


@checks("responses.input.function_call_output input_image")
def _() -> None:
    parts = [{"type": "input_text", "text": "A map"}, {"type": "input_image", "image_url": PNG}]
    assert results(CALL, {"type": "function_call_output", "call_id": "call_1", "output": parts}) == "Results: A map; images: 1"


@checks("responses.input.function_call_output input_file")
def _() -> None:
    output = {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_file", "file_id": "file_1"}]}
    is_refused(create, "files are not supported", **said(CALL, output, say="Hi"))


@checks("responses.input.custom_tool_call", "responses.input.custom_tool_call_output")
def _() -> None:
    call = {"type": "custom_tool_call", "call_id": "call_1", "name": "patch", "input": "x"}
    assert (
        results(call, {"type": "custom_tool_call_output", "call_id": "call_1", "output": "ok"}, tools=[CUSTOM]) == "Results: ok; images: 0"
    )


@checks("responses.input.reasoning")
def _() -> None:
    texts = {"content": [{"type": "reasoning_text", "text": "Well."}], "summary": [{"type": "summary_text", "text": "Well."}]}
    items = [{"type": "reasoning", "id": "rs_1", "encrypted_content": "AAAA", **texts}, {"role": "assistant", "content": "Hello"}]
    answer = create(**said(*items, report=["messages.0"])).parse()
    assert json.loads(answer.output_text)["messages.0"] == {"role": "assistant", "content": "Hello", "reasoning": "Well."}


@checks("responses.input.additional_tools")
def _() -> None:
    item = {"type": "additional_tools", "role": "developer", "tools": [TOOL]}
    answer = has_no_effect(create, "input.role", **said(item, report=["tools"]))
    assert [tool["function"] for tool in json.loads(answer.output_text)["tools"]] == [FUNCTION]


@checks("responses.input.item_reference")
def _() -> None:
    first = works(create, **said(calls=[ROME]), tools=[TOOL], store=True).output[0]
    output = {"type": "function_call_output", "call_id": first.call_id, "output": "18"}
    assert results({"type": "item_reference", "id": first.id}, output, tools=[TOOL]) == "Results: 18; images: 0"


@checks("responses.input.item_reference of a message")
def _() -> None:
    first = works(create, **said(say="Hello"), store=True).output[0]
    assert report("messages.0", {"type": "item_reference", "id": first.id}) == {"role": "assistant", "content": "Hello"}


@checks("responses.input.configuration_update")
def _() -> None:
    update = {"type": "configuration_update", "reasoning": {"effort": "high"}, "text": {"format": {"type": "json_object"}}}
    answer = works(create, **said(update, report=["reasoning_effort", "response_format"]), reasoning={"effort": "low"})
    assert json.loads(answer.output_text) == {"reasoning_effort": "high", "response_format": {"type": "json_object"}}


#: They were made by tools that run at OpenAI, or are built into its models.
OF_HOSTED = {
    "file_search_call": {"id": "fs_1", "queries": ["x"], "status": "completed"},
    "computer_call": {"id": "cu_1", "call_id": "c", "status": "completed", "pending_safety_checks": [], "action": {"type": "screenshot"}},
    "computer_call_output": {"call_id": "c", "output": {"type": "computer_screenshot", "image_url": PNG}},
    "web_search_call": {"id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
    "tool_search_call": {"arguments": {}},
    "tool_search_output": {"tools": []},
    "image_generation_call": {"id": "ig_1", "result": None, "status": "completed"},
    "code_interpreter_call": {"id": "ci_1", "code": "1", "container_id": "c", "outputs": [], "status": "completed"},
    "local_shell_call": {"id": "ls_1", "call_id": "c", "status": "completed", "action": {"type": "exec", "command": ["ls"], "env": {}}},
    "local_shell_call_output": {"id": "ls_1", "output": "x"},
    "shell_call": {"call_id": "c", "action": {"commands": ["ls"]}},
    "shell_call_output": {"call_id": "c", "output": []},
    "apply_patch_call": {"call_id": "c", "status": "completed", "operation": {"type": "delete_file", "path": "x"}},
    "apply_patch_call_output": {"call_id": "c", "status": "completed"},
    "mcp_list_tools": {"id": "mcpl_1", "server_label": "x", "tools": []},
    "mcp_approval_request": {"id": "mcpr_1", "arguments": "{}", "name": "x", "server_label": "x"},
    "mcp_approval_response": {"approval_request_id": "mcpr_1", "approve": True},
    "mcp_call": {"id": "mcp_1", "arguments": "{}", "name": "x", "server_label": "x"},
    "program": {"id": "p_1", "call_id": "c", "code": "x", "fingerprint": "x"},
    "program_output": {"id": "p_1", "call_id": "c", "result": "x", "status": "completed"},
}


def _dropped(kind: str) -> None:
    assert has_no_effect(create, f"input[{kind}]", **said({"type": kind, **OF_HOSTED[kind]}, say="Hi")).output_text == "Hi"


for kind in OF_HOSTED:
    checks.add(f"responses.input.{kind}", partial(_dropped, kind))


def _refused(kind: str) -> None:
    is_refused(
        create,
        "that only OpenAI's models can make and read",
        **said({"type": kind, "encrypted_content": "AAAA"}, say="Hi"),
        param="input[0]",
    )


for kind in ("compaction", "compaction_trigger"):
    checks.add(f"responses.input.{kind}", partial(_refused, kind))


checks.ensure_named("responses", response_create_params.ResponseCreateParamsBase.__annotations__)
checks.ensure_named("responses.input", tags_of(ResponseInputItemParam))
checks.ensure_named("responses.tools", tags_of(ToolParam))
